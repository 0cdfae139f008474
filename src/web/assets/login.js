// Signing in: by a token, or by the one-time code in the link that `guardian web` prints.

import { api } from "./api.js";
import { h, setText } from "./dom.js";

/** The code of the address, which is removed at once: it is not to stay in the history of the browser. */
export function takeCode() {
  const found = /^#code=([^&]+)$/.exec(location.hash);
  if (!found) return null;
  history.replaceState(null, "", location.pathname + location.search);
  try {
    return decodeURIComponent(found[1]);
  } catch {
    return found[1];
  }
}

export function loginPage(view, said, done) {
  const token = h("input", { type: "password", id: "token", name: "token", autocomplete: "current-password", required: true, spellcheck: "false" });
  // A password manager keeps a token under a name, and there is none to ask for.
  const user = h("input", { type: "text", name: "username", autocomplete: "username", value: location.host, hidden: true });
  const problem = h("p", { class: "problem", role: "alert", hidden: !said }, said);
  const button = h("button", { type: "submit", class: "button primary" }, "Sign in");
  const form = h("form", { class: "login card" },
    h("h1", null, "Sign in"),
    h("p", { class: "dim" }, "An operator of this host makes a token with ", h("code", null, "guardian token new"), ". For your own instance, ", h("code", null, "guardian web"), " prints a link that signs you in."),
    h("div", { class: "field" }, h("label", { for: "token" }, "Token"), user, token), problem, button);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    problem.hidden = true;
    try {
      done(await api.login({ token: token.value.trim() }));
    } catch (e) {
      setText(problem, e.message);
      problem.hidden = false;
      token.select();
    }
    button.disabled = false;
  });
  view.append(form);
  token.focus();
  return { title: "Sign in", step: () => {}, close: () => {} };
}
