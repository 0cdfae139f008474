// How a run went: its phases to scale, then each moment in order, the steps of a kill among them, and the receipt.

import { now } from "./api.js";
import { h, time } from "./dom.js";
import { clockTime, count, humanDuration, localTime, reasonOf, receiptLine, tickingDuration } from "./text.js";

const STEPS = {
  intent_recorded: "intent recorded", intent_not_recorded: "intent not recorded: the store did not answer in time",
  terminated: "SIGTERM sent", escalated: "made a forced kill", killed: "SIGKILL sent", unkillable: "not empty after 60 s",
  emptied: "empty, says the kernel", resumed: "taken up again by a restarted instance",
};

/** What the audit says of a kill that is under way, as steps: the receipt comes when it is over. */
function stepsSoFar(rows) {
  const kinds = { kill_intent: "intent_recorded", kill_terminated: "terminated", kill_escalated: "escalated", run_killed: "killed", unkillable: "unkillable" };
  const intent = rows.find((r) => r.kind === "kill_intent");
  if (!intent) return [];
  return rows.filter((r) => kinds[r.kind]).map((r) => ({
    kind: kinds[r.kind], at_usec: r.at_usec, elapsed_usec: r.at_usec - intent.at_usec, processes: r.details?.processes ?? 0,
  }));
}

function killSteps(run, rows) {
  return run.receipt?.steps ?? stepsSoFar(rows);
}

/** [phase, from, to], of the phases that there were. */
function phases(run, rows, steps) {
  const end = run.finished_at_usec ?? now();
  const asked = run.receipt?.requested_at_usec ?? (steps[0] ? steps[0].at_usec - steps[0].elapsed_usec : null);
  const killed = steps.find((s) => s.kind === "killed")?.at_usec ?? null;
  // When its turn came is not on record; from then to its start no time passes that could be seen.
  const first = run.queue || rows.some((r) => r.kind === "run_queued") ? "queued" : "starting";
  const marks = [[first, run.created_at_usec], ["initializing", run.started_at_usec], ["running", run.ready_at_usec],
    ["stopping", asked], ["killing", killed]].filter(([, at]) => at != null);
  return marks.map(([name, from], i) => [name, from, Math.max(from, marks[i + 1]?.[1] ?? end)]).filter(([, from, to], i, all) => to > from || i === all.length - 1);
}

/** The phases to scale, and how long each took. */
export function phaseBar(run, rows) {
  const all = phases(run, rows, killSteps(run, rows));
  const whole = Math.max(1, all.reduce((sum, [, from, to]) => sum + (to - from), 0));
  const said = all.map(([name, from, to]) => `${name} ${humanDuration(to - from)}`).join(", ");
  const isLast = (i) => i === all.length - 1 && run.phase !== "finished";
  return h("div", { class: "phases" },
    h("div", { class: "phase-bar", role: "img", "aria-label": `Phases: ${said}` },
      all.map(([name, from, to], i) => h("span", {
        class: `phase ${name}${isLast(i) ? " now" : ""}`, title: `${name}: ${humanDuration(to - from)}`,
        // The square root lets a phase of milliseconds be seen beside one of hours; the figures below are exact.
        style: { "flex-grow": String(Math.max(0.02, Math.sqrt((to - from) / whole))) },
      }))),
    h("ul", { class: "phase-names" }, all.map(([name, from, to], i) => h("li", null, h("span", { class: `swatch ${name}`, "aria-hidden": "true" }),
      name, " ", h("span", { class: "dim" }, isLast(i) ? `for ${tickingDuration(to - from)}` : humanDuration(to - from))))));
}

function stepMark(elapsed) {
  return `+${(elapsed / 1000).toLocaleString("en", { minimumFractionDigits: 3, maximumFractionDigits: 3 })} ms`;
}

/** The moments of a run: [when, what, more, class]. */
function moments(run, rows) {
  const after = (at) => `after ${humanDuration(at - run.created_at_usec)}`;
  const all = [[run.created_at_usec, "accepted", `by ${run.user}`, ""]];
  if (run.started_at_usec) all.push([run.started_at_usec, "started", after(run.started_at_usec), ""]);
  if (run.ready_at_usec) all.push([run.ready_at_usec, "ready", after(run.ready_at_usec), ""]);
  const told = {
    run_queued: "queued", health_changed: "health", limit_warning: "warning", limit_extended: "extended", run_frozen: "frozen", run_thawed: "thawed",
    main_exited: "main process exited", verdict: "verdict", heartbeat_late: "heartbeat late", escapee_found: "escapee found", run_adopted: "taken up by a restarted instance",
  };
  for (const r of rows) {
    if (!told[r.kind]) continue;
    // A warning, or a verdict, changes the health in the same moment, and says the same.
    if ((r.kind === "limit_warning" || r.kind === "verdict") && rows.some((o) => o.kind === "health_changed" && Math.abs(o.at_usec - r.at_usec) < 50_000)) continue;
    const tone = r.kind === "health_changed" ? `health-${r.details?.to ?? ""}` : "";
    all.push([r.at_usec, r.kind === "health_changed" ? r.details?.to ?? "health" : told[r.kind], reasonOf(r) || (r.details?.limit ? `${r.details.limit} by ${humanDuration(r.details.by_usec)}` : ""), tone]);
  }
  return all.sort((a, b) => a[0] - b[0]);
}

