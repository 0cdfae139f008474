// The first page: how things are, worst first.

import { api } from "./api.js";
import { h, healthBadge, icon, replace, runLink, setText, time } from "./dom.js";
import { lasted, nextDeadline, phaseText } from "./limits.js";
import { byHealth, liveRuns, state, subscribe } from "./store.js";
import { clip, clockTime, commandLine, count, reasonOf, receiptLine, shortTime, tickingDuration } from "./text.js";

const MOST = 12;
const FEW = 6;
const EVENTS = 14;

function tile(health, label) {
  const number = h("span", { class: "number" }, "0");
  const href = health === "all" ? "#/live" : `#/live?health=${health}`;
  const link = h("a", { class: `tile ${health}`, href }, h("span", { class: "tile-label" }, health === "all" ? null : icon(health), label), number);
  return { link, number };
}

/** A run in trouble: what it is, what is wrong, and how long that has been so. */
function trouble(run) {
  const next = nextDeadline(run);
  return h("li", { class: `trouble is-${run.health}` },
    healthBadge(run.health),
    h("div", { class: "trouble-what" },
      h("div", null, runLink(run.run_id, h("strong", null, run.name || run.workflow), " ", h("span", { class: "mono dim" }, run.run_id))),
      run.health_reasons.map((r) => h("p", { class: "reason" }, r.text)),
      h("p", { class: "dim clip" }, h("code", null, clip(commandLine(run.command), 160)))),
    h("div", { class: "trouble-when dim" },
      h("span", null, phaseText(run)),
      run.health_reasons[0] && h("span", null, "since ", time(run.health_reasons[0].since_usec, shortTime(run.health_reasons[0].since_usec))),
      next && next.left > 0 && h("span", null, `${next.rule} in ${tickingDuration(next.left)}`)));
}

/** A run that waits for its turn: which it has, and what it waits for. */
function waiting(run) {
  return h("li", { class: "waiting", dataset: { key: run.run_id } },
    h("div", null, runLink(run.run_id, h("strong", null, run.name || run.workflow), " ", h("span", { class: "mono dim" }, run.run_id)),
      h("p", { class: "dim small" }, run.queue.reason)),
    h("div", { class: "trouble-when dim" }, h("span", null, phaseText(run)), h("span", null, `for ${tickingDuration(lasted(run))}`)));
}

function killItem(run) {
  const r = run.receipt;
  return h("li", { class: "kill" },
    h("div", { class: "kill-head" },
      runLink(run.run_id, h("strong", null, run.name || run.workflow), " ", h("span", { class: "mono dim" }, run.run_id)),
      h("span", { class: "dim" }, time(r.requested_at_usec, shortTime(r.requested_at_usec)))),
    h("p", { class: "reason" }, r.reason_text, h("span", { class: "dim" }, ` · ${r.mode} by ${r.actor}`)),
    h("p", { class: "dim small" }, receiptLine(r, run.containment)));
}

function eventItem(row) {
  return h("li", { class: "event", dataset: { seq: row.seq } }, h("span", { class: "mono dim" }, time(row.at_usec, clockTime(row.at_usec))),
    h("span", { class: "what" }, h("span", { class: "kind mono" }, row.kind), row.run_id && [runLink(row.run_id), " ", row.workflow, " "],
      h("span", { class: "dim" }, reasonOf(row) || (row.actor_uid == null ? "" : `by ${row.actor}`))));
}

/** The instance, as `guardian doctor` tells of it. */
export function instanceCard(instance) {
  if (!instance) return [h("p", { class: "dim" }, "It has not answered yet.")];
  const row = (name, ...value) => [h("dt", null, name), h("dd", null, ...value)];
  return [
    h("div", { class: "instance-health" }, healthBadge(instance.health), h("span", { class: "dim" }, `${instance.instance} instance`)),
    instance.health_reasons.length > 0 && h("ul", { class: "reasons" }, instance.health_reasons.map((r) => h("li", null, typeof r === "string" ? r : r.text ?? r[1]))),
    h("dl", { class: "facts" },
      row("backend", instance.backend),
      row("version", h("span", { class: "mono" }, instance.version)),
      row("up since", time(instance.started_at_usec, shortTime(instance.started_at_usec))),
      row("runs", `${instance.runs_active.toLocaleString("en")} live, ${instance.runs_total.toLocaleString("en")} in all`),
      row("kills", instance.kills_total.toLocaleString("en")),
      row("audit", `${instance.last_seq.toLocaleString("en")} rows`)),
    instance.notes?.length > 0 && h("details", { class: "notes" }, h("summary", null, count(instance.notes.length, "note")),
      h("ul", null, instance.notes.map((n) => h("li", null, n)))),
  ];
}

