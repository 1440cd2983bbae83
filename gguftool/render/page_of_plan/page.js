// The page: react to the reader, and show the result.

const byId = (id) => document.getElementById(id);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const STEPS = 1000; // of a slider
const CELLS = all("#map [data-t], #others [data-t]");
const LINES = all("#tensors tbody tr");
let selected = []; // tensors
let waiting = 0;

// Escape a text, so that it cannot hide or reorder what is next to it.
function shown(text) {
  return text.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (char) => {
    const code = char.codePointAt(0).toString(16);
    return code.length < 3 ? `\\x${code.padStart(2, "0")}` : `\\u${code.padStart(4, "0")}`;
  });
}

function put(id, text) {
  const element = byId(id);
  if (element && element.textContent !== text) element.textContent = text;
}

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function chip(type) {
  return element("span", { className: `chip c${TYPES[type].colour}`, textContent: TYPES[type].name });
}

// --- budgets ---------------------------------------------------------------------------------------------------------

// Choose at once, as well as a frame allows, and again thoroughly when the reader pauses.
function changed(pause) {
  clearTimeout(waiting);
  if (pause) {
    choose(true);
    show();
    waiting = setTimeout(() => changed(0), pause);
    return;
  }
  choose(false);
  show();
  put("status", state.problem || `${byId("sum-size").textContent}, ${byId("sum-damage").textContent}`);
}

function position(at) {
  const [low, high] = range(at);
  if (BY_DAMAGE) return STEPS * (Math.log(state.most) - Math.log(low)) / (Math.log(high / low) || 1);
  return STEPS * (state.sizes[at] - low) / ((high - low) || 1);
}

// The rounded size, or damage, at a position of the slider.
function valueAt(at, place) {
  const [low, high] = range(at);
  if (BY_DAMAGE) return Number((low * (high / low) ** (place / STEPS) * 1.00005).toPrecision(4));
  const grain = 2 ** Math.max(0, Math.floor(Math.log2((high - low) / STEPS || 1)));
  const rounded = Math.ceil((low + (high - low) * place / STEPS) / grain) * grain;
  return rounded;
}

function setBudget(at, value, pause) {
  if (BY_DAMAGE) state.most = value;
  else state.sizes[at] = value;
  changed(pause);
}

function wireBudget(box, at) {
  const slider = box.querySelector("[type=range]"), exact = box.querySelector("[type=text]");
  slider.addEventListener("input", () => setBudget(at, valueAt(at, Number(slider.value)), 200));
  exact.addEventListener("change", () => {
    const value = BY_DAMAGE ? Number(exact.value) : parseSize(exact.value);
    const fits = BY_DAMAGE ? value > 0 && Number.isFinite(value) : Number.isFinite(value);
    exact.setAttribute("aria-invalid", String(!fits));
    if (fits) setBudget(at, value, 0);
    else put("status", "Write a size such as 4.2GiB");
  });
}

function showBudget(box, at) {
  const slider = box.querySelector("[type=range]"), exact = box.querySelector("[type=text]");
  const words = BY_DAMAGE ? String(state.most) : exactSize(state.sizes[at]);
  if (document.activeElement !== slider) slider.value = String(position(at));
  slider.setAttribute("aria-valuetext", BY_DAMAGE ? words : size(state.sizes[at]));
  if (document.activeElement !== exact || state.problem === "") exact.value = words;
  if (BY_DAMAGE) return;
  const used = usedBytes(at), left = state.sizes[at] - used;
  box.querySelector(".used").textContent = left < 0 ? `${size(-left)} too much` : `${size(used)} used, ${size(left)} free`;
  box.classList.toggle("over", left < 0);
}

// --- what is shown ---------------------------------------------------------------------------------------------------

