"""What is asked of the page itself, in its own language: whether it can be read, and by everybody."""

# Characters that steer a terminal or reorder text, in what is shown or in what a pointer is told: none may be left.
UNSAFE = r"""
const bad = /[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/;
const found = [];
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let n = walk.nextNode(); n; n = walk.nextNode()) if (bad.test(n.data)) found.push(n.data);
for (const e of document.querySelectorAll('[title], [aria-label]')) {
  // A tooltip may have lines.
  for (const text of [e.title ?? '', e.getAttribute('aria-label') ?? '']) if (bad.test(text)) found.push(text);
}
if (bad.test(document.title)) found.push(document.title);
return found;
"""

# Controls that nothing names.
NAMELESS = r"""
const name = (e) => (e.getAttribute('aria-label') || e.title || e.textContent || e.labels?.[0]?.textContent || '').trim();
return [...document.querySelectorAll('a, button, input, select, dialog, [role=img], nav, table')]
  .filter((e) => e.checkVisibility() && !(e.tagName === 'TABLE') && !name(e)).map((e) => e.outerHTML.slice(0, 120));
"""

# Texts with a contrast below AA: 4.5, or 3 where they are large. Colours are laid over each other on a canvas, as the
# browser does, so that it does not matter how they are written.
CONTRAST = r"""
const canvas = document.createElement('canvas');
canvas.width = canvas.height = 1;
const c = canvas.getContext('2d', { willReadFrequently: true });
const over = (colors) => {
  c.clearRect(0, 0, 1, 1);
  for (const color of colors) { c.fillStyle = color; c.fillRect(0, 0, 1, 1); }
  return [...c.getImageData(0, 0, 1, 1).data].slice(0, 3);
};
const light = (rgb) => {
  const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const poor = [];
const seen = new Set();
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let n = walk.nextNode(); n; n = walk.nextNode()) {
  const e = n.parentElement;
  if (!n.data.trim() || !e.checkVisibility({ opacityProperty: true, visibilityProperty: true }) || e.closest('.sr, :disabled')) continue;
  const style = getComputedStyle(e);
  const grounds = [];
  for (let p = e; p; p = p.parentElement) grounds.unshift(getComputedStyle(p).backgroundColor);
  const color = e instanceof SVGElement ? style.fill : style.color;
  const key = [color, ...grounds].join();
  if (seen.has(key)) continue;
  seen.add(key);
  const [ground, text] = [over(['#fff', ...grounds]), over(['#fff', ...grounds, color])].map(light);
  const ratio = (Math.max(ground, text) + 0.05) / (Math.min(ground, text) + 0.05);
  const size = parseFloat(style.fontSize);
  const isLarge = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
  if (ratio < (isLarge ? 3 : 4.5)) poor.push(`${ratio.toFixed(2)}: ${n.data.trim().slice(0, 30)} (${color} on ${grounds.filter((g) => g !== 'rgba(0, 0, 0, 0)').at(-1)})`);
}
return poor;
"""
