// The page as a whole: who is signed in, which view is shown, what the head says, and the keys.

import { alertsPage } from "./alerts.js";
import { api, now, signedOut } from "./api.js";
import { helpDialog } from "./dialogs.js";
import { h, icon, replace, setAttr, setText } from "./dom.js";
import { historyPage } from "./history.js";
import { livePage } from "./live.js";
import { loginPage, takeCode } from "./login.js";
import { overviewPage } from "./overview.js";
import { runPage } from "./run.js";
import { statsPage } from "./stats.js";
import { liveRuns, start, state, stop, subscribe } from "./store.js";
import { count, escape, tickingDuration } from "./text.js";

const PAGES = { "": overviewPage, live: livePage, run: runPage, history: historyPage, alerts: alertsPage, stats: statsPage };
const $ = (id) => document.getElementById(id);
const view = $("view");
let page = null;
let isSignedIn = false;

function title() {
  const critical = liveRuns().filter((r) => r.health === "critical").length;
  const name = page?.title ? `${page.title} · Guardian` : "Guardian";
  const said = isSignedIn && critical ? `(${critical} critical) ${name}` : name;
  if (document.title !== said) document.title = said;
}

view.addEventListener("titled", title);

function route() {
  if (!isSignedIn) return;
  const [path, search] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, id] = path.split("/");
  const make = PAGES[name] ?? overviewPage;
  page?.close();
  view.replaceChildren();
  page = make(view, new URLSearchParams(search ?? ""), id);
  for (const link of document.querySelectorAll("[data-page]")) {
    const here = link.dataset.page === name || (name === "run" && link.dataset.page === "live");
    setAttr(link, "aria-current", here ? "page" : null);
  }
  scrollTo(0, 0);
  // What had the focus may be gone with the last page: who reads by ear goes on in this one.
  if (document.activeElement === document.body) view.focus({ preventScroll: true });
  title();
}

function showLogin(said) {
  stop();
  isSignedIn = false;
  hadSession(false);
  page?.close();
  document.body.classList.add("signed-out");
  view.replaceChildren();
  page = loginPage(view, said, enter);
  $("connection").hidden = true;
  $("lost").hidden = true;
  title();
}

async function enter(who) {
  isSignedIn = true;
  hadSession(true);
  document.body.classList.remove("signed-out");
  setText($("who"), `${who.token} (${who.role})`);
  drawInstance();
  route();
  await start(who);
}

function drawInstance() {
  const i = state.instance;
  $("instance").hidden = !i;
  if (!i) return;
  const said = `${i.instance} instance ${i.health}`;
  if ($("instance").dataset.is === said) return;
  $("instance").dataset.is = said;
  $("instance").className = `health pill ${i.health}`;
  replace($("instance"), icon(i.health), h("span", { class: "instance-word" }, `${i.instance} instance`), h("span", null, i.health));
  $("instance").title = escape(said);
}

function drawConnection() {
  const isLive = state.connection === "live";
  const word = { live: "live", lost: "connection lost", connecting: "connecting" }[state.connection];
  $("connection").hidden = false;
  $("connection").className = `connection ${state.connection}`;
  setText($("connection").querySelector("span"), word);
  $("lost").hidden = isLive || state.connection === "connecting";
  if (!isLive && state.lostAt) setText($("lost-for"), tickingDuration(now() - state.lostAt));
}

function drawCounts() {
  const live = liveRuns();
  const bad = live.filter((r) => r.health !== "healthy").length;
  const counts = { live: live.length || "", alerts: bad || "" };
  for (const [name, n] of Object.entries(counts)) {
    for (const badge of document.querySelectorAll(`[data-count="${name}"]`)) {
      setText(badge, n === "" ? "" : n.toLocaleString("en"));
      badge.hidden = n === "";
      if (name === "alerts") badge.classList.toggle("critical", live.some((r) => r.health === "critical"));
    }
  }
}

const toldHealth = new Map();
let waiting = [];
let sayTimer = null;

