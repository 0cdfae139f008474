// Elements, made of calls only: nothing on this page is ever parsed as markup, and no attribute is built from a run's text
// but title and aria-label, which a browser does not interpret.

import { escape } from "./text.js";

const SVG = "http://www.w3.org/2000/svg";

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value == null || value === false) continue;
    if (name === "class") element.setAttribute("class", value);
    else if (name === "on") for (const [event, run] of Object.entries(value)) element.addEventListener(event, run);
    else if (name === "style") for (const [key, v] of Object.entries(value)) element.style.setProperty(key, v);
    else if (name === "dataset") Object.assign(element.dataset, value);
    // What is read or pointed at is text as well; a tooltip may have lines.
    else if (name === "title" || name === "aria-label") element.setAttribute(name, value.split("\n").map(escape).join("\n"));
    else if (name in { value: 1, checked: 1, disabled: 1, hidden: 1 }) element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  append(element, children);
  return element;
}

/** Adds elements and text; what is null, undefined or false is left out. */
export function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child == null || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(escape(child)));
  }
  return element;
}

/** An HTML element. Children that are no nodes become text. */
export function h(tag, props, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** An SVG element. */
export function s(tag, props, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

/** Puts these in place of all there is. */
export function replace(element, ...children) {
  element.replaceChildren();
  return append(element, children);
}

/** Changes a text, if it is another one: so that nothing is laid out and nothing is announced without need. */
export function setText(element, text) {
  const safe = escape(text);
  if (element.textContent !== safe) element.textContent = safe;
}

/** Changes an attribute, if it is another one. */
export function setAttr(element, name, value) {
  if (value == null || value === false) {
    if (element.hasAttribute(name)) element.removeAttribute(name);
  } else if (element.getAttribute(name) !== String(value)) {
    element.setAttribute(name, String(value));
  }
}

const ICONS = {
  // Each health has a shape of its own, so that none is told by colour alone.
  healthy: "M8 1.5a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13Zm3.4 4.9-4 4.5a.8.8 0 0 1-1.2 0L4.6 9.2l1.1-1.1 1.1 1.2 3.4-3.9z",
  warning: "M8.9 2 15 13a1 1 0 0 1-.9 1.5H1.900A1 1 0 0 1 1 13L7.100 2a1 1 0 0 1 1.800 0ZM7.200 6v4h1.600V6Zm0 5.200v1.600h1.600v-1.600Z",
  critical: "M5.100 1h5.800L15 5.100v5.800L10.900 15H5.100L1 10.900V5.100Zm.5 3.500L4.500 5.600 6.900 8l-2.400 2.400 1.100 1.100L8 9.100l2.400 2.400 1.100-1.100L9.100 8l2.400-2.400-1.100-1.100L8 6.900Z",
  finished: "M8 1.500a6.500 6.500 0 1 0 0 13 6.500 6.500 0 0 0 0-13ZM4.500 7.200h7v1.600h-7z",
  sun: "M8 4.500a3.500 3.500 0 1 0 0 7 3.500 3.500 0 0 0 0-7ZM7.250 0h1.500v2.500h-1.500Zm0 13.500h1.500V16h-1.500ZM0 7.250h2.500v1.500H0Zm13.500 0H16v1.500h-2.500ZM2 3.050 3.050 2l1.750 1.750L3.750 4.800Zm9.200 9.200 1.050-1.050L14 12.950 12.950 14ZM2 12.950l1.750-1.750 1.050 1.050L3.050 14Zm9.200-9.200L12.950 2 14 3.050 12.250 4.800Z",
  moon: "M6.500 1.200A7 7 0 1 0 14.800 9.500 5.600 5.600 0 0 1 6.500 1.200Z",
  auto: "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1Zm0 1.600v10.800a5.400 5.400 0 0 1 0-10.800Z",
  help: "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1Zm-.8 9.800h1.600v1.600H7.200Zm3.100-4.300c0 1.200-.9 1.700-1.400 2.100-.2.200-.2.300-.2.700H7.300c0-1 .2-1.400 1-2 .5-.4.600-.5.600-.8 0-.5-.4-.8-.9-.8-.6 0-1 .4-1 1.100H5.600C5.600 5.200 6.600 4.200 8 4.200c1.300 0 2.300.9 2.300 2.300Z",
  out: "M2 2h6v1.500H3.500v9H8V14H2Zm8.500 2.500L14 8l-3.500 3.500-1-1 1.700-1.700H6V7.200h5.200L9.500 5.500Z",
  overview: "M1.500 2h5.700v6H1.500Zm7.300 0h5.700v3.800H8.800ZM1.500 9.600h5.700V14H1.500Zm7.300-2.200h5.700V14H8.800Z",
  live: "M1 8.800V7.200h3L6 2.500h1.200L9.500 11l1.300-3.800H15v1.600h-3.100L10 14H8.800L6.500 5.800 5.100 8.800Z",
  history: "M8 1.500a6.500 6.500 0 1 1-6.300 8.100l1.500-.4A5 5 0 1 0 3.900 5H6v1.500H1.500V2H3v1.800A6.500 6.500 0 0 1 8 1.500ZM7.300 4.500h1.500v3.300l2.400 1.400-.8 1.300-3.100-1.900Z",
  alerts: "M8 1a4.500 4.500 0 0 1 4.500 4.500v3L14 11v1H2v-1l1.500-2.500v-3A4.500 4.500 0 0 1 8 1ZM6.200 13h3.600a1.800 1.800 0 0 1-3.600 0Z",
  stats: "M1.500 14.500v-1.400h13v1.400ZM2.500 8h2.400v4H2.500Zm4.300-5.500h2.400V12H6.800Zm4.300 3h2.400V12h-2.400Z",
};

/** A small picture beside a word; it says nothing that the word does not say. */
export function icon(name, extra = "") {
  return s("svg", { class: `icon ${extra}`, viewBox: "0 0 16 16", width: 16, height: 16, "aria-hidden": "true", focusable: "false" },
    s("path", { d: ICONS[name], "fill-rule": "evenodd" }));
}

/** A health as shape, word and colour. */
export function healthBadge(health) {
  return h("span", { class: `health ${health}` }, icon(health), h("span", null, health));
}

/** A time, with all of it in the tooltip. */
export function time(usec, text) {
  if (usec == null) return h("span", null, "-");
  return h("time", { datetime: new Date(usec / 1000).toISOString(), title: new Date(usec / 1000).toString() }, text);
}

/** A run's id, as a link to its page. The id is only ever used as one when it looks like one. */
export function runLink(id, ...children) {
  const href = /^run_[0-9a-f]{12}$/.test(id ?? "") ? `#/run/${id}` : null;
  return href ? h("a", { class: "run-id", href }, ...(children.length ? children : [id])) : h("span", null, id ?? "-");
}
