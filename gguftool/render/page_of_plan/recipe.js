// Recipes with few rules, as gguftool/analysis/recipe_compact.py and format/pattern.py write them.

const MAX_PATTERN = 4096;

// The rules of `types`, pairs of a tensor's name and its type: [pattern, type], anchored.
function compactRules(types) {
  const groups = new Map();
  for (const [name, type] of types) {
    const [before, number, after] = takenApart(name);
    const key = JSON.stringify([before, after, type, number === null ? "" : "#"]);
    const group = groups.get(key) ?? groups.set(key, { before, after, type, numbers: new Set() }).get(key);
    if (number !== null) group.numbers.add(number);
  }
  return [...groups.values()].flatMap(({ before, after, type, numbers }) => {
    const sorted = [...numbers].sort((a, b) => a - b);
    return patternsOf(literal(before), sorted, literal(after)).map((pattern) => [`^${pattern}$`, type]);
  });
}

// Split a name around its first number between dots.
function takenApart(name) {
  const found = /(^|\.)(0|[1-9][0-9]{0,5})(?=\.)/.exec(name);
  if (found === null) return [name, null, ""];
  const start = found.index + found[1].length;
  return [name.slice(0, start), Number(found[2]), name.slice(start + found[2].length)];
}

function patternsOf(before, numbers, after) {
  const pattern = before + (numbers.length ? numberSet(numbers) : "") + after;
  if (pattern.length + 2 <= MAX_PATTERN || numbers.length < 2) return [pattern];
  const half = Math.floor(numbers.length / 2);
  return [...patternsOf(before, numbers.slice(0, half), after), ...patternsOf(before, numbers.slice(half), after)];
}

// A pattern for exactly `text`; characters with a meaning in recipes become \xNN.
function literal(text) {
  return text.replace(/[=,#\x00-\x20\x7f-\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]/g, (char) => {
    const code = char.charCodeAt(0);
    return `\0${code < 0x100 ? `x${code.toString(16).padStart(2, "0")}` : `u${code.toString(16).padStart(4, "0")}`}`;
  }).replace(/[.^$*+?()[\]{}|\\]/g, "\\$&").replaceAll("\0", "\\");
}

// A pattern for exactly these numbers: ([37]|1[0-5]).
function numberSet(numbers) {
  const byLength = new Map();
  for (const number of numbers.map(String)) {
    byLength.set(number.length, [...(byLength.get(number.length) ?? []), number]);
  }
  return either([...byLength.keys()].sort((a, b) => a - b).flatMap((length) => ways(byLength.get(length))));
}

// Patterns for texts of one length, with one class for first digits that have the same continuations.
function ways(texts) {
  if (texts[0] === "") return [""];
  const tails = new Map();
  for (const text of [...texts].sort()) tails.set(text[0], [...(tails.get(text[0]) ?? []), text.slice(1)]);
  const digits = new Map();
  for (const [digit, rest] of tails) {
    const key = rest.join(" ");
    (digits.get(key) ?? digits.set(key, { rest, alike: [] }).get(key)).alike.push(Number(digit));
  }
  return [...digits.values()].map(({ rest, alike }) => digitClass(alike) + either(ways(rest)));
}

function either(patterns) {
  return patterns.length === 1 ? patterns[0] : `(${patterns.join("|")})`;
}

// Sorted digits as one pattern: 3, [37], [0-5].
function digitClass(digits) {
  if (digits.length === 1) return String(digits[0]);
  const runs = [];
  for (const digit of digits) {
    const last = runs[runs.length - 1];
    if (last && last[last.length - 1] === digit - 1) last.push(digit);
    else runs.push([digit]);
  }
  return `[${runs.map((run) => (run.length > 2 ? `${run[0]}-${run[run.length - 1]}` : run.join(""))).join("")}]`;
}

// A word for a POSIX shell, as Python's shlex.quote writes it.
function shellWord(word) {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'"'"'`)}'`;
}