function show() {
  const { bytes, damage } = sums(), bits = bytes * 8 / NUMBERS.elements;
  put("sum-size", size(bytes));
  put("sum-bits", short(bits));
  put("sum-damage", NUMBERS.unit === null ? "not known" : short(damage));
  put("sum-gap", `${(state.gap * 100).toFixed(2)}%`);
  put("problem", state.problem);
  byId("problem").hidden = !state.problem;
  put("known", state.untouched || NUMBERS.unit === null ? KNOWN : "run the plan command below for the interval of the expected damage");
  byId("reset").disabled = state.untouched;
  all(".budget").forEach(showBudget);
  showTypes();
  showCells();
  showLines(damage);
  showMark(bits, sums(PLANNED_BY).damage); // the curve goes by the levels of the plan
  showRules();
  showTensor();
  put("plan-command", shown(planCommand()));
  put("recipe", state.untouched ? ORIGINAL : recipeText().split("\n").map(shown).join("\n"));
}

function showTypes() {
  const held = new Map();
  for (const tensor of TENSORS) {
    const type = state.types[tensor.index], so = held.get(type) ?? { tensors: 0, bytes: 0 };
    held.set(type, { tensors: so.tensors + 1, bytes: so.bytes + bytesOf(tensor, type) });
  }
  const whole = added([...held.values()].map((one) => one.bytes)) || 1;
  const cell = (text) => element("td", { className: "n", textContent: text });
  byId("types").replaceChildren(...[...held].sort((a, b) => b[1].bytes - a[1].bytes).map(([type, { tensors, bytes }]) =>
    element("tr", {}, element("td", {}, chip(type)), cell(String(tensors)), cell(size(bytes)),
      cell(`${(bytes / whole * 100).toFixed(1)}%`))));
}

function wordsOf(tensor, level) {
  const type = state.types[tensor.index];
  const cost = NUMBERS.unit === null ? "" : `, damage ${short(damageOf(tensor, type, level))}`;
  const marks = [[state.locks, "locked"], [state.floors, "floor"]].filter(([rules]) => rules.has(tensor.index));
  return `${shown(tensor.name)}: ${TYPES[type].name}, ${size(bytesOf(tensor, type))}${cost}${marks.map((one) => `, ${one[1]}`).join("")}`;
}

function showCells() {
  const level = levels(), byDamage = byId("by-damage").checked;
  const most = Math.max(...TENSORS.map((one) => damageOf(one, state.types[one.index], level)));
  for (const cell of CELLS) {
    const tensor = TENSORS[Number(cell.dataset.t)], type = TYPES[state.types[tensor.index]];
    const rank = damageRank(damageOf(tensor, state.types[tensor.index], level), most);
    const mark = state.locks.has(tensor.index) ? " locked" : state.floors.has(tensor.index) ? " floored" : "";
    const look = (byDamage ? `d${rank}` : `c${type.colour}`) + mark;
    if (cell.className !== look) cell.className = look;
    const text = byDamage ? String(rank) : type.letter;
    if (cell.textContent !== text) cell.textContent = text;
    const words = wordsOf(tensor, level);
    if (cell.getAttribute("aria-label") !== words) cell.setAttribute("aria-label", words);
    cell.setAttribute("aria-pressed", String(selected.includes(tensor)));
  }
  byId("letters").hidden = byDamage;
  byId("digits").hidden = !byDamage;
}

// 9 for the most damage, one less each time the damage falls to a third.
function damageRank(damage, most) {
  return damage > 0 && most > 0 ? Math.max(0, 9 - Math.floor(-Math.log(damage / most) / Math.log(3))) : 0;
}

function showLines(total) {
  const level = levels();
  for (const line of LINES) {
    const tensor = TENSORS[Number(line.dataset.t)], type = state.types[tensor.index];
    const damage = damageOf(tensor, type, level), bytes = bytesOf(tensor, type);
    const [, kind, weight, share] = line.cells;
    if (kind.textContent !== TYPES[type].name) kind.replaceChildren(chip(type));
    weight.textContent = size(bytes);
    weight.dataset.v = String(bytes);
    share.textContent = total > 0 ? `${(damage / total * 100).toFixed(2)}%` : "";
    share.dataset.v = String(damage);
  }
}