export function timeline(run, rows) {
  const steps = killSteps(run, rows);
  const intent = rows.find((r) => r.kind === "kill_intent");
  const all = moments(run, rows);
  const item = (at, what, more, tone) => h("li", { class: tone },
    h("span", { class: "when mono" }, time(at, clockTime(at))), h("span", { class: "what" }, h("strong", null, what), more && h("span", { class: "dim" }, ` ${more}`)));
  const actor = run.receipt?.actor ?? intent?.actor;
  const reason = run.receipt?.reason_text ?? intent?.reason;
  const asked = run.receipt?.requested_at_usec ?? intent?.at_usec;
  // The rows of before the kill stand above it, those of afterwards below.
  const [earlier, later] = [all.filter(([at]) => asked == null || at <= asked), all.filter(([at]) => asked != null && at > asked)];
  const show = (list) => list.map(([at, what, more, tone]) => item(at, what, more, tone));
  return h("ol", { class: "moments" },
      show(earlier),
      steps.length > 0 && h("li", { class: "kill-moment" },
        h("span", { class: "when mono" }, time(asked, clockTime(asked))),
        h("div", { class: "what" }, h("strong", null, `${run.receipt?.mode ?? intent?.details?.mode ?? ""} kill`), h("span", { class: "dim" }, ` by ${actor}: `), reason,
          h("ol", { class: "steps", "aria-label": "Steps of the kill" }, steps.map((s) => h("li", { dataset: { step: s.kind } },
            h("span", { class: "mono dim" }, stepMark(s.elapsed_usec)), h("span", null, STEPS[s.kind] ?? s.kind,
              s.processes > 0 && h("span", { class: "dim" }, ` (${count(s.processes, "process", "processes")})`))))),
          run.phase !== "finished" && h("p", { class: "dim under-way" }, "under way: it is over when the kernel says that nothing is left"))),
      show(later.filter(([, , , tone]) => !tone)),
      run.finished_at_usec && item(run.finished_at_usec, "finished", run.outcome?.text ?? "", `outcome-${run.outcome?.kind ?? ""}`));
}

/** What a run leaves, as facts. */
function remainsOf(r) {
  const left = r.remains;
  if (!left) return [];
  const more = (total, named) => (total > named ? [`and ${total - named} more`] : []);
  const file = (f) => `${f.path}${f.size_bytes == null ? "" : `, ${count(f.size_bytes, "byte")}`}, by ${f.name} (pid ${f.pid})`;
  const fates = { removed: "removed, because nobody holds it", stale: "nobody holds it: remove it before git is used again" };
  const lock = (l) => `${l.path}: ${fates[l.fate] ?? `left alone: ${l.why}`}`;
  return [
    [r.reason === "leftovers" ? "left behind" : "ended with it", left.others ? [left.others] : []],
    ["may be half written", [...left.files.map(file), ...more(left.files_total, left.files.length)]],
    ["git locks", [...left.git_locks.map(lock), ...more(left.git_locks_total, left.git_locks.length)]],
    ["not looked at", left.not_looked_at],
  ].filter(([, lines]) => lines.length > 0);
}

/** The proof of a kill. */
export function receiptCard(run) {
  const r = run.receipt;
  if (!r) return null;
  const fact = (name, ...value) => [h("dt", null, name), h("dd", null, ...value)];
  const isEmpty = r.survivors === 0;
  return h("section", { class: `card receipt ${isEmpty ? "proved" : "unproved"}`, "aria-labelledby": "receipt-h", id: "receipt" },
    h("h2", { id: "receipt-h" }, "Receipt"),
    h("p", { class: "receipt-line" }, receiptLine(r, run.containment)),
    h("dl", { class: "facts" },
      fact("mode", r.mode), fact("by", r.actor, r.actor_uid != null && h("span", { class: "dim" }, ` (uid ${r.actor_uid})`)), fact("reason", r.reason_text),
      fact("asked at", time(r.requested_at_usec, localTime(r.requested_at_usec))), fact("took", humanDuration(r.duration_usec)),
      fact("SIGTERM", count(r.terminated, "process", "processes")), fact("SIGKILL", count(r.killed, "process", "processes")),
      fact("survivors", h("strong", null, String(r.survivors)), h("span", { class: "dim" }, r.proved ? " proved by the kernel" : " found: nothing proves that there is none")),
      r.processes.length > 0 && fact("were there", h("span", { class: "mono" }, r.processes.slice(0, 12).map((p) => `${p.pid} ${p.name}`).join(", ")
        + (r.processes_total > 12 ? ` and ${r.processes_total - 12} more` : ""))),
      remainsOf(r).map(([name, lines]) => fact(name, lines.map((line) => h("div", null, line)))),
      r.escapees.length > 0 && fact("escapees", r.escapees.map((e) => h("div", null, `${e.name} (pid ${e.pid}) in cgroup ${e.cgroup}: ${e.fate}`)))),
    r.explanation && h("p", { class: "explanation" }, r.explanation));
}
