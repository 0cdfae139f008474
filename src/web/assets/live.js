// The live table: every live run, a row each.

import { append, healthBadge, h, replace, runLink, setAttr, setText } from "./dom.js";
import { lasted, nextDeadline, phaseText, PHASES } from "./limits.js";
import { liveRuns, state, subscribe } from "./store.js";
import { Table } from "./table.js";
import { clip, commandLine, count, escape, humanDuration, humanSize, percent, tickingDuration } from "./text.js";

const rank = { critical: 0, warning: 1, healthy: 2 };
const healthOf = (run) => (run.phase === "finished" ? "finished" : run.health);

/** Worst first, then the newest: one number. */
const worst = (run) => (run.phase === "finished" ? 3 : rank[run.health]) * 1e16 - run.created_at_usec;

function healthCell(td, run) {
  const health = healthOf(run);
  if (td.dataset.is !== health) {
    td.dataset.is = health;
    replace(td, healthBadge(health));
  }
  setAttr(td, "title", run.health_reasons.map((r) => escape(r.text)).join("\n") || null);
}

function runCell(td, run) {
  if (!td.firstChild) td.append(runLink(run.run_id));
}

function workflowCell(td, run) {
  if (td.firstChild) return;
  append(td, [run.workflow, run.name && h("span", { class: "name" }, run.name)]);
  td.title = escape([run.workflow, run.name].filter(Boolean).join(": "));
}

function phaseCell(td, run) {
  const text = clip(escape(phaseText(run)), 60);
  setText(td, text);
  setAttr(td, "title", text);
  setAttr(td, "data-phase", run.frozen ? "frozen" : run.phase);
}

function deadlineCell(td, run) {
  const next = nextDeadline(run);
  if (!next) {
    if (td.firstChild) replace(td);
    return;
  }
  let [bar, fill, text] = td.parts ?? [];
  if (!td.firstChild) {
    fill = h("span", { class: "fill" });
    bar = h("span", { class: "bar", "aria-hidden": "true" }, fill);
    text = h("span", { class: "left" });
    td.append(bar, text);
    td.parts = [bar, fill, text];
  }
  // Half a percent is less than a pixel: without rounding each second would be a change of every row.
  const width = `${Math.round(next.share * 200) / 2}%`;
  if (fill.style.width !== width) fill.style.width = width;
  setAttr(bar, "data-level", next.left <= 0 ? "over" : next.share >= 0.8 ? "near" : "far");
  const left = next.left > 0 ? tickingDuration(next.left) : "over";
  setText(text, left);
  setAttr(td, "title", `${next.rule}: ${next.ends ? "ends the run" : "warns"} in ${left}`);
}

function statusCell(td, run) {
  // Of a run that waits for its turn nothing is executed that could say anything.
  const status = run.queue?.reason ?? run.heartbeats.status;
  const command = commandLine(run.command);
  if (!td.parts) {
    td.parts = [h("span", { class: "says" }), h("code")];
    td.append(...td.parts);
  }
  const [says, code] = td.parts;
  setText(says, clip(escape(status), 120));
  says.hidden = !status;
  setText(code, clip(command, 200));
  setAttr(td, "title", clip(status ? `${escape(status)}\n${command}` : command, 400));
}

const columns = [
  { key: "health", label: "Health", sort: worst, cell: healthCell },
  { key: "run", label: "Run", sort: (r) => r.run_id, cell: runCell },
  { key: "workflow", label: "Workflow, name", sort: (r) => `${r.workflow}\n${r.name ?? ""}`, cell: workflowCell },
  { key: "phase", label: "Phase", sort: (r) => PHASES.indexOf(r.phase), cell: phaseCell },
  { key: "time", label: "Time", sort: lasted, downFirst: true, cell: (td, r) => setText(td, tickingDuration(lasted(r))) },
  { key: "deadline", label: "Deadline", sort: (r) => nextDeadline(r)?.left, cell: deadlineCell },
  { key: "cpu", label: "CPU", sort: (r) => r.cpu_share, downFirst: true, cell: cpuCell },
  { key: "memory", label: "Memory", sort: (r) => r.usage.memory_bytes, downFirst: true, cell: (td, r) => setText(td, humanSize(r.usage.memory_bytes)) },
  { key: "tasks", label: "Tasks", sort: (r) => r.usage.tasks, downFirst: true, cell: (td, r) => setText(td, r.usage.tasks ?? "-") },
  { key: "command", label: "Status, command", cell: statusCell },
];

function cpuCell(td, run) {
  setText(td, run.cpu_share == null ? "-" : percent(run.cpu_share));
  setAttr(td, "title", run.usage.cpu_usec == null ? null : `${humanDuration(run.usage.cpu_usec)} of CPU time in all`);
}

/** The text that the filter looks into; made once for a run, since most of it does not change. */
function haystack(run) {
  run.haystack ??= [run.run_id, run.workflow, run.name ?? "", run.user, run.command.join(" ")].join("\n").toLowerCase();
  return run.haystack;
}

function matches(run, query) {
  return (!query.health || run.health === query.health)
    && (!query.phase || run.phase === query.phase)
    && (query.words.length === 0 || query.words.every((w) => haystack(run).includes(w)
      || run.phase.includes(w) || run.health.includes(w) || run.heartbeats.status.toLowerCase().includes(w)));
}

