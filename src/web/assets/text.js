// Text for people: escapes, sizes, durations and times as the command line writes them (src/model/text.rs, time.rs and
// src/cli/output.rs). Whatever came from a run goes through `escape` before it is shown.

// What steers a terminal, begins a line or reorders text: `is_unsafe` of src/model/text.rs.
const UNSAFE = /[\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g;
const SHORT = { "\n": "\\n", "\t": "\\t", "\r": "\\r" };

/** Text from outside as one harmless line. The browser makes no element of it; this makes it honest as well. */
export function escape(text) {
  return String(text ?? "").replace(UNSAFE, (c) => SHORT[c] ?? `\\u{${c.codePointAt(0).toString(16)}}`);
}

/** A command as one line that a shell would read back the same way. */
export function commandLine(command) {
  return (command ?? []).map((word) => {
    const safe = escape(word);
    return /^[\p{L}\p{N}_\-./=:,@%+]+$/u.test(safe) ? safe : `'${safe.replaceAll("'", "'\\''")}'`;
  }).join(" ");
}

/** At most so many characters, with an ellipsis where some are left out. */
export function clip(text, max) {
  const chars = Array.from(text);
  return chars.length <= max ? text : chars.slice(0, max - 1).join("") + "…";
}

/** A size: 1.5K, 300M. What the kernel does not tell is a dash. */
export function humanSize(bytes) {
  if (bytes == null) return "-";
  const units = ["B", "K", "M", "G", "T"];
  let size = bytes;
  let unit = 0;
  while (size >= 1024 && unit + 1 < units.length) {
    size /= 1024;
    unit += 1;
  }
  return (unit === 0 || size >= 100 ? size.toFixed(0) : size.toFixed(1)) + units[unit];
}

/** A duration: two units at most, no more digits than are worth reading. */
export function humanDuration(usec) {
  if (usec == null) return "-";
  const ms = Math.floor(usec / 1000);
  if (ms < 1) return `${Math.max(0, Math.floor(usec))} µs`;
  if (ms < 1000) return `${ms} ms`;
  const secs = Math.floor(ms / 1000);
  if (secs < 60) {
    const tenths = Math.floor((ms % 1000) / 100);
    return tenths === 0 ? `${secs} s` : `${secs}.${tenths} s`;
  }
  const [big, bigUnit, small, smallUnit] = secs < 3600 ? [secs / 60, "min", secs % 60, "s"]
    : secs < 86400 ? [secs / 3600, "h", (secs % 3600) / 60, "min"]
    : [secs / 86400, "d", (secs % 86400) / 3600, "h"];
  const whole = `${Math.floor(big)} ${bigUnit}`;
  return Math.floor(small) === 0 ? whole : `${whole} ${Math.floor(small)} ${smallUnit}`;
}

/** A duration that ticks: whole seconds, so that a clock on the page does not flicker between "3 s" and "3.1 s". */
export function tickingDuration(usec) {
  return humanDuration(Math.floor(Math.max(0, usec) / 1e6) * 1e6).replace("0 µs", "0 s");
}

const two = (n) => String(n).padStart(2, "0");

/** A time in the reader's time zone, as the command line writes it. */
export function localTime(usec) {
  if (usec == null) return "-";
  const t = new Date(usec / 1000);
  return `${t.getFullYear()}-${two(t.getMonth() + 1)}-${two(t.getDate())} ${clockTime(usec)}`;
}

/** The same without the day. */
export function clockTime(usec) {
  const t = new Date(usec / 1000);
  return `${two(t.getHours())}:${two(t.getMinutes())}:${two(t.getSeconds())}`;
}

/** The same, with the day unless it is today. */
export function shortTime(usec) {
  if (usec == null) return "-";
  const day = new Date(usec / 1000).toDateString();
  return day === new Date().toDateString() ? clockTime(usec) : localTime(usec).slice(5);
}

/** A share as a percentage. */
export function percent(share) {
  if (share == null || !Number.isFinite(share)) return "-";
  return share > 0 && share < 0.0995 ? `${(share * 100).toFixed(1)} %` : `${Math.round(share * 100)} %`;
}

/** `1 process`, `2 processes`. */
export function count(n, one, many = `${one}s`) {
  return `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
}

/** `1st`, `2nd`, `3rd`, `11th`, as src/model/queue.rs says it. */
export function ordinal(n) {
  const teens = n % 100 >= 11 && n % 100 <= 13;
  return `${n.toLocaleString("en")}${teens ? "th" : ["th", "st", "nd", "rd"][n % 10] ?? "th"}`;
}

/** What a kill did, in a line: as the receipt says of itself on the command line. */
export function receiptLine(r, containment) {
  const processes = (n) => count(n, "process", "processes");
  const parts = [];
  if (r.mode === "graceful") parts.push(`SIGTERM to ${processes(r.terminated)}`);
  else if (r.terminated > 0) parts.push(`SIGTERM to ${processes(r.terminated)}`, "forced");
  const [kill, of] = containment === "subtree" ? ["SIGKILL", "to"] : ["cgroup.kill", "of"];
  const killed = r.steps.some((s) => s.kind === "killed");
  parts.push(killed ? `${kill} ${of} ${processes(r.killed)}` : `no ${kill} needed`);
  parts.push(count(r.survivors, "survivor") + (r.proved ? "" : " found"), humanDuration(r.duration_usec));
  if (r.escapees.length > 0) parts.push(count(r.escapees.length, "escapee"));
  const locks = r.remains?.git_locks ?? [];
  const removed = locks.filter((l) => l.fate === "removed").length;
  for (const [n, what] of [[locks.length - removed, "left"], [removed, "removed"]]) if (n > 0) parts.push(`${count(n, "git lock")} ${what}`);
  return parts.join(", ");
}

/** What a row of the audit says, without the word that stands beside it already. */
export function reasonOf(row) {
  const word = row.kind === "health_changed" ? `${row.details?.to}: ` : "";
  return word && row.reason.startsWith(word) ? row.reason.slice(word.length) : row.reason;
}

/** What the letter of a process's state stands for. */
export function processState(letter) {
  const words = {
    R: "running", S: "sleeping", D: "uninterruptible", T: "stopped", t: "traced", Z: "zombie", X: "dead", I: "idle",
  };
  return words[letter] ?? escape(letter);
}
