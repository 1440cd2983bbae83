"use strict";
const words = new Intl.Collator("en", { numeric: true });

function value(row, column) {
  const cell = row.cells[column];
  return cell.dataset.v === undefined ? cell.textContent : Number(cell.dataset.v);
}

function sortBy(table, head) {
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const body = table.tBodies[0];
  const column = head.cellIndex;
  const compare = (a, b) => (typeof a === "number" ? a - b : words.compare(a, b));
  const rows = [...body.rows].map((row) => [value(row, column), row]);
  rows.sort((a, b) => (down ? -1 : 1) * compare(a[0], b[0]));
  body.append(...rows.map((pair) => pair[1]));
}

for (const table of document.querySelectorAll("table.tensors")) {
  for (const head of table.tHead.rows[0].cells) {
    head.querySelector("button").addEventListener("click", () => sortBy(table, head));
  }
  const filter = table.closest(".card").querySelector(".filter");
  filter.hidden = false;
  filter.addEventListener("input", () => {
    const wanted = filter.value.toLowerCase();
    for (const row of table.tBodies[0].rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
}

for (const heat of document.querySelectorAll("table.heat")) {
  const detail = heat.closest(".card").querySelector(".detail");
  heat.addEventListener("mouseover", (event) => {
    const cell = event.target.closest("td[title]");
    if (cell) detail.textContent = cell.title;
  });
}
