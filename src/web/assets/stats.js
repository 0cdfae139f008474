// What the past says: a card for each workflow.

import { api, now } from "./api.js";
import { dayBars, dayLine, shareBar } from "./charts.js";
import { h, replace } from "./dom.js";
import { count, humanDuration, humanSize, percent } from "./text.js";

const OUTCOMES = ["succeeded", "failed", "signaled", "killed", "oom", "lost"];
const DAY = 86400e6;

function quantiles(w) {
  const kinds = [["Time", w.duration_usec, humanDuration], ["CPU time", w.cpu_usec, humanDuration], ["Memory peak", w.memory_peak_bytes, humanSize]];
  return h("table", { class: "quantiles" },
    h("thead", null, h("tr", null, h("td"), ["p50", "p95", "p99", "max"].map((t) => h("th", { scope: "col" }, t)))),
    h("tbody", null, kinds.map(([name, q, format]) => h("tr", null, h("th", { scope: "row" }, name),
      ["p50", "p95", "p99", "max"].map((k) => h("td", { class: "num" }, q ? format(q[k]) : "-"))))));
}

function kills(w) {
  const all = Object.entries(w.kills ?? {}).sort((a, b) => b[1] - a[1]);
  if (all.length === 0) return h("p", { class: "dim" }, "None was killed.");
  const most = all[0][1];
  return h("ul", { class: "hbars" }, all.map(([why, n]) => h("li", null, h("span", { class: "mono" }, why),
    h("span", { class: "hbar", "aria-hidden": "true" }, h("span", { style: { width: `${(n / most) * 100}%` } })), h("span", { class: "num" }, String(n)))));
}

/** The days in a row, those without a run too. */
function days(w) {
  const known = new Map((w.days ?? []).map((d) => [d.day, d]));
  const all = [...known.keys()].sort();
  if (all.length === 0) return [];
  const filled = [];
  for (let t = Date.parse(all[0]); t <= Date.parse(all.at(-1)) && filled.length < 400; t += DAY / 1000) {
    const day = new Date(t).toISOString().slice(0, 10);
    filled.push(known.get(day) ?? { day, runs: 0, outcomes: {}, duration_p50_usec: null, memory_peak_max_bytes: null });
  }
  return filled.slice(-60);
}

function workflowCard(w, i) {
  const o = w.outcomes ?? {};
  const said = OUTCOMES.filter((n) => o[n]).map((n) => `${o[n].toLocaleString("en")} ${n}`).join(", ") || "no outcomes";
  const all = days(w);
  const trend = (label, key, format) => (all.filter((d) => d[key] != null).length > 1
    ? [h("h3", null, label), dayLine({ label: `${label} of ${w.workflow}`, days: all.map((d) => ({ label: d.day, value: d[key] })), format })] : null);
  return h("section", { class: "card workflow", "aria-labelledby": `workflow-${i}` },
    h("div", { class: "card-head" }, h("h2", { id: `workflow-${i}` }, w.workflow), h("span", { class: "dim" }, count(w.runs, "run"), w.runs > 0 && `, ${percent((o.succeeded ?? 0) / w.runs)} succeeded`)),
    shareBar(OUTCOMES.map((n) => ({ name: n, n: o[n] ?? 0 })), `Outcomes: ${said}`),
    h("ul", { class: "legend" }, OUTCOMES.filter((n) => o[n]).map((n) => h("li", null, h("span", { class: `swatch ${n}`, "aria-hidden": "true" }), n, " ", h("strong", null, o[n].toLocaleString("en"))))),
    w.suggestions?.length > 0 && h("ul", { class: "suggestions" }, w.suggestions.map((s) => h("li", null,
      h("code", null, s.setting), h("span", null, s.sentence)))),
    h("div", { class: "workflow-grid" },
      h("div", null, h("h3", null, "Spread"), h("div", { class: "scroll-x" }, quantiles(w)), h("h3", null, "Kills by rule"), kills(w)),
      h("div", null, all.length > 0 && [h("h3", null, "Runs by day"), dayBars({ label: `Runs by day of ${w.workflow}`, days: all.map((d) => ({ label: d.day, parts: d.outcomes })), names: OUTCOMES })],
        trend("Median time by day", "duration_p50_usec", humanDuration), trend("Memory peak by day", "memory_peak_max_bytes", humanSize))));
}

export function statsPage(view, params) {
  const body = h("div", { class: "workflows" }, h("p", { class: "dim" }, "…"));
  const since = h("select", { "aria-label": "Since", on: { change: () => read() } },
    [["7", "last 7 days"], ["30", "last 30 days"], ["90", "last 90 days"], ["", "all that is kept"]].map(([v, t]) => h("option", { value: v, selected: v === (params.get("days") ?? "30") }, t)));
  view.append(h("div", { class: "page-head" }, h("h1", null, "Statistics"), h("div", { class: "tools" }, since)), body);
  async function read() {
    history.replaceState(null, "", `#/stats?days=${since.value}`);
    try {
      const all = await api.statistics({ since_usec: since.value ? Math.floor(now() - Number(since.value) * DAY) : null });
      replace(body, all.length ? [...all].sort((a, b) => b.runs - a.runs).map(workflowCard) : h("p", { class: "empty" }, "No run is over yet, so there is nothing to count."));
    } catch (e) {
      replace(body, h("p", { class: "empty" }, e.status === 404 ? "This instance keeps no statistics yet. They come with a newer guardiand; runs are on record either way." : e.message));
    }
  }
  read();
  return { title: "Statistics", step: () => {}, close: () => {} };
}
