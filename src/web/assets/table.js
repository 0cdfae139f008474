// A table whose rows are kept: a row is changed where its values did, moved where its place did, and never made anew. So the
// focus, a selection of text and the scroll position stay, and a thousand rows cost what has changed of them.

import { h } from "./dom.js";

/** Which of these numbers can stay where they are, so that the fewest rows are moved: a longest increasing subsequence. */
function staying(places) {
  const tails = [];
  const before = new Array(places.length).fill(-1);
  places.forEach((place, i) => {
    if (place < 0) return;
    let low = 0;
    let high = tails.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (places[tails[middle]] < place) low = middle + 1;
      else high = middle;
    }
    before[i] = low > 0 ? tails[low - 1] : -1;
    tails[low] = i;
  });
  const stay = new Set();
  for (let i = tails.length ? tails[tails.length - 1] : -1; i >= 0; i = before[i]) stay.add(i);
  return stay;
}

/**
 * columns: [{key, label, class, sort(item), cell(td, item)}]. `key(item)` names a row; `href(item)` is where a click leads.
 */
export class Table {
  constructor({ columns, key, href, label, rowClass, sort, onSort }) {
    Object.assign(this, { columns, key, href, rowClass, onSort });
    this.sort = sort;
    this.rows = new Map();
    this.items = new Map();
    this.order = [];
    this.buttons = new Map();
    const heads = columns.map((c) => this.#head(c));
    // Roles are said again, since as cards on a phone the table's own are lost with `display: table`.
    this.body = h("tbody", { role: "rowgroup" });
    this.element = h("table", { class: "runs", role: "table", "aria-label": label },
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, heads)), this.body);
    this.body.addEventListener("click", (event) => this.#click(event));
    this.#showSort();
  }

  #head(column) {
    const content = column.sort
      ? h("button", { type: "button", class: "sort", on: { click: () => this.#sortBy(column) } }, column.label)
      : column.label;
    const th = h("th", { scope: "col", role: "columnheader", class: `c-${column.key}` }, content);
    this.buttons.set(column.key, th);
    return th;
  }

  #sortBy(column) {
    const same = this.sort.key === column.key;
    this.sort = { key: column.key, down: same ? !this.sort.down : Boolean(column.downFirst) };
    this.#showSort();
    this.onSort?.(this.sort);
    this.arrange(this.order.map((k) => this.items.get(k)).filter(Boolean), true);
  }

  #showSort() {
    for (const [key, th] of this.buttons) {
      if (key === this.sort.key) th.setAttribute("aria-sort", this.sort.down ? "descending" : "ascending");
      else th.removeAttribute("aria-sort");
    }
  }

  #click(event) {
    // A click on a row opens it, unless something was clicked that does something itself, or text was being selected.
    if (event.target.closest("a, button, input, summary") || event.defaultPrevented) return;
    if (String(getSelection())) return;
    const row = event.target.closest("tr");
    const item = row && this.items.get(row.dataset.key);
    const href = item && this.href?.(item);
    if (href) location.hash = href;
  }

  #make(item) {
    const cells = this.columns.map((c) => h("td", { role: "cell", class: `c-${c.key}`, dataset: { label: c.label } }));
    const row = h("tr", { role: "row", dataset: { key: this.key(item) } }, cells);
    row.cellsOf = cells;
    return row;
  }

  /** Shows the values of an item in its row. */
  update(item) {
    const key = this.key(item);
    const row = this.rows.get(key);
    if (!row) return;
    this.items.set(key, item);
    const name = this.rowClass?.(item) ?? "";
    if (row.className !== name) row.className = name;
    this.columns.forEach((c, i) => c.cell(row.cellsOf[i], item));
  }

  /** Shows these items, in order. Rows that are new are filled; others are left as they are, but for `refresh`. */
  arrange(items, resort = true) {
    const column = this.columns.find((c) => c.key === this.sort.key);
    let sorted = items;
    if (column?.sort) {
      const sign = this.sort.down ? -1 : 1;
      const value = new Map(items.map((item) => [item, column.sort(item)]));
      const compare = (a, b) => {
        const [x, y] = [value.get(a), value.get(b)];
        if (x === y) return 0;
        // What is not known comes last either way.
        if (x == null) return 1;
        if (y == null) return -1;
        return (x < y ? -1 : 1) * sign;
      };
      const tie = (a, b) => (this.key(a) < this.key(b) ? -1 : 1);
      if (resort) sorted = [...items].sort((a, b) => compare(a, b) || tie(a, b));
    }
    const wanted = new Set();
    for (const item of sorted) {
      const key = this.key(item);
      wanted.add(key);
      if (this.rows.has(key)) continue;
      this.rows.set(key, this.#make(item));
      this.update(item);
    }
    for (const key of this.order) {
      if (wanted.has(key)) continue;
      this.#drop(key);
    }
    this.#place(sorted.map((item) => this.key(item)));
  }

  #drop(key) {
    const row = this.rows.get(key);
    // The focus goes to a neighbour, not to the top of the page.
    if (row.contains(document.activeElement)) {
      const neighbour = row.nextElementSibling ?? row.previousElementSibling;
      neighbour?.querySelector("a")?.focus({ preventScroll: true });
    }
    row.remove();
    this.rows.delete(key);
    this.items.delete(key);
  }

  #place(keys) {
    const was = new Map(this.order.map((k, i) => [k, i]));
    const places = keys.map((k) => (this.rows.get(k).parentNode === this.body ? was.get(k) ?? -1 : -1));
    const stay = staying(places);
    const focused = document.activeElement;
    let next = null;
    for (let i = keys.length - 1; i >= 0; i -= 1) {
      const row = this.rows.get(keys[i]);
      if (!stay.has(i)) {
        // moveBefore keeps the focus where the browser has it; otherwise it is given back below.
        if (row.isConnected && this.body.moveBefore) this.body.moveBefore(row, next);
        else this.body.insertBefore(row, next);
      }
      next = row;
    }
    if (focused && focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
    this.order = keys;
  }

  /** Moves the focus by so many rows; the first one where none has it. */
  step(by) {
    const current = document.activeElement?.closest?.("tr");
    const index = current && current.parentNode === this.body ? this.order.indexOf(current.dataset.key) : -1;
    const next = index < 0 ? 0 : Math.min(this.order.length - 1, Math.max(0, index + by));
    const link = this.rows.get(this.order[next])?.querySelector("a");
    link?.focus({ preventScroll: true });
    link?.closest("tr").scrollIntoView({ block: "nearest" });
  }
}
