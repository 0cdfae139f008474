// A run's page.

import { api, now } from "./api.js";
import { auditTable } from "./audit.js";
import { lineChart } from "./charts.js";
import { extendDialog, freezeDialog, killDialog } from "./dialogs.js";
import { h, healthBadge, replace, setText, time } from "./dom.js";
import { agentText, begun, COUNTED, holds, lasted, nextDeadline, outcomeTone, phaseText, rule, TIMED } from "./limits.js";
import { isOperator, state, subscribe } from "./store.js";
import { clockTime, commandLine, escape, humanDuration, humanSize, localTime, percent, processState, shortTime, tickingDuration } from "./text.js";
import { phaseBar, receiptCard, timeline } from "./timeline.js";

const card = (id, title, ...body) => h("section", { class: "card", id, "aria-labelledby": `${id}-h` }, h("h2", { id: `${id}-h` }, title), body);

/** The processes as a tree: a child below its parent. */
function tree(processes) {
  const pids = new Set(processes.map((p) => p.pid));
  const seen = new Set();
  const branch = (p) => {
    if (seen.has(p.pid)) return null;
    seen.add(p.pid);
    const children = processes.filter((c) => c.ppid === p.pid).map(branch).filter(Boolean);
    return h("li", null,
      h("div", { class: "process" }, h("span", { class: "mono pid" }, String(p.pid)), h("span", { class: "mono" }, p.name),
        h("span", { class: `state s-${/^[A-Za-z]$/.test(p.state) ? p.state : "x"}` }, processState(p.state)),
        p.wchan && p.wchan !== "0" && h("span", { class: "dim mono" }, `in ${p.wchan}`)),
      children.length > 0 && h("ul", null, children));
  };
  const roots = processes.filter((p) => !pids.has(p.ppid));
  return h("ul", { class: "tree" }, roots.map(branch), processes.filter((p) => !seen.has(p.pid)).map(branch));
}

function limitRows(run) {
  const rows = TIMED.filter(([name]) => holds(run, name)).map(([name]) => {
    const r = rule(run, name);
    if (!r) return h("tr", null, h("th", { scope: "row" }, name), h("td", { class: "dim", colspan: 3 }, "off"));
    const left = r.at == null ? null : r.at - now();
    return h("tr", null, h("th", { scope: "row" }, name), h("td", null, humanDuration(r.allowed)), h("td", null, r.action),
      h("td", null, left == null ? h("span", { class: "dim" }, "-") : [time(r.at, clockTime(r.at)), h("span", { class: "dim" }, left > 0 ? ` in ${tickingDuration(left)}` : " over")]));
  });
  const l = run.limits;
  const fact = (name, value) => [h("dt", null, name), h("dd", null, value ?? "off")];
  return [
    h("table", { class: "limits" }, h("thead", null, h("tr", null, ["Limit", "Time", "Action", "Over at"].map((t) => h("th", { scope: "col" }, t)))), h("tbody", null, rows)),
    h("dl", { class: "facts limits-more" }, fact("grace", humanDuration(l.grace_usec)), fact("readiness", l.readiness), fact("escapees", l.escapees),
      fact("memory_max", l.memory_max_bytes == null ? null : humanSize(l.memory_max_bytes)), fact("tasks_max", l.tasks_max),
      fact("cpu_max", l.cpu_max_percent == null ? null : `${l.cpu_max_percent} %`), l.dry_run && fact("dry_run", "yes: no rule ends it"),
      COUNTED.filter(([, most, action]) => l[most] != null && l[action] !== "off").map(([name, most, action, write]) => fact(name, `${write(l[most])}, ${l[action]}`)),
      l.sandbox != null && fact("sandbox", String(l.sandbox)), l.isolate_pids && fact("isolate_pids", "yes"),
      l.cleanup?.git_locks && fact("cleanup.git_locks", "yes")),
  ];
}