export function livePage(view, params) {
  const query = { health: params.get("health") ?? "", phase: params.get("phase") ?? "", words: [] };
  const filter = h("input", {
    type: "search", id: "filter", class: "filter", placeholder: "Filter: workflow, name, command, user …", value: params.get("q") ?? "",
    "aria-label": "Filter runs", "aria-keyshortcuts": "/", autocomplete: "off", spellcheck: "false",
  });
  const choose = (label, key, values) => h("select", { "aria-label": label, on: { change: (e) => { query[key] = e.target.value; apply(); } } },
    h("option", { value: "" }, `any ${key}`),
    values.map((v) => h("option", { value: v, selected: v === query[key] }, v)));
  const shown = h("span", { class: "shown", role: "status" });
  const sort = { key: params.get("sort") ?? "health", down: params.get("down") === "1" };
  const table = new Table({
    columns, sort, key: (r) => r.run_id, href: (r) => `#/run/${r.run_id}`, label: "Live runs",
    rowClass: (r) => `is-${healthOf(r)}`, onSort: remember,
  });
  const empty = h("div", { class: "empty", hidden: true });
  // On a phone the heads of columns are not shown, so the order is chosen here.
  const sorter = h("select", { class: "phone-only", "aria-label": "Sort by", on: { change: (e) => {
    const column = columns.find((c) => c.key === e.target.value);
    table.sort = { key: column.key, down: Boolean(column.downFirst) };
    remember();
    arrange();
  } } }, columns.filter((c) => c.sort).map((c) => h("option", { value: c.key, selected: c.key === sort.key }, `by ${c.label.toLowerCase()}`)));

  view.append(
    h("div", { class: "page-head" }, h("h1", null, "Live runs"), shown,
      h("div", { class: "tools" }, filter, choose("Health", "health", ["critical", "warning", "healthy"]),
        choose("Phase", "phase", PHASES.slice(0, -1)), sorter)),
    h("div", { class: "table-box" }, table.element, empty),
  );

  function remember() {
    const kept = new URLSearchParams();
    if (filter.value) kept.set("q", filter.value);
    for (const key of ["health", "phase"]) if (query[key]) kept.set(key, query[key]);
    if (table.sort.key !== "health" || table.sort.down) {
      kept.set("sort", table.sort.key);
      if (table.sort.down) kept.set("down", "1");
    }
    const search = String(kept);
    history.replaceState(null, "", `#/live${search ? `?${search}` : ""}`);
  }

  let pending = new Set();
  let arrangedAt = 0;

  function arrange() {
    arrangedAt = performance.now();
    const all = [...state.runs.values()];
    const items = all.filter((r) => matches(r, query));
    table.arrange(items);
    const live = liveRuns().length;
    const some = items.length !== all.length ? `${items.length.toLocaleString("en")} of ` : "";
    setText(shown, `${some}${count(live, "run")}`);
    empty.hidden = items.length > 0;
    table.element.hidden = items.length === 0;
    if (items.length === 0) {
      setText(empty, all.length === 0
        ? "Nothing is running. What is started with `guardian run` appears here at once."
        : "No run matches the filter.");
    }
  }

  function apply() {
    query.words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    remember();
    arrange();
  }

  function onChange(told) {
    let isNew = told.all;
    for (const id of told.runs) {
      const run = state.runs.get(id);
      if (run && table.rows.has(id)) table.update(run);
      else isNew = true;
      pending.add(id);
    }
    // What is new or gone is seen at once; the order of the rest may wait, so that rows do not jump under the hand.
    if (isNew) arrange();
  }

  /** Clocks and bars of the rows that can be seen; the others are told when they are scrolled to. */
  function tick() {
    if (document.hidden) return;
    if (pending.size && performance.now() - arrangedAt > 900) {
      pending = new Set();
      arrange();
    }
    const [time, deadline] = [4, 5];
    for (const key of table.order) {
      const row = table.rows.get(key);
      if (table.order.length > 80 && !visible.has(row)) continue;
      const run = state.runs.get(key);
      if (!run) continue;
      columns[time].cell(row.cellsOf[time], run);
      columns[deadline].cell(row.cellsOf[deadline], run);
    }
    for (const row of watched) if (!row.isConnected) { seer.unobserve(row); watched.delete(row); visible.delete(row); }
    for (const row of table.rows.values()) if (!watched.has(row)) { watched.add(row); seer.observe(row); }
  }

  const visible = new Set();
  const watched = new Set();
  const seer = new IntersectionObserver((entries) => {
    for (const e of entries) {
      if (e.isIntersecting) visible.add(e.target);
      else visible.delete(e.target);
    }
  }, { rootMargin: "200px" });

  filter.addEventListener("input", apply);
  filter.addEventListener("keydown", (e) => {
    if (e.key === "Escape") { filter.value = ""; apply(); filter.blur(); }
    if (e.key === "Enter") table.step(0);
  });
  apply();
  tick();
  const timer = setInterval(tick, 1000);
  const unsubscribe = subscribe(onChange);
  return {
    title: "Live runs",
    step: (by) => table.step(by),
    filter,
    close: () => { clearInterval(timer); unsubscribe(); seer.disconnect(); },
  };
}