/** Says changes of health to who cannot see them; many at once in one sentence. */
function say(rows) {
  for (const row of rows) {
    if (row.kind !== "health_changed" || toldHealth.get(row.run_id) === row.details?.to) continue;
    toldHealth.set(row.run_id, row.details?.to);
    waiting.push(`${row.workflow ?? "run"} ${row.run_id} is ${row.reason || row.details?.to}`);
  }
  if (!waiting.length || sayTimer) return;
  sayTimer = setTimeout(() => {
    setText($("announce"), waiting.length > 3 ? `The health of ${count(waiting.length, "run")} has changed.` : waiting.join(". "));
    waiting = [];
    sayTimer = null;
  }, 500);
}

subscribe((told) => {
  if (told.instance || told.all) drawInstance();
  if (told.connection) drawConnection();
  if (told.runs.size || told.all) {
    drawCounts();
    title();
  }
  if (told.rows.length) say(told.rows);
});
setInterval(() => state.connection === "lost" && isSignedIn && drawConnection(), 1000);

// The theme: as the system has it, unless one was chosen.
const themes = ["auto", "light", "dark"];

function theme() {
  try {
    return localStorage.getItem("theme") ?? "auto";
  } catch {
    return "auto";
  }
}

function setTheme(name) {
  try {
    localStorage.setItem("theme", name);
  } catch {
    // Storage may be forbidden: then it holds until the page is left.
  }
  showTheme(name);
}

function showTheme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  const button = $("theme");
  replace(button, icon({ auto: "auto", light: "sun", dark: "moon" }[name] ?? "auto"));
  button.setAttribute("aria-label", `Colours: ${name === "auto" ? "as the system" : name}`);
  button.title = button.getAttribute("aria-label");
}

const nextTheme = () => setTheme(themes[(themes.indexOf(theme()) + 1) % themes.length]);

let wasG = 0;
const GO = { o: "#/", l: "#/live", h: "#/history", a: "#/alerts", s: "#/stats" };

addEventListener("keydown", (event) => {
  const isTyping = event.target.closest?.("input, textarea, select, dialog");
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey || !isSignedIn) return;
  const key = event.key;
  if (performance.now() - wasG < 1500 && GO[key]) location.hash = GO[key];
  else if (key === "/") {
    if (!page?.filter) {
      history.pushState(null, "", "#/live");
      route();
    }
    page.filter.focus();
  }
  else if (key === "j" || key === "k") page?.step(key === "j" ? 1 : -1);
  else if (key === "?") helpDialog();
  else if (key === "t") nextTheme();
  else if (key !== "g") {
    wasG = 0;
    return;
  }
  wasG = key === "g" ? performance.now() : 0;
  event.preventDefault();
});

for (const link of document.querySelectorAll("[data-icon]")) link.prepend(icon(link.dataset.icon));
$("theme").addEventListener("click", nextTheme);
$("help").addEventListener("click", helpDialog);
$("logout").addEventListener("click", async () => {
  await api.logout().catch(() => {});
  showLogin();
});
$("skip").addEventListener("click", (event) => {
  // The address is the page's own way to know where it is: the link's would be taken for a view.
  event.preventDefault();
  view.focus();
});
addEventListener("hashchange", () => {
  const code = takeCode();
  if (code) signIn(code);
  else route();
});
signedOut.notify = () => isSignedIn && showLogin("Your session is over. Sign in again.");

/** Whether there was a session: the cookie itself is not for the page to see, and asking without one is refused. */
function hadSession(is) {
  try {
    if (is === undefined) return localStorage.getItem("session") === "yes";
    localStorage.setItem("session", is ? "yes" : "no");
  } catch {
    // Without storage it is asked each time.
  }
  return true;
}

async function signIn(code) {
  if (!code && !hadSession()) return showLogin();
  try {
    await enter(code ? await api.login({ code }) : await api.whoami());
  } catch (e) {
    if (code) {
      // The code may have been used by this very browser: then the session is there.
      const who = await api.whoami().catch(() => null);
      if (who) return enter(who);
    }
    if (code || e.status === 401) return showLogin(code ? e.message : "");
    // The server or its instance is away: the session may well hold.
    replace(view, h("div", { class: "empty", role: "status" }, e.message, " It is tried again by itself."));
    setTimeout(signIn, 3000);
  }
}

showTheme(theme());
signIn(takeCode());
