// What needs a person: runs that are not healthy, and what the audit says of trouble.

import { api } from "./api.js";
import { h, healthBadge, icon, replace, runLink, setText, time } from "./dom.js";
import { byHealth, liveRuns, state, subscribe } from "./store.js";
import { count, reasonOf, shortTime } from "./text.js";

/** The kinds of src/model/event.rs that tell of trouble, and how bad each is; a change of health says so itself. */
const KINDS = {
  health_changed: null, limit_warning: "warning", verdict: "critical", heartbeat_late: "warning", escapee_found: "warning", escapee_ended: "warning",
  unkillable: "critical", containment_lost: "critical", stopped_outside: "warning", launch_failed: "warning", kill_intent: "ended", store_set_aside: "critical", foreign_cgroup: "warning",
};
/** How far back one looks at once, in rows of the audit. */
const PAGE = 1000;

export function severity(row) {
  if (row.kind === "health_changed") return row.details?.to ?? "warning";
  // What a person asked for is no alert; what a rule did is.
  if (row.kind === "kill_intent") return row.actor_uid == null ? "ended" : null;
  return KINDS[row.kind] ?? null;
}

function entry(row) {
  const level = severity(row);
  return h("li", { class: `alert is-${level}`, dataset: { seq: row.seq } },
    h("span", { class: "alert-level" }, level === "ended" ? h("span", { class: "health ended" }, icon("critical"), h("span", null, "ended")) : healthBadge(level)),
    h("div", null, h("div", null, row.run_id ? [runLink(row.run_id), " ", h("span", { class: "dim" }, row.workflow ?? "")] : h("span", { class: "dim" }, "the instance"),
      h("span", { class: "kind mono" }, row.kind)), h("p", { class: "reason" }, reasonOf(row) || row.kind)),
    h("span", { class: "dim nowrap" }, time(row.at_usec, shortTime(row.at_usec))));
}

export function alertsPage(view) {
  const current = h("ul", { class: "alerts" });
  const past = h("ul", { class: "alerts" });
  const shown = h("span", { class: "shown", role: "status" });
  const note = h("p", { class: "dim" });
  const older = h("button", { type: "button", class: "button", hidden: true, on: { click: () => readOlder() } }, "Show older ones");
  const level = h("select", { "aria-label": "Severity", on: { change: () => drawPast(true) } },
    ["any severity", "critical", "warning", "ended", "healthy"].map((v, i) => h("option", { value: i ? v : "" }, v)));
  view.append(h("div", { class: "page-head" }, h("h1", null, "Alerts"), shown),
    h("section", { class: "card", "aria-labelledby": "now-h" }, h("h2", { id: "now-h" }, "Now"), current),
    h("section", { class: "card", "aria-labelledby": "past-h" }, h("div", { class: "card-head" }, h("h2", { id: "past-h" }, "What was said"), level), past, note, h("div", { class: "center" }, older)));

  const rows = new Map();
  let first = null;

  let drawn = "";
  function drawNow() {
    const bad = liveRuns().filter((r) => r.health !== "healthy").sort(byHealth);
    setText(shown, bad.length ? `${count(bad.length, "run")} in trouble` : "all runs are healthy");
    const reasons = state.instance?.health_reasons ?? [];
    const key = JSON.stringify([bad.map((r) => [r.run_id, r.health, r.health_reasons]), state.instance?.health, reasons]);
    if (key === drawn) return;
    drawn = key;
    const ofInstance = state.instance && state.instance.health !== "healthy" && h("li", { class: `alert is-${state.instance.health}` }, healthBadge(state.instance.health),
      h("div", null, h("strong", null, "the instance"), reasons.map((r) => h("p", { class: "reason" }, r))));
    replace(current, ofInstance, bad.map((run) => h("li", { class: `alert is-${run.health}` }, healthBadge(run.health),
      h("div", null, h("div", null, runLink(run.run_id), " ", h("span", { class: "dim" }, run.name || run.workflow)), run.health_reasons.map((r) => h("p", { class: "reason" }, r.text))),
      run.health_reasons[0] && h("span", { class: "dim nowrap" }, "since ", time(run.health_reasons[0].since_usec, shortTime(run.health_reasons[0].since_usec))))),
      bad.length === 0 && !ofInstance && h("li", { class: "empty calm" }, icon("healthy"), " No run is in trouble."));
  }

  function drawPast(isFiltered) {
    const wanted = [...rows.values()].filter((r) => (!level.value || severity(r) === level.value) && !isTwice(r)).sort((a, b) => b.seq - a.seq).slice(0, 1000);
    const have = new Map([...past.children].map((li) => [Number(li.dataset.seq), li]));
    const items = wanted.map((r) => have.get(r.seq) ?? entry(r));
    if (isFiltered || items.length !== past.children.length || items.some((li, i) => past.children[i] !== li)) past.replaceChildren(...items);
    setText(note, items.length ? "" : first == null ? "…" : "Nothing is on record.");
  }

  /** A change of health says what the warning or the verdict beside it says. */
  function isTwice(row) {
    if (row.kind !== "limit_warning" && row.kind !== "verdict") return false;
    return [1, 2].some((n) => {
      const next = rows.get(row.seq + n);
      return next?.kind === "health_changed" && next.run_id === row.run_id && next.at_usec - row.at_usec < 50_000;
    });
  }

  function keep(more) {
    for (const r of more) if (severity(r)) rows.set(r.seq, r);
  }

  async function readOlder() {
    const end = first ?? (state.instance?.last_seq ?? 0) + 1;
    const after = Math.max(0, end - 1 - PAGE);
    try {
      const page = await api.audit({ after, limit: PAGE });
      keep(page.filter((r) => r.seq < end));
      first = after + 1;
      older.hidden = after === 0;
      drawPast();
      // A thousand rows without trouble are nothing to look at: look further back, up to a point.
      if (rows.size < 20 && after > 0 && end > (state.instance?.last_seq ?? 0) - 10 * PAGE) await readOlder();
    } catch (e) {
      older.hidden = true;
      setText(note, e.status === 403 ? "The whole audit takes the right read-all. What happens from now on is shown here all the same." : e.message);
    }
  }

  keep(state.rows);
  const unsubscribe = subscribe((told) => {
    if (told.runs.size || told.instance || told.all) drawNow();
    if (told.rows.length) {
      keep(told.rows);
      drawPast();
    }
  });
  drawNow();
  drawPast();
  readOlder();
  return {
    title: "Alerts",
    step: (by) => {
      const links = [...view.querySelectorAll(".alerts a")];
      const at = links.indexOf(document.activeElement);
      links[at < 0 ? 0 : Math.min(links.length - 1, Math.max(0, at + by))]?.focus();
    },
    close: unsubscribe,
  };
}
