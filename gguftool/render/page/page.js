"use strict";
const collator = new Intl.Collator("en", { numeric: true });

/* --- tables: sort, filter, show only what differs --- */

function value(row, column) {
  const cell = row.cells[column];
  return cell.dataset.v === undefined ? cell.textContent : Number(cell.dataset.v);
}

function sortBy(table, head) {
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const compare = (a, b) => (typeof a === "number" ? a - b : collator.compare(a, b));
  const rows = [...table.tBodies[0].rows].map((row) => [value(row, head.cellIndex), row]);
  rows.sort((a, b) => (down ? -1 : 1) * compare(a[0], b[0]));
  table.tBodies[0].append(...rows.map((pair) => pair[1]));
}

for (const table of document.querySelectorAll("table.grid")) {
  for (const head of table.tHead.rows[0].cells) {
    head.querySelector("button").addEventListener("click", () => sortBy(table, head));
  }
  const tools = table.parentNode.querySelector(".tools");
  const filter = tools.querySelector(".filter");
  const differing = tools.querySelector(".differing");
  const texts = new Map();
  const text = (row) => texts.get(row) ?? texts.set(row, row.textContent.toLowerCase()).get(row);
  const apply = () => {
    const wanted = filter.value.toLowerCase();
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      row.hidden = !text(row).includes(wanted) || (differing?.checked && !row.classList.contains("differs"));
      shown += !row.hidden;
    }
    const all = table.tBodies[0].rows.length;
    tools.querySelector(".count").textContent = shown === all ? "" : `${shown} of ${all} shown`;
  };
  tools.hidden = false;
  filter.addEventListener("input", apply);
  differing?.addEventListener("change", apply);
}

/* --- heat maps: fold layers that are alike; one cell in the tab order, arrow keys move; tell what is in a cell --- */

for (const section of document.querySelectorAll(".layers")) {
  const fold = section.querySelector(".fold");
  const detail = section.querySelector(".detail");
  const tell = (event) => {
    const cell = event.target.closest(".heat button");
    if (cell) detail.textContent = cell.getAttribute("aria-label");
  };
  fold.closest(".tools").hidden = false;
  fold.checked = section.querySelectorAll(".heat").length > 1 || matchMedia("(max-width: 640px)").matches;
  fold.addEventListener("change", () => section.classList.toggle("folded", fold.checked));
  section.classList.toggle("folded", fold.checked);
  for (const kind of ["mouseover", "focusin", "click"]) section.addEventListener(kind, tell);
}

const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

function next(cell, [down, right]) {
  const rows = [...cell.closest("tbody").rows].filter((row) => row.offsetParent !== null);
  let row = rows.indexOf(cell.closest("tr"));
  let column = cell.closest("td").cellIndex;
  for (;;) {
    row += down;
    column += right;
    const place = rows[row]?.cells[column];
    if (!place) return null;
    const found = place.querySelector("button");
    if (found) return found;
  }
}

for (const heat of document.querySelectorAll(".heat")) {
  const first = heat.querySelector("button");
  if (first) first.tabIndex = 0;
  heat.addEventListener("focusin", (event) => {
    for (const other of heat.querySelectorAll('button[tabindex="0"]')) other.tabIndex = -1;
    event.target.tabIndex = 0;
  });
  heat.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    const found = step && event.target.matches("button") && next(event.target, step);
    if (!found) return;
    event.preventDefault();
    found.focus();
  });
}
