// Runs that are over, newest first; those that were killed, unless one asks for all.

import { api } from "./api.js";
import { h, replace, runLink, setText, time } from "./dom.js";
import { lasted, outcomeTone } from "./limits.js";
import { subscribe } from "./store.js";
import { clip, commandLine, count, escape, humanDuration, receiptLine, shortTime } from "./text.js";

const PAGE = 200;
const MOST = 10_000;

function row(run) {
  const r = run.receipt;
  return h("tr", { class: `is-${outcomeTone(run.outcome)}` },
    h("td", { class: "c-run" }, runLink(run.run_id)),
    h("td", { class: "c-workflow", title: escape([run.workflow, run.name].filter(Boolean).join(": ")) }, run.workflow, run.name && h("span", { class: "name" }, run.name)),
    h("td", { class: "c-created nowrap" }, time(run.created_at_usec, shortTime(run.created_at_usec))),
    h("td", { class: "c-time num nowrap" }, humanDuration(lasted(run))),
    h("td", { class: "c-outcome" }, h("span", { class: `outcome tone-${outcomeTone(run.outcome)}` }, clip(escape(run.outcome?.text ?? "-"), 80))),
    h("td", { class: "c-kill" }, r ? [h("span", null, receiptLine(r, run.containment)), h("span", { class: "dim" }, ` · ${r.mode} by ${r.actor}`)] : h("span", { class: "dim" }, "-")),
    h("td", { class: "c-command" }, h("code", { title: clip(commandLine(run.command), 400) }, clip(commandLine(run.command), 100))));
}

export function historyPage(view, params) {
  let limit = PAGE;
  let runs = [];
  let isAll = params.get("all") === "1";
  const filter = h("input", { type: "search", class: "filter", placeholder: "Filter: workflow, reason, actor, command …", "aria-label": "Filter the history", autocomplete: "off", spellcheck: "false", value: params.get("q") ?? "" });
  const which = h("select", { "aria-label": "Which runs", on: { change: () => { isAll = which.value === "all"; remember(); draw(); } } },
    h("option", { value: "killed", selected: !isAll }, "killed"), h("option", { value: "all", selected: isAll }, "all that are over"));
  const shown = h("span", { class: "shown", role: "status" });
  const body = h("tbody");
  const empty = h("div", { class: "empty" }, "…");
  const more = h("button", { type: "button", class: "button", hidden: true, on: { click: () => { limit = Math.min(MOST, limit * 4); read(); } } }, "Show older ones");
  const table = h("table", { class: "history" }, h("thead", null, h("tr", null,
    [["run", "Run"], ["workflow", "Workflow, name"], ["created", "Created"], ["time", "Time"], ["outcome", "Outcome"], ["kill", "Kill"], ["command", "Command"]]
      .map(([k, t]) => h("th", { scope: "col", class: `c-${k}` }, t)))), body);
  view.append(h("div", { class: "page-head" }, h("h1", null, "Kill history"), shown, h("div", { class: "tools" }, filter, which)),
    h("div", { class: "table-box scroll-x" }, table, empty), h("div", { class: "center" }, more));
  body.addEventListener("click", (e) => {
    if (e.target.closest("a") || String(getSelection())) return;
    e.target.closest("tr")?.querySelector("a")?.click();
  });

  function remember() {
    const kept = new URLSearchParams();
    if (isAll) kept.set("all", "1");
    if (filter.value) kept.set("q", filter.value);
    history.replaceState(null, "", `#/history${String(kept) ? `?${kept}` : ""}`);
  }

  const lines = new Map();
  function draw() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const text = (r) => [r.run_id, r.workflow, r.name ?? "", r.user, r.outcome?.text ?? "", r.receipt?.reason_text ?? "", r.receipt?.actor ?? "", r.command.join(" ")].join("\n").toLowerCase();
    const items = runs.filter((r) => (isAll || r.receipt) && words.every((w) => text(r).includes(w)));
    for (const r of items) if (!lines.has(r.run_id)) lines.set(r.run_id, row(r));
    const wanted = items.map((r) => lines.get(r.run_id));
    const focused = document.activeElement;
    // Rows of the past do not change: the same elements are put in order again.
    if (wanted.length !== body.children.length || wanted.some((tr, i) => body.children[i] !== tr)) body.replaceChildren(...wanted);
    if (focused?.isConnected && focused !== document.activeElement) focused.focus({ preventScroll: true });
    setText(shown, count(items.length, isAll ? "run" : "kill"));
    table.hidden = items.length === 0;
    empty.hidden = items.length > 0;
    setText(empty, runs.length === 0 ? "No run is over yet." : isAll || words.length ? "None matches the filter." : "None of the runs that are over was killed.");
    more.hidden = runs.length < limit || limit >= MOST;
  }

  let isReading = false;
  let isStale = false;
  async function read() {
    if (isReading) {
      isStale = true;
      return;
    }
    isReading = true;
    try {
      runs = await api.runs({ finished: true, phase: "finished", limit });
      draw();
    } catch (e) {
      if (runs.length === 0) replace(empty, e.message);
    }
    // Many that end together are read together.
    setTimeout(() => {
      isReading = false;
      if (isStale) read();
      isStale = false;
    }, 1000);
  }

  filter.addEventListener("input", () => { remember(); draw(); });
  filter.addEventListener("keydown", (e) => {
    if (e.key === "Escape") { filter.value = ""; remember(); draw(); filter.blur(); }
  });
  const unsubscribe = subscribe((told) => {
    if (told.all || told.rows.some((r) => r.kind === "run_finished")) read();
  });
  read();
  return {
    title: "Kill history", filter,
    step: (by) => {
      const links = [...body.querySelectorAll("a.run-id")];
      const at = links.indexOf(document.activeElement?.closest("tr")?.querySelector("a.run-id"));
      links[at < 0 ? 0 : Math.min(links.length - 1, Math.max(0, at + by))]?.focus();
    },
    close: unsubscribe,
  };
}
