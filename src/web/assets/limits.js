// Limits and phases of a run, as src/cli/show.rs tells them.

import { now } from "./api.js";
import { ordinal } from "./text.js";

/** The rules that have a time of their own, in the order of the command line, and the keys of their time and action. */
export const TIMED = [
  ["queue_timeout", "queue_timeout_usec", null],
  ["init_timeout", "init_timeout_usec", "init_action"],
  ["max_runtime", "max_runtime_usec", "max_runtime_action"],
  ["heartbeat_timeout", "heartbeat_timeout_usec", "heartbeat_action"],
  ["idle_timeout", "idle_timeout_usec", "idle_action"],
  ["spin_timeout", "spin_timeout_usec", "spin_action"],
  ["input_timeout", "input_timeout_usec", "input_action"],
  ["turn_timeout", "turn_timeout_usec", "turn_action"],
  ["permission_timeout", "permission_timeout_usec", "permission_action"],
];

/** The rules whose limit is a number: their names, the keys of their number and action, and how that is written. */
export const COUNTED = [
  ["loop", "loop_max", "loop_action", String],
  ["max_turns", "max_turns", "max_turns_action", String],
  ["max_tokens", "max_tokens", "max_tokens_action", String],
  ["max_cost", "max_cost_micro_usd", "max_cost_action", dollars],
];

/** Millionths of a US dollar, to the cent; what is less than a dollar to the last millionth. */
export function dollars(micro) {
  if (micro >= 1e6) return `$${Math.floor(micro / 1e6)}.${String(Math.floor(micro / 1e4) % 100).padStart(2, "0")}`;
  return `$0.${String(micro).padStart(6, "0").replace(/^(\d\d)(\d*?)0*$/, "$1$2")}`;
}

/** How far an agent has come, and what that has cost, in a line; null for a run that reports none of it. */
export function agentText(progress) {
  if (!progress) return null;
  const said = [progress.summary, progress.tokens > 0 && `${progress.tokens} tokens`, progress.cost_micro_usd != null && dollars(progress.cost_micro_usd),
    progress.model, progress.result?.text];
  return said.filter(Boolean).join(", ") || null;
}

export const PHASES = ["queued", "starting", "initializing", "running", "stopping", "killing", "finished"];

/** Whether a rule is for a run as it is now: how long it may wait matters to nobody once it has had its turn. */
export function holds(run, name) {
  return name !== "queue_timeout" || run.queue != null;
}

/** A rule's time, action and deadline; null where it is off. */
export function rule(run, name) {
  const [, time, action] = TIMED.find(([n]) => n === name);
  const allowed = run.limits[time];
  const act = run.limits[action] ?? "kill";
  if (allowed == null || act === "off" || !holds(run, name)) return null;
  const at = run.deadlines.find((d) => d.rule === name)?.at_usec ?? null;
  const ends = act === "kill" && (!run.limits.dry_run || name === "queue_timeout");
  return { name, allowed, action: act, at, ends };
}

/** The deadline that comes first, and how much of its time has passed (0 to 1). */
export function nextDeadline(run) {
  if (run.phase === "finished" || run.deadlines.length === 0) return null;
  const next = run.deadlines.reduce((a, b) => (b.at_usec < a.at_usec ? b : a));
  const at = now();
  const known = TIMED.some(([n]) => n === next.rule) ? rule(run, next.rule) : null;
  // These begin with the run, so that an extension makes the whole longer; the others begin anew with each sign of life.
  const begins = ["queue_timeout", "init_timeout", "max_runtime"].includes(next.rule)
    ? run.started_at_usec ?? run.created_at_usec
    : next.at_usec - (known?.allowed ?? 0);
  const whole = Math.max(1, next.at_usec - begins);
  const share = Math.min(1, Math.max(0, (at - begins) / whole));
  return { rule: next.rule, at: next.at_usec, left: next.at_usec - at, share, ends: known?.ends ?? true };
}

/** When it began; what was queued has not run for so long. */
export function begun(run) {
  return run.started_at_usec ?? run.created_at_usec;
}

/** For how long, until now if it is not over. */
export function lasted(run) {
  return Math.max(0, (run.finished_at_usec ?? now()) - begun(run));
}

/** What stands in the column of the phase. */
export function phaseText(run) {
  if (run.outcome) return run.outcome.text;
  if (run.queue) return `queued, ${ordinal(run.queue.position)} of ${run.queue.length.toLocaleString("en")}`;
  return run.frozen ? `${run.phase} (frozen)` : run.phase;
}

/** How an outcome is coloured, and said in a word: a run that succeeded is not the same as one that exited. */
export function outcomeTone(outcome) {
  if (!outcome) return "plain";
  if (outcome.kind === "exited") return outcome.code === 0 ? "good" : "bad";
  return { signaled: "bad", killed: "killed", oom: "bad", lost: "muted" }[outcome.kind] ?? "plain";
}
