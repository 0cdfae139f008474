// What the page knows: who we are, the instance, the runs, the rows of the audit since the page was opened. It is read once
// and then kept up by server-sent events. Pages subscribe; they are told what changed, a few times a second at most.

import { api, now } from "./api.js";

/** For how long a run that is over stays in the live table, so that short ones can be seen at all. */
const LINGER_USEC = 15e6;
/** Rows of the audit that are kept at hand. */
const MOST_ROWS = 500;
/** A run whose CPU time has not grown for so long uses none: samples come every 5 s. */
const QUIET_USEC = 8e6;
/** Over how long CPU use is looked at. */
const WINDOW_USEC = 22e6;
/** Runs that are asked for at once. */
const ASKED_MAX = 16;
const FEW = 3;
/** The shortest time between two changes of the page. */
const BETWEEN_MS = 200;
const NEW_USEC = 20e6;

export const state = {
  who: null,
  instance: null,
  runs: new Map(),
  rows: [],
  connection: "connecting",
  lostAt: null,
};

const subscribers = new Set();
let changed = { runs: new Set(), rows: [], instance: false, connection: false, all: false };
let isDue = false;
let publishedAt = 0;

/** Tells `run` of changes until the function that it returns is called. */
export function subscribe(run) {
  subscribers.add(run);
  return () => subscribers.delete(run);
}

function publish() {
  if (isDue) return;
  isDue = true;
  // A page in the background gets no frames, and is to have its title right all the same; and of many events in a row not
  // each is worth a frame.
  const frame = document.hidden ? (f) => f() : requestAnimationFrame;
  const pause = Math.max(0, publishedAt + BETWEEN_MS - performance.now());
  setTimeout(() => frame(() => {
    isDue = false;
    publishedAt = performance.now();
    const told = changed;
    changed = { runs: new Set(), rows: [], instance: false, connection: false, all: false };
    for (const run of [...subscribers]) run(told);
  }), pause);
}

export function isOperator() {
  return ["operator", "starter"].includes(state.who?.role);
}

const order = { critical: 0, warning: 1, healthy: 2 };

/** Worst first, then the newest. */
export function byHealth(a, b) {
  return order[a.health] - order[b.health] || b.created_at_usec - a.created_at_usec;
}

export function liveRuns() {
  return [...state.runs.values()].filter((r) => r.phase !== "finished");
}

/**
 * CPU use, kept beside the run: `cpu_share` in cores, null while it is not known. The counter is read by the instance every
 * few seconds and is here up to two seconds later, so that it is looked at over several of its changes.
 */
function withCpu(run, before) {
  const at = now();
  const cpu = run.usage?.cpu_usec ?? null;
  let points = before?.cpu_points ?? [];
  let share = before?.cpu_share ?? null;
  if (cpu == null || run.phase === "finished") {
    share = null;
  } else if (!before) {
    // Of a run that has just begun, its beginning is known as well.
    const isNew = run.started_at_usec && at - run.started_at_usec < NEW_USEC;
    points = isNew ? [[run.started_at_usec, 0]] : [];
  } else if (cpu !== before.cpu_seen) {
    points = [...points.filter(([t]) => at - t < WINDOW_USEC), [at, cpu]].slice(-6);
    const [first, last] = [points[0], points.at(-1)];
    if (last[0] - first[0] > 1e6) share = Math.max(0, last[1] - first[1]) / (last[0] - first[0]);
  } else if (at - (points.at(-1)?.[0] ?? before.seen_at) > QUIET_USEC) {
    share = 0;
    points = [[at - QUIET_USEC / 2, cpu]];
  }
  run.seen_at = before?.seen_at ?? at;
  run.cpu_seen = cpu;
  run.cpu_points = points;
  run.cpu_share = share;
  return run;
}

function take(run) {
  const before = state.runs.get(run.run_id);
  // What is over does not come back: an older answer may arrive after a newer event.
  if (before?.phase === "finished" && run.phase !== "finished") return;
  state.runs.set(run.run_id, withCpu(run, before));
  if (run.phase === "finished") run.gone_at = before?.gone_at ?? now() + LINGER_USEC;
  changed.runs.add(run.run_id);
  publish();
}

/** Once a second: who lingered long enough is let go, and who is quiet uses no CPU. */
function sweep() {
  const at = now();
  for (const [id, run] of state.runs) {
    if (run.phase === "finished" && at > run.gone_at) {
      state.runs.delete(id);
      changed.runs.add(id);
    } else if (run.phase !== "finished" && run.cpu_share !== 0 && at - (run.cpu_points.at(-1)?.[0] ?? run.seen_at) > QUIET_USEC) {
      withCpu(run, run);
      changed.runs.add(id);
    }
  }
  if (changed.runs.size) publish();
}

