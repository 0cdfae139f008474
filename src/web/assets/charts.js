// Charts as SVG, made by DOM calls: lines over time for a run, bars for statistics. Colours are classes of app.css.

import { h, replace, s, setText } from "./dom.js";

/** Round steps for an axis: 1, 2 or 5 times a power of ten; for bytes of a power of two. */
function steps(top, wanted, isBytes) {
  if (!(top > 0)) return [0, 1];
  const raw = top / wanted;
  const base = isBytes ? 1024 ** Math.floor(Math.log(raw) / Math.log(1024)) : 10 ** Math.floor(Math.log10(raw));
  const factors = isBytes ? [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024] : [1, 2, 5, 10];
  const step = base * (factors.find((f) => f * base >= raw) ?? factors.at(-1));
  const all = [];
  for (let v = 0; v <= top + step * 0.999; v += step) all.push(v);
  return all;
}

const LEFT = 52;
const RIGHT = 10;
const TOP = 10;
const BOTTOM = 22;

/**
 * A line over time. points: [[usec, value|null]]; `rule` is a limit drawn as a dashed line. Returns {element, draw}.
 */
export function lineChart({ label, format, clock, isBytes = false, height = 170, tone = "a" }) {
  const svg = s("svg", { class: `chart tone-${tone}`, role: "img", "aria-label": label, height });
  const read = h("span", { class: "chart-read" });
  const element = h("figure", { class: "chart-box" }, h("figcaption", null, h("span", null, label), read), svg);
  let last = { points: [], options: {} };
  let width = 0;
  let scale = null;

  function draw(points, options = {}) {
    last = { points, options };
    width = Math.max(240, element.clientWidth || 600);
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const known = points.filter(([, v]) => v != null);
    if (known.length < 2) {
      svg.setAttribute("viewBox", `0 0 ${width} 44`);
      svg.classList.add("bare");
      replace(svg, s("text", { x: 0, y: 26, class: "nothing" }, options.nothing ?? "no samples yet"));
      setText(read, "");
      scale = null;
      return;
    }
    svg.classList.remove("bare");
    const [from, to] = [points[0][0], points.at(-1)[0]];
    const most = Math.max(...known.map(([, v]) => v), options.atLeast ?? 0);
    // A limit far above what is used would press the line flat against the floor: then it is only said.
    const rule = options.rule != null && options.rule <= most * 4 ? options.rule : null;
    const ticks = steps(Math.max(most, rule ?? 0) * 1.05, 3, isBytes);
    const top = ticks.at(-1);
    const x = (t) => LEFT + ((t - from) / Math.max(1, to - from)) * (width - LEFT - RIGHT);
    const y = (v) => height - BOTTOM - (v / top) * (height - TOP - BOTTOM);
    const pieces = [];
    let piece = [];
    for (const [t, v] of points) {
      if (v == null) {
        if (piece.length) pieces.push(piece);
        piece = [];
      } else piece.push(`${x(t).toFixed(1)},${y(v).toFixed(1)}`);
    }
    if (piece.length) pieces.push(piece);
    const floor = y(0).toFixed(1);
    const area = pieces.map((p) => `M${p[0].split(",")[0]},${floor}L${p.join("L")}L${p.at(-1).split(",")[0]},${floor}Z`).join("");
    const marks = Math.max(2, Math.min(6, Math.floor((width - LEFT) / 110)));
    const times = Array.from({ length: marks }, (_, i) => from + ((to - from) * i) / (marks - 1));
    replace(svg,
      ticks.map((v) => [
        s("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(v), y2: y(v) }),
        s("text", { class: "tick", x: LEFT - 6, y: y(v) + 4, "text-anchor": "end" }, format(v)),
      ]),
      times.map((t, i) => s("text", {
        class: "tick", x: x(t), y: height - 6, "text-anchor": i === 0 ? "start" : i === marks - 1 ? "end" : "middle",
      }, clock(t))),
      s("path", { class: "area", d: area }),
      s("path", { class: "line", d: pieces.map((p) => `M${p.join("L")}`).join("") }),
      rule != null && [
        s("line", { class: "limit", x1: LEFT, x2: width - RIGHT, y1: y(rule), y2: y(rule) }),
        s("text", { class: "limit-text", x: width - RIGHT - 2, y: y(rule) - 4, "text-anchor": "end" }, `limit ${format(rule)}`),
      ],
      s("line", { class: "cross", x1: 0, x2: 0, y1: TOP, y2: height - BOTTOM, visibility: "hidden" }),
      s("circle", { class: "dot", r: 3.5, visibility: "hidden" }));
    scale = { x, y, known };
    tell(known.at(-1), false);
  }

  function tell([t, v], isPointed) {
    setText(read, `${format(v)}${isPointed ? ` at ${clock(t)}` : ""}`);
  }

  function point(event) {
    if (!scale) return;
    const at = ((event.clientX - svg.getBoundingClientRect().left) / svg.clientWidth) * width;
    const nearest = scale.known.reduce((a, b) => (Math.abs(scale.x(b[0]) - at) < Math.abs(scale.x(a[0]) - at) ? b : a));
    const [cross, dot] = [svg.querySelector(".cross"), svg.querySelector(".dot")];
    const px = scale.x(nearest[0]);
    for (const name of ["x1", "x2"]) cross.setAttribute(name, px);
    dot.setAttribute("cx", px);
    dot.setAttribute("cy", scale.y(nearest[1]));
    for (const mark of [cross, dot]) mark.setAttribute("visibility", "visible");
    tell(nearest, true);
  }

  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerleave", () => draw(last.points, last.options));
  // In a frame of its own: what is drawn may have another height, which must not be seen within the same one.
  const sizes = new ResizeObserver(() => requestAnimationFrame(() => {
    if (Math.abs(element.clientWidth - width) > 2) draw(last.points, last.options);
  }));
  sizes.observe(element);
  return { element, draw };
}

/**
 * Stacked bars, one for each day. days: [{label, parts: {name: n}}]; `names` gives the order, from the floor.
 */
export function dayBars({ label, days, names, height = 110 }) {
  const width = 640;
  const most = Math.max(1, ...days.map((d) => names.reduce((sum, n) => sum + (d.parts[n] ?? 0), 0)));
  const slot = (width - 34) / Math.max(1, days.length);
  const bar = Math.min(26, slot * 0.72);
  const unit = (height - 26) / most;
  return s("svg", { class: "chart bars", role: "img", "aria-label": label, viewBox: `0 0 ${width} ${height}` },
    s("line", { class: "grid", x1: 34, x2: width, y1: height - 18, y2: height - 18 }),
    s("text", { class: "tick", x: 28, y: 14, "text-anchor": "end" }, String(most)),
    s("text", { class: "tick", x: 28, y: height - 15, "text-anchor": "end" }, "0"),
    days.map((d, i) => {
      let floor = height - 18;
      const left = 34 + i * slot + (slot - bar) / 2;
      const said = names.filter((n) => d.parts[n]).map((n) => `${d.parts[n]} ${n}`).join(", ");
      return s("g", null,
        s("title", null, `${d.label}: ${said || "no runs"}`),
        // The whole slot answers to the pointer, so that a day with one run can be hit too.
        s("rect", { class: "slot", x: 34 + i * slot, y: 0, width: slot, height: height - 18 }),
        names.map((n) => {
          const tall = (d.parts[n] ?? 0) * unit;
          if (tall <= 0) return null;
          floor -= tall;
          return s("rect", { class: `part ${n}`, x: left, y: floor, width: bar, height: Math.max(1, tall - 0.5), rx: 1.5 });
        }),
        (i % Math.ceil(days.length / 8) === 0) && s("text", { class: "tick", x: left + bar / 2, y: height - 4, "text-anchor": "middle" }, d.label.slice(5)));
    }));
}

/** A trend by day: a line through the days that have a value. */
export function dayLine({ label, days, format, height = 90 }) {
  const known = days.map((d, i) => [i, d.value, d.label]).filter(([, v]) => v != null);
  const width = 640;
  const most = Math.max(...known.map(([, v]) => v), 1);
  const x = (i) => 64 + (days.length > 1 ? (i / (days.length - 1)) * (width - 76) : (width - 76) / 2);
  const y = (v) => height - 10 - (v / most) * (height - 22);
  return s("svg", { class: "chart tone-b", role: "img", "aria-label": label, viewBox: `0 0 ${width} ${height}` },
    s("line", { class: "grid", x1: 64, x2: width - 8, y1: y(0), y2: y(0) }),
    s("text", { class: "tick", x: 58, y: y(most) + 4, "text-anchor": "end" }, known.length ? format(most) : ""),
    s("text", { class: "tick", x: 58, y: y(0) + 3, "text-anchor": "end" }, "0"),
    known.length > 1 && s("path", { class: "line", d: `M${known.map(([i, v]) => `${x(i).toFixed(1)},${y(v).toFixed(1)}`).join("L")}` }),
    known.map(([i, v, day]) => s("circle", { class: "dot", cx: x(i), cy: y(v), r: 3 }, s("title", null, `${day}: ${format(v)}`))));
}

/** A share of a whole in one line: [{name, n}] with the class of each. */
export function shareBar(parts, label) {
  const all = parts.reduce((sum, p) => sum + p.n, 0);
  return h("div", { class: "share", role: "img", "aria-label": label },
    parts.filter((p) => p.n > 0).map((p) => h("span", { class: `part ${p.name}`, title: `${p.name}: ${p.n}`, style: { "flex-grow": String(p.n / Math.max(1, all)) } })));
}