function details(run) {
  const fact = (name, ...value) => [h("dt", null, name), h("dd", null, ...value)];
  const said = run.heartbeats;
  const refused = Object.entries(said.refused ?? {}).filter(([, n]) => n > 0).map(([why, n]) => `${n} ${why}`).join(", ");
  return h("dl", { class: "facts" },
    fact("command", h("code", { class: "command" }, commandLine(run.command))),
    fact("directory", h("span", { class: "mono" }, run.working_directory)), fact("user", `${run.user} (${run.uid})`),
    fact("containment", run.containment, run.cgroup && h("span", { class: "mono dim" }, ` ${run.cgroup.path}`), run.shim && h("span", { class: "dim" }, `, shim pid ${run.shim.pid}`)),
    run.main_process && fact("main process", `pid ${run.main_process.pid}`), run.client_process && fact("client", `pid ${run.client_process.pid}`),
    run.log_path && fact("log", h("span", { class: "mono" }, run.log_path)),
    said.last_at_usec && fact("heartbeats", `${said.total}, the last at `, time(said.last_at_usec, localTime(said.last_at_usec))),
    said.status && fact("status", said.status), agentText(run.progress) && fact("agent", agentText(run.progress)), said.stopping && fact("says", "it is about to end"), refused && fact("refused", `messages: ${refused}`),
    run.exit_status != null && fact("exit status", String(run.exit_status)),
    run.escapees.length > 0 && fact("escapees", run.escapees.map((e) => h("div", null, `${e.name} (pid ${e.pid}) in cgroup ${e.cgroup}: ${e.fate}`))),
    run.notices.map((n) => fact("notice", n)));
}

/** CPU use between samples, in cores; and memory as it was. */
function series(samples) {
  const cpu = samples.map((s, i) => {
    const before = samples[i - 1];
    if (!before || s.cpu_usec == null || before.cpu_usec == null) return [s.at_usec, null];
    return [s.at_usec, Math.max(0, s.cpu_usec - before.cpu_usec) / Math.max(1, s.at_usec - before.at_usec)];
  });
  return { cpu, memory: samples.map((s) => [s.at_usec, s.memory_bytes]) };
}

