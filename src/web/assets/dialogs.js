// Dialogs: what a run is to be asked for is confirmed, with a reason for the record. And the page of keys.

import { api, ApiError } from "./api.js";
import { h, setText } from "./dom.js";
import { TIMED, rule } from "./limits.js";
import { commandLine, clip, humanDuration, localTime } from "./text.js";

const toasts = document.getElementById("toasts");

/** A line that says what came of something; it goes away by itself, errors after longer. */
export function toast(text, tone = "good") {
  const line = h("div", { class: `toast ${tone}`, role: tone === "bad" ? "alert" : "status" }, h("span", null, text),
    h("button", { type: "button", class: "quiet", "aria-label": "Dismiss", on: { click: () => line.remove() } }, "×"));
  toasts.append(line);
  setTimeout(() => line.remove(), tone === "bad" ? 15_000 : 7_000);
}

let fields = 0;

function field(label, control, hint) {
  fields += 1;
  control.id = `field-${fields}`;
  return h("div", { class: "field" }, h("label", { for: control.id }, label), control, hint && h("p", { class: "dim small" }, hint));
}

/** Opens a dialog. `submit` is awaited while its button is busy; what it throws is shown, and the dialog stays. */
function open({ title, body, confirm, tone, submit, focus }) {
  const problem = h("p", { class: "problem", role: "alert", hidden: true });
  const yes = h("button", { type: "submit", class: `button ${tone}` }, confirm);
  const no = h("button", { type: "button", class: "button" }, "Cancel");
  fields += 1;
  const form = h("form", { class: "dialog-form" },
    h("h2", { id: `dialog-${fields}` }, title), body, problem, h("div", { class: "dialog-buttons" }, no, yes));
  const dialog = h("dialog", { "aria-labelledby": `dialog-${fields}` }, form);
  const before = document.activeElement;
  no.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => {
    dialog.remove();
    if (before?.isConnected) before.focus();
  });
  // A click beside it closes it, as Escape does.
  dialog.addEventListener("pointerdown", (e) => e.target === dialog && dialog.close());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    yes.disabled = true;
    problem.hidden = true;
    try {
      await submit({ close: () => dialog.close(), setTitle: (text) => setText(yes, text) });
      dialog.close();
    } catch (e) {
      problem.hidden = false;
      setText(problem, e instanceof ApiError ? e.message : `The page itself failed: ${e.message}`);
      setText(yes, confirm);
      yes.disabled = false;
    }
  });
  document.body.append(dialog);
  dialog.showModal();
  focus?.focus();
  return dialog;
}

function reasonInput(placeholder) {
  return h("input", { type: "text", name: "reason", required: true, maxlength: 400, autocomplete: "off", placeholder });
}

const which = (run) => h("p", { class: "dialog-run" }, h("span", { class: "mono" }, run.run_id), ` ${run.name || run.workflow} `,
  h("code", { class: "clip" }, clip(commandLine(run.command), 120)));

/** Asks for a kill. */
export function killDialog(run) {
  const reason = reasonInput("superseded by #214");
  const radio = (value, label, says, checked) => h("label", { class: "choice" },
    h("input", { type: "radio", name: "mode", value, checked }),
    h("span", null, h("strong", null, label), h("span", { class: "dim" }, ` ${says}`)));
  const choices = h("fieldset", null, h("legend", null, "How"),
    radio("graceful", "Graceful", `SIGTERM, ${humanDuration(run.limits.grace_usec)} of grace, then what is left is killed`, true),
    radio("force", "Force", "everything is killed at once; nothing can be saved", false));
  open({
    title: "Kill this run?",
    body: [which(run), field("Reason", reason, "Kept in the audit and on the receipt, with your token's name."), choices],
    confirm: "Kill", tone: "danger", focus: reason,
    submit: async ({ close }) => {
      const force = choices.querySelector("input:checked").value === "force";
      // The answer comes when the run is over, which the grace may delay: the page shows the steps meanwhile.
      let isOpen = true;
      const early = setTimeout(() => { isOpen = false; close(); toast(`${run.run_id}: the kill is under way.`); }, 700);
      try {
        const { status, body } = await api.kill(run.executor, run.run_id, force, reason.value.trim());
        toast(body.message || (status === 202 ? "The kill is on record and not over yet." : "The run is over."), status === 202 ? "warn" : "good");
      } catch (e) {
        if (isOpen) throw e;
        toast(e.message, "bad");
      } finally {
        clearTimeout(early);
      }
    },
  });
}

