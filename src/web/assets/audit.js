// Rows of the audit as a table that only grows: what was unfolded or selected in it stays so.

import { h, runLink, time } from "./dom.js";
import { clockTime, localTime } from "./text.js";

function unfold(r) {
  if (!r.details || Object.keys(r.details).length === 0) return null;
  const box = h("details", null, h("summary", null, "details"));
  // Written only when somebody looks: a receipt is long, and there are many rows.
  box.addEventListener("toggle", () => {
    if (!box.open || box.querySelector("pre")) return;
    box.append(h("pre", null, JSON.stringify(r.details, null, 2).split("\n").map((line) => [line, h("br")])));
  });
  return box;
}

function line(r, ofOneRun) {
  return h("tr", { dataset: { kind: r.kind } },
    h("td", { class: "mono dim num" }, String(r.seq)),
    h("td", { class: "mono nowrap" }, time(r.at_usec, ofOneRun ? clockTime(r.at_usec) : localTime(r.at_usec))),
    h("td", { class: "mono nowrap" }, r.kind), !ofOneRun && h("td", { class: "nowrap" }, r.run_id ? runLink(r.run_id) : "-"),
    h("td", { class: "nowrap" }, r.actor), h("td", { class: "reason-cell" }, r.reason, unfold(r)));
}

/** {element, show(rows)}: rows oldest first for one run, newest first otherwise. */
export function auditTable(label, ofOneRun) {
  const body = h("tbody");
  const known = new Map();
  const heads = ["Seq", "Time", "Event", !ofOneRun && "Run", "By", "Reason"].filter(Boolean);
  const element = h("table", { class: "audit", "aria-label": label }, h("thead", null, h("tr", null, heads.map((t) => h("th", { scope: "col" }, t)))), body);
  function show(rows) {
    const wanted = new Set(rows.map((r) => r.seq));
    for (const [seq, tr] of known) {
      if (wanted.has(seq)) continue;
      tr.remove();
      known.delete(seq);
    }
    let next = body.firstElementChild;
    for (const r of rows) {
      const old = known.get(r.seq);
      if (old && old === next) {
        next = next.nextElementSibling;
        continue;
      }
      const tr = old ?? line(r, ofOneRun);
      known.set(r.seq, tr);
      body.insertBefore(tr, next);
    }
  }
  return { element, show };
}
