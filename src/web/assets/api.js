// The HTTP interface of guardian-web, and nothing else: every answer is checked, every refusal is a sentence.

/** A refusal by the server, or no answer at all (status 0). */
export class ApiError extends Error {
  constructor(status, kind, message) {
    super(message);
    this.status = status;
    this.kind = kind;
  }
}

/** Called when the server no longer knows who we are. */
export const signedOut = { notify: () => {} };

/** How far the server's clock is ahead of ours, in microseconds: times on the page are counted on the server's. */
let ahead = 0;

export function now() {
  return Date.now() * 1000 + ahead;
}

function noteClock(response) {
  const date = Date.parse(response.headers.get("date") ?? "");
  if (Number.isNaN(date)) return;
  // The header has whole seconds: below two of them nothing can be said.
  const difference = (date + 500) * 1000 - Date.now() * 1000;
  if (Math.abs(difference) > 2e6 && Math.abs(difference - ahead) > 1e6) ahead = difference;
  else if (Math.abs(difference) <= 2e6) ahead = 0;
}

async function ask(method, path, body, signal) {
  const options = { method, signal, headers: { accept: "application/json" }, credentials: "same-origin", cache: "no-store" };
  if (method === "POST") {
    options.headers["content-type"] = "application/json";
    options.body = JSON.stringify(body ?? {});
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (e) {
    if (e.name === "AbortError") throw e;
    throw new ApiError(0, "unreachable", "guardian-web does not answer. It is asked again by itself.");
  }
  noteClock(response);
  const answer = await response.json().catch(() => null);
  if (response.ok) return { status: response.status, body: answer ?? {} };
  if (response.status === 401 && !path.endsWith("/login")) signedOut.notify();
  const said = answer?.message || `the server answered ${response.status}`;
  throw new ApiError(response.status, answer?.error ?? "unknown", said);
}

async function get(path, query, signal) {
  const pairs = Object.entries(query ?? {}).filter(([, v]) => v != null && v !== "");
  const search = pairs.length ? `?${new URLSearchParams(pairs)}` : "";
  return (await ask("GET", `/api/v1${path}${search}`, undefined, signal)).body;
}

const post = async (path, body) => ask("POST", `/api/v1${path}`, body);
const part = encodeURIComponent;

export const api = {
  whoami: () => get("/whoami"),
  login: async (body) => (await post("/login", body)).body,
  logout: () => post("/logout"),
  runs: async (query) => (await get("/runs", query)).runs ?? [],
  run: (id, signal) => get(`/runs/${part(id)}`, null, signal),
  explain: (id, signal) => get(`/runs/${part(id)}/explain`, null, signal),
  samples: async (id, since, signal) => (await get(`/runs/${part(id)}/samples`, { since_usec: since }, signal)).samples ?? [],
  auditOf: async (id, signal) => (await get(`/runs/${part(id)}/audit`, null, signal)).events ?? [],
  audit: async (query) => (await get("/audit", query)).events ?? [],
  statistics: async (query) => (await get("/statistics", query)).workflows ?? [],
  extend: async (id, body) => (await post(`/runs/${part(id)}/extend`, body)).body,
  freeze: (id, reason) => post(`/runs/${part(id)}/freeze`, { reason }),
  thaw: (id, reason) => post(`/runs/${part(id)}/thaw`, { reason }),
  kill: (executor, id, force, reason) =>
    post(`/workflows/${part(executor)}/run/${part(id)}/kill?force=${force}`, { reason }),
};