/** Reads everything anew: events say what changes, not what was missed. */
async function readAll() {
  const [runs, who] = await Promise.all([api.runs({}), api.whoami()]);
  const present = new Set(runs.map((r) => r.run_id));
  for (const run of runs) take(run);
  for (const [id, run] of state.runs) {
    if (!present.has(id) && run.phase !== "finished") doubtful.add(id);
  }
  settle();
  state.who = who;
  state.instance = who.instance ?? state.instance;
  changed.instance = changed.all = true;
  publish();
}

/** Runs of which a row says that they began or are over, and of which nothing else was heard yet. */
const doubtful = new Set();
let settling = null;

/** Asks for what did not come by itself. Where many ended at once, no one run is worth a question: they leave the table. */
function settle() {
  // One that has just begun is to be seen at once; of many, the server tells soon enough.
  const delay = doubtful.size <= FEW ? 60 : 1000;
  settling ??= setTimeout(async () => {
    const [began, over] = [[], []];
    for (const id of doubtful) {
      const run = state.runs.get(id);
      if (!run) began.push(id);
      else if (run.phase !== "finished") over.push(id);
    }
    doubtful.clear();
    settling = null;
    const ask = async (id) => {
      try {
        take(await api.run(id));
      } catch (e) {
        if (e.status === 404) forget(id);
      }
    };
    over.slice(ASKED_MAX).forEach(forget);
    await Promise.all(over.slice(0, ASKED_MAX).map(ask));
    if (began.length > ASKED_MAX) await readAll().catch(() => {});
    else await Promise.all(began.map(ask));
  }, delay);
}

function forget(id) {
  state.runs.delete(id);
  changed.runs.add(id);
  publish();
}

function takeRow(row) {
  if (state.rows.length && row.seq <= state.rows[0].seq) return;
  state.rows.unshift(row);
  state.rows.length = Math.min(state.rows.length, MOST_ROWS);
  changed.rows.push(row);
  if (row.run_id) {
    const run = state.runs.get(row.run_id);
    const isOver = row.kind === "run_finished" && run && run.phase !== "finished";
    if (isOver || (!run && ["run_started", "run_queued"].includes(row.kind))) {
      doubtful.add(row.run_id);
      settle();
    }
  }
  publish();
}

let source = null;
let timers = [];
let lastSeq = null;
let wait = 1000;

function connection(to) {
  if (state.connection === to) return;
  state.connection = to;
  state.lostAt = to === "live" ? null : state.lostAt ?? now();
  changed.connection = true;
  publish();
}

function parsed(event) {
  try {
    return JSON.parse(event.data);
  } catch {
    return null;
  }
}

function listen() {
  source?.close();
  const cursor = lastSeq == null ? "" : `?after=${lastSeq}`;
  source = new EventSource(`/api/v1/events${cursor}`);
  const on = (name, run) => source.addEventListener(name, (event) => {
    const data = parsed(event);
    if (data) run(data, event);
  });
  source.addEventListener("open", () => {
    wait = 1000;
    connection("live");
    readAll().catch(() => {});
  });
  on("audit", (row) => {
    lastSeq = Math.max(lastSeq ?? 0, row.seq);
    takeRow(row);
  });
  on("run", take);
  on("instance", (instance) => {
    state.instance = instance;
    changed.instance = true;
    if (state.connection === "lost" && source.readyState === EventSource.OPEN) {
      connection("live");
      readAll().catch(() => {});
    }
    publish();
  });
  // The instance does not answer guardian-web, which does answer us: what is shown is old in the same way.
  on("unavailable", () => connection("lost"));
  source.addEventListener("error", () => {
    connection("lost");
    // The browser connects again by itself, with Last-Event-ID, unless the answer was a refusal.
    if (source.readyState !== EventSource.CLOSED) return;
    timers.push(setTimeout(() => api.whoami().then(listen, (e) => e.status !== 401 && listen()), wait));
    wait = Math.min(wait * 2, 15_000);
  });
}

/** Begins to follow the instance; the caller is known to be signed in. */
export async function start(who) {
  stop();
  state.who = who;
  state.instance = who.instance ?? null;
  lastSeq = state.instance?.last_seq ?? null;
  timers = [setInterval(sweep, 1000)];
  listen();
  // One look before the events come, so that the first page is not empty for longer than it takes.
  await readAll().catch(() => {});
}

export function stop() {
  source?.close();
  source = null;
  for (const timer of timers) clearTimeout(timer);
  timers = [];
  state.runs.clear();
  state.rows = [];
  state.who = null;
  state.connection = "connecting";
}

addEventListener("offline", () => source && connection("lost"));
// A connection that was cut without a word is not noticed by the browser: it is made anew.
addEventListener("online", () => source && listen());
