// The options, what the reader asks for, and the choice.

const NUMBERS = JSON.parse(document.getElementById("numbers").textContent);
const ROWS = NUMBERS.rows;
const TYPES = NUMBERS.types.map(([name, bits, colour, letter]) => ({ name, bits, colour, letter }));
const TENSORS = NUMBERS.tensors.map(([name, types, bytes, planned], index) => {
  const option = new Map(ROWS.types[types].map((type, at) => [type, at]));
  return { index, name, planned, option, bytes: ROWS.bytes[bytes] };
});
const ITEMS = NUMBERS.items.map(([tensors, types, device], index) => {
  const item = { index, tensors: tensors.map((at) => TENSORS[at]), types: ROWS.types[types], device };
  for (const tensor of item.tensors) tensor.item = item;
  return item;
});
const PLANNED_BY = NUMBERS.levels[NUMBERS.planned_by];
const BY_DAMAGE = NUMBERS.most !== null; // the fastest mix for a quality, not the best one for a size
const FREE = -1; // no lock, no floor

const state = {};
restore();

// Go back to the plan of the command line.
function restore() {
  Object.assign(state, {
    sizes: NUMBERS.budgets.map((budget) => budget.size),
    most: NUMBERS.most,
    locks: new Map(), // tensor to type, by index
    floors: new Map(),
    types: TENSORS.map((tensor) => tensor.planned),
    gap: NUMBERS.gap,
    problem: "",
    untouched: true,
  });
}

// If nothing was measured, the levels are those of the preset nearest in size.
function levels() {
  if (state.untouched) return PLANNED_BY;
  const wanted = added(state.sizes);
  return NUMBERS.levels.reduce((best, one) =>
    Math.abs(one.bytes - wanted) < Math.abs(best.bytes - wanted) ? one : best);
}

function added(numbers) {
  return numbers.reduce((sum, number) => sum + number, 0);
}

function damageOf(tensor, type, level) {
  return ROWS.damage[level.damage[tensor.index]][tensor.option.get(type)];
}

function bytesOf(tensor, type) {
  return tensor.bytes[tensor.option.get(type)];
}

// The types of an item that locks and floors allow.
function allowed(item) {
  return item.types.filter((type) => item.tensors.every(({ index }) => {
    const lock = state.locks.get(index), floor = state.floors.get(index);
    return (lock === undefined || lock === type) && (floor === undefined || TYPES[type].bits >= TYPES[floor].bits);
  }));
}

// The numbers of every item, for the types that are left.
function tables(level) {
  return ITEMS.map((item) => {
    const types = allowed(item);
    const sums = (number) => types.map((type) => added(item.tensors.map((tensor) => number(tensor, type))));
    const damage = sums((tensor, type) => damageOf(tensor, type, level));
    const cost = BY_DAMAGE ? types.map((type) => ROWS.cost[NUMBERS.cost[item.index]][item.types.indexOf(type)]) : [];
    return { item, types, damage, bytes: sums(bytesOf), cost };
  });
}

// Choose again; `quick` skips what takes longer than a frame. If nothing fits, the last choice stays.
function choose(quick) {
  state.untouched = false;
  const rows = tables(levels());
  const stuck = rows.find((row) => !row.types.length);
  const problems = stuck ? [`${stuck.item.tensors[0].name}: its locks and floors leave no type`] : [];
  const found = stuck ? [] : problemsOf(rows).map((problem) => solved(problem, quick, problems));
  state.problem = problems.join("; ");
  if (problems.length) return;
  for (const { rows: some, solution } of found) {
    some.forEach((row, at) => {
      for (const tensor of row.item.tensors) state.types[tensor.index] = row.types[solution.chosen[at]];
    });
  }
  const loss = added(found.map((one) => one.solution.loss)), bound = added(found.map((one) => one.solution.bound));
  state.gap = loss > 0 ? Math.max(0, loss - bound) / loss : 0;
  if (BY_DAMAGE) state.problem = tooFull().join("; ");
}

// Devices that a mix of this damage does not fit on: the page keeps only to the damage.
function tooFull() {
  return NUMBERS.budgets.flatMap(({ name }, at) => {
    const over = usedBytes(at) - state.sizes[at];
    return over > 0 ? [`${name}: ${size(over)} too much; the plan command below keeps to damage and sizes`] : [];
  });
}

// The independent problems: one for each device, or the fewest bytes read for a damage.
function problemsOf(rows) {
  if (BY_DAMAGE) return [{ rows, loss: "cost", weight: "damage", budget: state.most, name: "" }];
  return NUMBERS.budgets.map((budget, at) => ({
    rows: rows.filter((row) => row.item.device === budget.name),
    loss: "damage", weight: "bytes", budget: state.sizes[at] - budget.spare, name: budget.name,
  }));
}

function solved(problem, quick, problems) {
  const columns = (key) => problem.rows.map((row) => row[key]);
  const solution = solve(columns(problem.loss), columns(problem.weight), problem.budget, quick);
  if (solution === null) problems.push(tooSmall(problem));
  return { rows: problem.rows, solution };
}