/** Gives a limit more time. */
export function extendDialog(run) {
  const active = TIMED.map(([name]) => rule(run, name)).filter(Boolean);
  if (active.length === 0) {
    toast("Every limit of this run that has a time is off: there is nothing to extend.", "warn");
    return;
  }
  const reason = reasonInput("the nightly build is larger today");
  const limit = h("select", null, active.map((r) => h("option", { value: r.name },
    `${r.name} (${humanDuration(r.allowed)}, ${r.action}${r.at ? `, over at ${localTime(r.at).slice(11)}` : ""})`)));
  const amount = h("input", { type: "number", min: 1, max: 100000, step: 1, value: 30, required: true });
  const unit = h("select", { "aria-label": "Unit" }, h("option", { value: 60e6 }, "minutes"), h("option", { value: 3600e6 }, "hours"), h("option", { value: 1e6 }, "seconds"));
  open({
    title: "Give it more time",
    body: [which(run), field("Limit", limit),
      h("div", { class: "row" }, field("By", amount), field("Unit", unit)), field("Reason", reason, "Kept in the audit.")],
    confirm: "Extend", tone: "primary", focus: limit,
    submit: async () => {
      const by = Math.round(Number(amount.value) * Number(unit.value));
      const answer = await api.extend(run.run_id, { limit: limit.value, by_usec: by, reason: reason.value.trim() });
      toast(answer.deadline_usec ? `${limit.value} is now over at ${localTime(answer.deadline_usec)}.` : `${limit.value} has ${humanDuration(by)} more.`);
    },
  });
}

/** Freezes a run or thaws it. */
export function freezeDialog(run) {
  const reason = reasonInput("to look at it with a debugger");
  const freeze = !run.frozen;
  open({
    title: freeze ? "Freeze this run?" : "Thaw this run?",
    body: [which(run), h("p", null, freeze
      ? "Its processes stop where they are until it is thawed. The clocks of idle rules stand still; max_runtime goes on."
      : "Its processes go on where they stopped."), field("Reason", reason)],
    confirm: freeze ? "Freeze" : "Thaw", tone: "primary", focus: reason,
    submit: async () => {
      await (freeze ? api.freeze : api.thaw)(run.run_id, reason.value.trim());
      toast(`${run.run_id} ${freeze ? "is frozen" : "goes on"}.`);
    },
  });
}

/** What the keys do. */
export function helpDialog() {
  const keys = [["/", "filter"], ["j k", "next, previous row"], ["Enter", "open the row"], ["g o", "overview"], ["g l", "live runs"],
    ["g h", "kill history"], ["g a", "alerts"], ["g s", "statistics"], ["t", "light, dark, as the system"], ["Esc", "leave the filter, close a dialog"], ["?", "this page"]];
  const close = h("button", { type: "button", class: "button primary" }, "Close");
  const dialog = h("dialog", { "aria-label": "Keys" }, h("div", { class: "dialog-form" }, h("h2", null, "Keys"),
    h("dl", { class: "keys" }, keys.map(([key, does]) => [h("dt", null, key.split(" ").map((k) => h("kbd", null, k))), h("dd", null, does)])),
    h("div", { class: "dialog-buttons" }, close)));
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("pointerdown", (e) => e.target === dialog && dialog.close());
  document.body.append(dialog);
  dialog.showModal();
}