function showMark(bits, damage) {
  for (const svg of all("svg.curve")) {
    const [left, right, top, bottom, x0, y0, x1, y1] = svg.dataset.scale.split(" ").map(Number);
    const place = (value, low, high) => Math.min(1, Math.max(0, (value - low) / ((high - low) || 1)));
    const mark = svg.querySelector(".plan");
    mark.setAttribute("cx", String(x0 + (x1 - x0) * place(bits, left, right)));
    mark.setAttribute("cy", String(y1 - (y1 - y0) * place(Math.log10(damage), bottom, top)));
  }
}

// --- locks and floors ------------------------------------------------------------------------------------------------

function select(tensors) {
  selected = tensors;
  showCells();
  showTensor();
}

function showTensor() {
  byId("tensor").hidden = !selected.length;
  if (!selected.length) return;
  const [first] = selected, level = levels();
  put("tensor-name", selected.length === 1 ? shown(first.name) : `${selected.length} tensors, such as ${shown(first.name)}`);
  const others = selected.length === 1 ? first.item.tensors.filter((one) => one !== first) : [];
  put("tensor-with", others.length ? `shares one type with ${others.map((one) => shown(one.name)).join(", ")}` : "");
  const common = first.item.types.filter((type) => selected.every((one) => one.item.types.includes(type)));
  fill(byId("lock"), "free", common, state.locks);
  fill(byId("floor"), "none", common, state.floors);
  const members = [...new Set(selected.flatMap((one) => one.item.tensors))];
  const now = [added(members.map((one) => bytesOf(one, state.types[one.index]))),
    added(members.map((one) => damageOf(one, state.types[one.index], level)))];
  byId("costs").replaceChildren(...common.map((type) => costLine(type, members, now, level)));
}

function costLine(type, members, now, level) {
  const bytes = added(members.map((one) => bytesOf(one, type)));
  const damage = added(members.map((one) => damageOf(one, type, level)));
  const cell = (text) => element("td", { className: "n", textContent: text });
  const sign = (number, words) => (number === 0 ? "" : `${number < 0 ? "-" : "+"}${words(Math.abs(number))}`);
  const line = element("tr", {}, element("td", {}, chip(type)), cell(size(bytes)), cell(sign(bytes - now[0], size)),
    cell(short(damage)), cell(sign(damage - now[1], short)));
  if (members.every((one) => state.types[one.index] === type)) line.className = "now";
  return line;
}

// Fill the list of a lock or a floor, and select the choice that all selected tensors have.
function fill(list, none, types, rules) {
  const held = new Set(selected.map((one) => rules.get(one.index) ?? FREE));
  list.replaceChildren(...[FREE, ...types].map((type) =>
    element("option", { value: String(type), textContent: type === FREE ? none : TYPES[type].name })));
  list.value = String(held.size === 1 ? [...held][0] : FREE);
}

function rule(rules, type) {
  for (const { index } of selected) {
    if (type === FREE) rules.delete(index);
    else rules.set(index, type);
  }
  changed(0);
}

function showRules() {
  const lines = [["lock", state.locks], ["floor", state.floors]].flatMap(([kind, rules]) =>
    compactRules([...rules].map(([tensor, type]) => [TENSORS[tensor].name, TYPES[type].name]))
      .map(([pattern, type]) => element("li", { textContent: `${kind} ${shown(pattern)} = ${type}` })));
  byId("rules").replaceChildren(...lines);
  byId("unlock").hidden = !lines.length;
}

// --- copying, sorting, moving ----------------------------------------------------------------------------------------

// The text to copy: names as they are, which the page shows escaped.
function textOf(id) {
  if (id === "plan-command") return planCommand();
  if (id !== "recipe") return byId(id).textContent;
  if (!state.untouched) return recipeText();
  return ORIGINAL.split("\n").filter((line) => line.startsWith("#")).concat(recipeRules()).join("\n");
}

async function copy(button) {
  const id = button.dataset.copy;
  try {
    await navigator.clipboard.writeText(textOf(id));
    put("status", "copied");
  } catch {
    getSelection().selectAllChildren(byId(id));
    put("status", "selected: copy it with the keyboard");
  }
}