function tooSmall({ rows, weight, budget, name }) {
  const least = added(rows.map((row) => Math.min(...row[weight])));
  if (BY_DAMAGE) return `the best types on offer already do a damage of ${short(least)}`;
  return `${name ? `${name}: ` : ""}the smallest types that are left take ${size(least - budget)} more`;
}

// The range of sizes, or damages, in which a budget changes something.
function range(at) {
  const rows = tables(levels()).filter((row) => row.types.length);
  if (BY_DAMAGE) {
    return [added(rows.map((row) => Math.min(...row.damage))), added(rows.map((row) => Math.max(...row.damage)))];
  }
  const budget = NUMBERS.budgets[at];
  const here = rows.filter((row) => row.item.device === budget.name);
  const best = (row) => row.bytes[row.damage.indexOf(Math.min(...row.damage))];
  return [budget.spare + added(here.map((row) => Math.min(...row.bytes))), budget.spare + added(here.map(best))];
}

function usedBytes(at) {
  const { name, spare } = NUMBERS.budgets[at];
  return spare + added(TENSORS.filter((one) => one.item.device === name).map((one) => bytesOf(one, state.types[one.index])));
}

// --- words -----------------------------------------------------------------------------------------------------------

function short(number) {
  return String(Number(number.toPrecision(4)));
}

// Bytes with three significant digits.
function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let number = bytes;
  while (number >= 999.5 && units.length > 1) {
    number /= 1024;
    units.shift();
  }
  return units[0] === "B" ? `${bytes} B` : `${number.toFixed(number < 9.995 ? 2 : number < 99.95 ? 1 : 0)} ${units[0]}`;
}

const UNITS = { "": 1, K: 1e3, M: 1e6, G: 1e9, T: 1e12, KI: 2 ** 10, MI: 2 ** 20, GI: 2 ** 30, TI: 2 ** 40 };

// Bytes from a text such as 48G or 4.2GiB, as the command line reads it; NaN for another text.
function parseSize(text) {
  const found = /^([0-9]+)(?:\.([0-9]+))?\s*([KMGT]?I?)B?$/i.exec(text.trim().replaceAll(",", ""));
  const unit = found && UNITS[found[3].toUpperCase()];
  if (!unit) return NaN;
  const fraction = found[2] ?? "";
  return Number(BigInt(found[1] + fraction) * BigInt(unit) / 10n ** BigInt(fraction.length));
}

// A size in the unit that gives it exactly, in the fewest characters.
function exactSize(bytes) {
  const texts = ["GI", "MI", "KI", "G", "M", "K"].filter((unit) => bytes >= UNITS[unit])
    .map((unit) => `${Number((bytes / UNITS[unit]).toFixed(3))}${unit.replace("I", "i")}B`)
    .filter((text) => parseSize(text) === bytes);
  return [...texts, String(bytes)].reduce((best, text) => (text.length < best.length ? text : best));
}

// --- what to copy ----------------------------------------------------------------------------------------------------

function recipeRules() {
  const order = NUMBERS.recipe.map((one) => (typeof one === "number"
    ? [TENSORS[one].name, TYPES[state.types[one]].name] : one));
  return compactRules(order).map(([pattern, type]) => `${pattern}=${type}\n`).join("");
}

function recipeText() {
  const { damage, bytes } = sums();
  const known = NUMBERS.unit === null ? "expected KLD: not known, as nothing was measured"
    : `expected ${NUMBERS.unit}: ${short(damage)}`;
  const header = [
    `# ${NUMBERS.made} plan, from its page`, ...NUMBERS.header,
    `# command: ${planCommand()}`,
    `# tensors: ${bytes} bytes, ${short(bytes * 8 / NUMBERS.elements)} bits per weight`,
    `# ${known}`,
  ];
  return `${header.join("\n")}\n${recipeRules()}`;
}

function sums(level = levels()) {
  const bytes = NUMBERS.fixed + added(TENSORS.map((one) => bytesOf(one, state.types[one.index])));
  return { bytes, damage: added(TENSORS.map((one) => damageOf(one, state.types[one.index], level))) };
}

function planCommand() {
  const { command } = NUMBERS;
  const target = state.untouched ? command.target : targetWords().map(shellWord).join(" ");
  const rules = [...ruleWords("--lock", state.locks), ...ruleWords("--floor", state.floors)].map(shellWord).join(" ");
  return [command.plan, target, command.options, rules, "-o mix.recipe"].filter(Boolean).join(" ");
}

function targetWords() {
  const words = NUMBERS.devices.flatMap(([name, pattern]) => {
    const at = NUMBERS.budgets.findIndex((budget) => budget.name === name);
    return ["--device", `${name}=${exactSize(state.sizes[at])}${pattern === null ? "" : `:${pattern}`}`];
  });
  if (BY_DAMAGE) words.push("--max-kld", String(state.most));
  else if (!NUMBERS.devices.length) words.push("--size", exactSize(state.sizes[0]));
  return words;
}

function ruleWords(option, rules) {
  const types = [...rules].sort((a, b) => a[0] - b[0]).map(([tensor, type]) => [TENSORS[tensor].name, TYPES[type].name]);
  return compactRules(types).flatMap(([pattern, type]) => [option, `${pattern}=${type}`]);
}