export function runPage(view, params, id) {
  const stop = new AbortController();
  const parts = {
    head: h("div", { class: "run-title" }), actions: h("div", { class: "actions" }), reasons: h("div", { role: "status" }), strip: h("dl", { class: "strip" }),
    phases: h("div"), timeline: h("div"), receipt: h("div", { class: "receipt-slot" }), explain: h("div"), processes: h("div"), limits: h("div"), details: h("div"),
  };
  const cpu = lineChart({ label: "CPU, of one core", format: (v) => percent(v), clock: clockTime, tone: "a" });
  const memory = lineChart({ label: "Memory", format: humanSize, clock: clockTime, isBytes: true, tone: "b" });
  const audit = auditTable(`The audit of ${id}`, true);
  const again = h("button", { type: "button", class: "button small", on: { click: () => explain(true) } }, "Look again");
  const missing = h("div", { class: "empty", role: "status" }, "…");
  view.append(missing);

  let run = null;
  let rows = [];
  let samples = [];
  let processes = [];
  const drawn = {};

  function build() {
    view.replaceChildren(
      h("nav", { class: "crumbs", "aria-label": "Where this is" }, h("a", { href: "#/live" }, "Live runs"), h("span", { "aria-hidden": "true" }, " / "), h("span", { class: "mono" }, id)),
      h("div", { class: "run-head" }, parts.head, parts.actions), parts.reasons, parts.strip,
      h("div", { class: "columns even" },
        h("div", { class: "stack" }, card("timeline", "Timeline", parts.phases, parts.timeline), parts.receipt, card("explanation", "What it waits for", parts.explain), card("processes", "Processes", parts.processes)),
        h("div", { class: "stack" }, card("graphs", "Use", cpu.element, memory.element), card("limits", "Limits and deadlines", parts.limits))),
      card("details", "Details", parts.details), card("audit", "Audit", h("div", { class: "scroll-x" }, audit.element)));
    parts.explain.after(again);
  }

  /** Draws a part if what it is made of has changed: a part that is drawn anew loses its focus and selection. */
  function draw(name, key, make) {
    const text = JSON.stringify(key);
    if (drawn[name] === text) return;
    drawn[name] = text;
    replace(parts[name], make());
  }

  function show() {
    const isOver = run.phase === "finished";
    draw("head", [run.health, run.phase, run.queue, run.frozen, run.outcome, run.name], () => [
      h("h1", null, run.name || run.workflow), h("span", { class: "dim" }, run.name ? run.workflow : null),
      isOver ? h("span", { class: `outcome tone-${outcomeTone(run.outcome)}` }, phaseText(run)) : [healthBadge(run.health), h("span", { class: "phase-word", dataset: { phase: run.frozen ? "frozen" : run.phase } }, phaseText(run))]]);
    // Apart from the title, so that a change of phase does not take a button away from under the hand.
    draw("actions", [isOver, run.frozen, run.queue == null, isOperator()], () => (!isOver && isOperator() ? [
      h("button", { type: "button", class: "button", on: { click: () => extendDialog(run) } }, "Extend…"),
      // There is nothing yet that could be frozen.
      run.queue == null && h("button", { type: "button", class: "button", on: { click: () => freezeDialog(run) } }, run.frozen ? "Thaw…" : "Freeze…"),
      h("button", { type: "button", class: "button danger", id: "kill", on: { click: () => killDialog(run) } }, "Kill…")] : []));
    draw("reasons", run.health_reasons, () => run.health_reasons.map((r) => h("div", { class: `banner is-${r.level}` }, healthBadge(r.level),
      h("span", null, r.text), h("span", { class: "dim nowrap" }, "since ", time(r.since_usec, clockTime(r.since_usec))))));
    draw("receipt", [run.receipt, run.containment], () => receiptCard(run));
    draw("details", [run.command, run.heartbeats, run.progress, run.main_process, run.cgroup, run.shim, run.exit_status, run.escapees, run.notices], () => details(run));
    draw("processes", [isOver, run.queue == null, processes], () => (isOver ? h("p", { class: "dim" }, "None: it is over.")
      : run.queue ? h("p", { class: "dim" }, "None: nothing of it is executed before its turn.")
      : processes.length ? tree(processes) : h("p", { class: "dim" }, "None can be seen.")));
    audit.show(rows);
    again.hidden = isOver || run.queue != null;
    if (run.queue) draw("explain", [run.queue], () => h("p", { class: "explanation" }, `${phaseText(run)}: ${run.queue.reason}`));
    clock();
  }

  /** What changes with time alone. */
  function clock() {
    if (!run) return;
    const u = run.usage;
    const next = nextDeadline(run);
    const live = state.runs.get(id);
    const last = series(samples.slice(-2)).cpu.at(-1)?.[1];
    const facts = [["time", tickingDuration(lasted(run)), `since ${shortTime(begun(run))}`],
      run.phase === "finished" ? ["finished", clockTime(run.finished_at_usec), localTime(run.finished_at_usec).slice(0, 10)] : ["deadline", next ? (next.left > 0 ? tickingDuration(next.left) : "over") : "-", next ? `${next.rule}${next.ends ? "" : ", warns"}` : ""],
      run.phase === "finished" ? ["CPU time", humanDuration(u.cpu_usec), ""] : ["CPU", percent(last ?? live?.cpu_share), `${humanDuration(u.cpu_usec)} in all`],
      run.phase === "finished" ? ["memory", humanSize(u.memory_peak_bytes), "at most"] : ["memory", humanSize(u.memory_bytes), `${humanSize(u.memory_peak_bytes)} at most`],
      run.phase === "finished" ? ["exit status", String(run.exit_status ?? "-"), ""] : ["tasks", String(u.tasks ?? "-"), ""], ["storage", `${humanSize(u.io_read_bytes)} read`, `${humanSize(u.io_write_bytes)} written`]];
    if (parts.strip.children.length !== facts.length) {
      replace(parts.strip, facts.map(() => h("div", null, h("dt"), h("dd", null, h("span", { class: "value" }), h("span", { class: "dim small" })))));
    }
    facts.forEach(([name, value, more], i) => {
      const box = parts.strip.children[i];
      setText(box.querySelector("dt"), name);
      setText(box.querySelector(".value"), value);
      setText(box.querySelector(".small"), more);
    });
    const second = run.phase === "finished" ? 0 : Math.floor(now() / 1e6);
    draw("phases", [second, run.phase, rows.length], () => phaseBar(run, rows));
    draw("timeline", [run.phase, run.receipt, rows.map((r) => r.seq)], () => timeline(run, rows));
    // What somebody selects in a table of clocks is not to be taken away from under the hand.
    const selection = getSelection();
    if (selection.isCollapsed || !selection.containsNode(parts.limits, true)) draw("limits", [second, run.limits, run.deadlines], () => limitRows(run));
  }

  let explainedAt = 0;
  async function explain(isAsked) {
    if (run.queue) return;
    if (run.phase === "finished" && !run.receipt?.explanation) {
      draw("explain", ["over"], () => h("p", { class: "dim" }, "It ended by itself, so nobody looked at what it waited for."));
      return;
    }
    if (!isAsked && now() - explainedAt < 9e6) return;
    explainedAt = now();
    again.disabled = true;
    try {
      const e = await api.explain(id, stop.signal);
      draw("explain", [e.explanation, e.details, e.kept], () => [h("p", { class: "explanation" }, e.explanation),
        e.details.length > 0 && h("ul", { class: "evidence" }, e.details.map((d) => h("li", null, d))),
        h("p", { class: "dim small" }, e.kept ? "As it was just before the first signal, " : "As it was at ", time(e.seen_at_usec, clockTime(e.seen_at_usec)))]);
    } catch (e) {
      if (e.name === "AbortError") return;
      const said = e.status === 409 ? "It ended by itself, so nobody looked at what it waited for." : e.message;
      draw("explain", [said], () => h("p", { class: "dim" }, said));
    }
    again.disabled = false;
  }

  async function readSamples() {
    const since = samples.at(-1)?.at_usec;
    const more = await api.samples(id, since == null ? null : since + 1, stop.signal);
    const known = new Set(samples.map((s) => s.at_usec));
    samples = [...samples, ...more.filter((s) => !known.has(s.at_usec))].sort((a, b) => a.at_usec - b.at_usec).slice(-2000);
    const { cpu: use, memory: held } = series(samples);
    const nothing = run?.phase === "finished" ? "over before the second sample was due" : run?.queue ? "nothing before its turn" : "samples come every few seconds";
    cpu.draw(use, { atLeast: 0.05, nothing });
    memory.draw(held, { rule: run?.limits.memory_max_bytes, nothing });
  }

  let isReading = false;
  let wantsMore = false;
  let isSettled = false;
  async function read() {
    if (isReading) {
      wantsMore = true;
      return;
    }
    isReading = true;
    try {
      const [fresh, events] = await Promise.all([api.run(id, stop.signal), api.auditOf(id, stop.signal).catch((e) => {
        if (e.name === "AbortError") throw e;
        return rows;
      })]);
      const isFirst = run == null;
      run = fresh;
      rows = events;
      processes = fresh.processes ?? [];
      if (isFirst) build();
      show();
      if (!isSettled) {
        // Once more when it is over: what it used last, and what was kept with the kill.
        isSettled = run.phase === "finished";
        await readSamples();
        clock();
        explain(isFirst || isSettled);
      }
      if (isFirst) {
        page.title = escape(run.name || run.workflow);
        view.dispatchEvent(new Event("titled"));
      }
    } catch (e) {
      if (e.name !== "AbortError" && run == null) {
        setText(missing, e.status === 404 ? `There is no run ${id}, or it is not yours to see.` : e.message);
      }
    }
    isReading = false;
    if (wantsMore && !stop.signal.aborted) {
      wantsMore = false;
      setTimeout(read, 150);
    }
  }

  const unsubscribe = subscribe((told) => {
    const mine = told.rows.some((r) => r.run_id === id);
    // An event carries the run itself: what can be shown of it is shown at once, the rest is asked for.
    const event = told.runs.has(id) ? state.runs.get(id) : null;
    if (event && run && (run.phase !== "finished" || event.phase === "finished")) {
      run = { ...event };
      show();
    }
    if (mine || told.all) read();
  });
  const timers = [setInterval(clock, 1000), setInterval(() => run?.phase !== "finished" && !document.hidden && read(), 2500)];
  read();
  const page = {
    title: id,
    step: () => {},
    close: () => {
      stop.abort();
      timers.forEach(clearInterval);
      unsubscribe();
    },
  };
  return page;
}