export function overviewPage(view) {
  const tiles = { critical: tile("critical", "Critical"), warning: tile("warning", "Warning"), healthy: tile("healthy", "Healthy"), all: tile("all", "Live runs") };
  const troubles = h("ul", { class: "troubles" });
  const calm = h("p", { class: "empty calm" }, icon("healthy"), " No run is in trouble.");
  const more = h("a", { class: "more", href: "#/live", hidden: true });
  const queue = h("ul", { class: "queue" });
  const further = h("a", { class: "more", href: "#/live?phase=queued", hidden: true });
  const queued = h("section", { class: "card", "aria-labelledby": "queued-h", hidden: true }, h("h2", { id: "queued-h" }, "Waiting for their turn"), queue, further);
  const events = h("ul", { class: "events" }, h("li", { class: "dim" }, "…"));
  const kills = h("ul", { class: "kills" }, h("li", { class: "dim" }, "…"));
  const instance = h("div");
  view.append(
    h("h1", { class: "sr" }, "Overview"),
    h("div", { class: "tiles" }, Object.values(tiles).map((t) => t.link)),
    h("div", { class: "columns" },
      h("div", { class: "stack" },
        h("section", { class: "card", "aria-labelledby": "trouble-h" }, h("h2", { id: "trouble-h" }, "Needs attention"), troubles, calm, more),
        queued,
        h("section", { class: "card", "aria-labelledby": "events-h" }, h("h2", { id: "events-h" }, "Latest events"), events)),
      h("div", { class: "stack" },
        h("section", { class: "card", "aria-labelledby": "instance-h" }, h("h2", { id: "instance-h" }, "Instance"), instance),
        h("section", { class: "card", "aria-labelledby": "kills-h" },
          h("div", { class: "card-head" }, h("h2", { id: "kills-h" }, "Recent kills"), h("a", { href: "#/history" }, "all")), kills))));

  const shownText = new Map();

  function drawTroubles() {
    const counts = { critical: 0, warning: 0, healthy: 0 };
    const live = liveRuns();
    for (const run of live) counts[run.health] += 1;
    for (const [name, t] of Object.entries(tiles)) {
      const n = name === "all" ? live.length : counts[name];
      setText(t.number, n.toLocaleString("en"));
      t.link.classList.toggle("none", n === 0);
    }
    const bad = live.filter((r) => r.health !== "healthy").sort(byHealth);
    // An entry is made anew only where something in it is another; the rest keeps its focus.
    const keep = new Map([...troubles.children].map((li) => [li.dataset.key, li]));
    const items = bad.slice(0, MOST).map((run) => {
      const fresh = trouble(run);
      fresh.dataset.key = run.run_id;
      const old = keep.get(run.run_id);
      if (old && shownText.get(run.run_id) === fresh.textContent + fresh.className) return old;
      if (old?.contains(document.activeElement)) {
        // Only the texts, so that the link that has the focus stays.
        old.className = fresh.className;
        old.querySelector(".trouble-when").replaceWith(fresh.querySelector(".trouble-when"));
        return old;
      }
      shownText.set(run.run_id, fresh.textContent + fresh.className);
      return fresh;
    });
    const isSame = items.length === troubles.children.length && items.every((li, i) => troubles.children[i] === li);
    if (!isSame) troubles.replaceChildren(...items);
    calm.hidden = bad.length > 0;
    more.hidden = bad.length <= MOST;
    setText(more, `and ${bad.length - MOST} more`);
  }

  function drawQueue() {
    const waits = liveRuns().filter((run) => run.queue).sort((a, b) => a.queue.position - b.queue.position || a.created_at_usec - b.created_at_usec);
    queued.hidden = waits.length === 0;
    further.hidden = waits.length <= FEW;
    setText(further, `and ${waits.length - FEW} more`);
    const known = new Map([...queue.children].map((li) => [li.dataset.key, li]));
    // An entry that says the same stays, and keeps its focus.
    const items = waits.slice(0, FEW).map(waiting).map((li) => {
      const old = known.get(li.dataset.key);
      return old?.textContent === li.textContent || old?.contains(document.activeElement) ? old : li;
    });
    if (items.length !== queue.children.length || items.some((li, i) => queue.children[i] !== li)) queue.replaceChildren(...items);
  }

  let before = [];
  async function drawEvents(isFirst) {
    const last = state.instance?.last_seq;
    if (isFirst && last != null) before = (await api.audit({ after: Math.max(0, last - EVENTS), limit: EVENTS }).catch(() => [])).reverse();
    const known = new Map([...events.children].map((li) => [Number(li.dataset.seq), li]));
    const rows = new Map([...state.rows, ...before].map((r) => [r.seq, r]));
    const shown = [...rows.values()].sort((a, b) => b.seq - a.seq).slice(0, EVENTS).map((r) => known.get(r.seq) ?? eventItem(r));
    events.replaceChildren(...(shown.length ? shown : [h("li", { class: "dim" }, "Nothing has happened since this page was opened.")]));
  }

  function drawInstance() {
    replace(instance, instanceCard(state.instance));
  }

  let isAsking = false;
  let isStale = false;
  async function drawKills() {
    // Many that end together are read together.
    isStale = isAsking;
    if (isAsking) return;
    isAsking = true;
    try {
      const over = await api.runs({ finished: true, phase: "finished", limit: 100 });
      const killed = over.filter((r) => r.receipt).slice(0, 6);
      replace(kills, killed.length ? killed.map(killItem) : h("li", { class: "empty" }, "Nothing has been killed yet."));
    } catch (e) {
      replace(kills, h("li", { class: "dim" }, e.message));
    }
    setTimeout(() => {
      isAsking = false;
      if (isStale && view.contains(kills)) drawKills();
    }, 1000);
  }

  const unsubscribe = subscribe((told) => {
    if (told.runs.size || told.all) {
      drawTroubles();
      drawQueue();
    }
    if (told.instance) drawInstance();
    if (told.rows.length) drawEvents(false);
    if (told.rows.some((r) => r.kind === "run_finished")) drawKills();
  });
  const timer = setInterval(() => { drawTroubles(); drawQueue(); }, 1000);
  drawTroubles();
  drawQueue();
  drawInstance();
  drawKills();
  drawEvents(true);
  return {
    title: "Overview",
    step: (by) => {
      const links = [...troubles.querySelectorAll("a"), ...queue.querySelectorAll("a"), ...kills.querySelectorAll("a")];
      const at = links.indexOf(document.activeElement);
      links[at < 0 ? 0 : Math.min(links.length - 1, Math.max(0, at + by))]?.focus();
    },
    close: () => { clearInterval(timer); unsubscribe(); },
  };
}