const collator = new Intl.Collator("en", { numeric: true });

function sortBy(head) {
  const table = head.closest("table"), down = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = (row) => row.cells[head.cellIndex].dataset.v ?? row.cells[head.cellIndex].textContent;
  const rows = [...table.tBodies[0].rows].map((row) => [value(row), row]);
  rows.sort((a, b) => (down ? -1 : 1) * (head.classList.contains("n") ? a[0] - b[0] : collator.compare(a[0], b[0])));
  table.tBodies[0].append(...rows.map((pair) => pair[1]));
}

function filterLines(text) {
  const wanted = text.toLowerCase();
  for (const line of LINES) line.hidden = !line.textContent.toLowerCase().includes(wanted);
}

// Arrow keys move between cells; the tab key reaches one cell of the map.
function move(event) {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  const cell = event.target.closest("td");
  if (!step || !cell) return;
  const rows = cell.closest("tbody").rows;
  let row = cell.parentNode.sectionRowIndex, column = cell.cellIndex;
  for (;;) {
    [row, column] = [row + step[0], column + step[1]];
    const place = rows[row]?.cells[column];
    if (!place || place.tagName === "TH") return;
    const found = place.querySelector("button");
    if (!found) continue;
    event.preventDefault();
    found.focus();
    return;
  }
}

function wireMap() {
  const map = byId("map"), cells = byId("cells");
  const first = map?.querySelector("td button");
  if (first) first.tabIndex = 0;
  map?.addEventListener("keydown", move);
  map?.addEventListener("focusin", (event) => {
    if (!event.target.matches("td button")) return;
    for (const other of all('td button[tabindex="0"]', map)) other.tabIndex = -1;
    event.target.tabIndex = 0;
  });
  const tell = (event) => {
    const cell = event.target.closest("[data-t]");
    if (cell) put("tip", cell.getAttribute("aria-label"));
  };
  for (const kind of ["mouseover", "focusin"]) cells.addEventListener(kind, tell);
  cells.addEventListener("click", (event) => {
    const cell = event.target.closest("[data-t]"), row = event.target.closest("[data-row]");
    if (cell) select([TENSORS[Number(cell.dataset.t)]]);
    else if (row) select(all("[data-t]", row.closest("tr")).map((one) => TENSORS[Number(one.dataset.t)]));
  });
}

function wire() {
  all(".needs-script").forEach((one) => (one.hidden = false));
  all(".budget").forEach(wireBudget);
  wireMap();
  byId("lock").addEventListener("change", (event) => rule(state.locks, Number(event.target.value)));
  byId("floor").addEventListener("change", (event) => rule(state.floors, Number(event.target.value)));
  byId("close").addEventListener("click", () => select([]));
  byId("unlock").addEventListener("click", () => {
    state.locks.clear();
    state.floors.clear();
    changed(0);
  });
  byId("reset").addEventListener("click", () => {
    clearTimeout(waiting);
    restore();
    show();
  });
  for (const view of all("[name=view]")) view.addEventListener("change", showCells);
  for (const button of all("[data-copy]")) button.addEventListener("click", () => copy(button));
  for (const button of all("[data-bytes]")) {
    button.addEventListener("click", () =>
      setBudget(0, Number(button.dataset.bytes) - NUMBERS.fixed + NUMBERS.budgets[0].spare, 0));
  }
  for (const button of all("#tensors .sort")) button.addEventListener("click", () => sortBy(button.closest("th")));
  byId("filter").addEventListener("input", (event) => filterLines(event.target.value));
  byId("tensors").addEventListener("click", (event) => {
    const line = event.target.closest("button.pick")?.closest("tr");
    if (!line) return;
    select([TENSORS[Number(line.dataset.t)]]);
    byId("tensor").scrollIntoView({ block: "nearest" });
    byId("lock").focus();
  });
  show();
}

const ORIGINAL = byId("recipe").textContent, KNOWN = byId("known").textContent;
wire();
