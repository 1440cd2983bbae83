// The solver of gguftool/cooking/solving/solver.py, number for number: the same order of sums, the same ties.
// A problem has a row of losses and a row of weights for each item; an answer has the index of an option for each.

const FEWEST_NODES = 48, MOST_NODES = 2000; // relaxations tried beyond the first
const EDGES_TRIED = 400000; // in all of them: small problems are searched to the end
const CORE = 120; // items that `refine` lets change
const STATES = 1500; // combinations that `refine` keeps
const REFINED_NODES = 4;
const CLOSE = 1e-5; // a relative gap that is not worth closing

// The best choice within `budget`, or null if nothing fits; `quick` takes the relaxation, rounded down.
function solve(loss, weight, budget, quick = false) {
  const problem = makeProblem(loss, weight);
  const root = relax(problem, budget, new Map());
  if (root === null) return null;
  return quick ? answer(problem, root.chosen, root.bound) : branch(problem, budget, root);
}

// The options on the lower convex hull, from the lightest to the one with the least loss.
function hullOf(weights, losses) {
  const order = weights.map((_, at) => at);
  order.sort((a, b) => weights[a] - weights[b] || losses[a] - losses[b] || a - b);
  const hull = [];
  for (const at of order) {
    if (hull.length && losses[at] >= losses[hull[hull.length - 1]]) continue;
    while (hull.length > 1 && isAbove(hull[hull.length - 2], hull[hull.length - 1], at, weights, losses)) hull.pop();
    hull.push(at);
  }
  return hull;
}

function isAbove(first, middle, last, weights, losses) {
  const middleDrop = (losses[middle] - losses[first]) * (weights[last] - weights[first]);
  return middleDrop >= (losses[last] - losses[first]) * (weights[middle] - weights[first]);
}

// The tables, and the edges of all hulls sorted by loss per weight: the linear relaxation.
function makeProblem(loss, weight) {
  const edges = [];
  const base = [];
  loss.forEach((row, item) => {
    const hull = hullOf(weight[item], row);
    base.push(hull[0]);
    for (let step = 1; step < hull.length; step++) {
      const [low, high] = [hull[step - 1], hull[step]];
      const more = weight[item][high] - weight[item][low], less = row[high] - row[low];
      edges.push({ item, option: high, weight: more, loss: less, slope: less / more });
    }
  });
  edges.sort((a, b) => a.slope - b.slope); // stable
  const problem = { loss, weight, base, edges };
  [problem.baseWeight, problem.baseLoss] = totals(problem, base);
  return problem;
}

function totals(problem, chosen) {
  let weight = 0, loss = 0;
  chosen.forEach((option, item) => {
    weight += problem.weight[item][option];
    loss += problem.loss[item][option];
  });
  return [weight, loss];
}

function answer(problem, chosen, bound) {
  const [weight, loss] = totals(problem, chosen);
  return { chosen, weight, loss, bound: Math.min(bound, loss) };
}

// Solve the relaxation with some items fixed to options; null if that does not fit.
function relax(problem, budget, fixed) {
  const chosen = problem.base.slice();
  let weight = problem.baseWeight, loss = problem.baseLoss;
  for (const [item, option] of fixed) {
    weight += problem.weight[item][option] - problem.weight[item][chosen[item]];
    loss += problem.loss[item][option] - problem.loss[item][chosen[item]];
    chosen[item] = option;
  }
  if (weight > budget) return null;
  let more = 0, less = 0;
  for (const edge of problem.edges) {
    if (fixed.has(edge.item)) continue;
    if (weight + (more + edge.weight) > budget) {
      const price = -(edge.loss / edge.weight);
      loss += less;
      return { bound: loss - price * (budget - (weight + more)), chosen, split: edge.item, price };
    }
    more += edge.weight;
    less += edge.loss;
    chosen[edge.item] = edge.option;
  }
  return { bound: loss + less, chosen, split: null, price: 0 };
}

// Best-first branch and bound, on the items that relaxations split.
function branch(problem, budget, root) {
  const open = [{ bound: root.bound, order: 0, fixed: new Map(), node: root }];
  const most = Math.min(MOST_NODES, Math.max(FEWEST_NODES, Math.floor(EDGES_TRIED / Math.max(problem.edges.length, 1))));
  let best = root.chosen, bestLoss = totals(problem, best)[1], proven = root.bound, tried = 0;
  const consider = (chosen) => {
    const loss = totals(problem, chosen)[1];
    if (loss < bestLoss) [best, bestLoss] = [chosen, loss];
  };
  for (;;) {
    if (!open.length) {
      proven = bestLoss; // every other choice was ruled out
      break;
    }
    const { bound, fixed, node } = takeFirst(open);
    proven = Math.max(proven, Math.min(bound, bestLoss));
    if (bestLoss - bound <= CLOSE * bestLoss || tried >= most) break;
    consider(tried < REFINED_NODES ? refine(problem, budget, node, bestLoss) : node.chosen);
    if (node.split === null) continue;
    for (let option = 0; option < problem.weight[node.split].length; option++) {
      const below = new Map(fixed).set(node.split, option);
      tried += 1;
      const child = relax(problem, budget, below);
      if (child === null || child.bound >= bestLoss) continue;
      open.push({ bound: child.bound, order: tried, fixed: below, node: child });
      consider(child.chosen);
    }
  }
  return answer(problem, best, proven);
}

function takeFirst(open) {
  let first = 0;
  open.forEach((one, at) => {
    if (one.bound < open[first].bound || (one.bound === open[first].bound && one.order < open[first].order)) first = at;
  });
  return open.splice(first, 1)[0];
}

// Fill what rounding left over: combine the options that cost least at the relaxation's price.
function refine(problem, budget, node, bestLoss) {
  const room = bestLoss - node.bound;
  const regret = node.chosen.map((own, item) => {
    const priced = problem.loss[item].map((loss, option) => loss + node.price * problem.weight[item][option]);
    return priced.map((value, option) => (option === own ? Infinity : value - priced[own]));
  });
  const least = regret.map((row) => Math.min(...row));
  const core = least.map((_, item) => item).sort((a, b) => compare(least[a], least[b]));
  let [states, steps] = [totals(problem, node.chosen), []];
  let weights = [states[0]], losses = [states[1]];
  if (weights[0] > budget) return node.chosen;
  for (const item of core.slice(0, CORE).filter((at) => least[at] <= room)) {
    const own = node.chosen[item];
    const options = [own];
    regret[item].forEach((value, option) => value <= room && options.push(option));
    const more = options.map((option) => problem.weight[item][option] - problem.weight[item][own]);
    const less = options.map((option) => problem.loss[item][option] - problem.loss[item][own]);
    const kept = bestStates(weights, losses, more, less, node.price);
    steps.push({ item, options, kept: kept.index });
    [weights, losses] = [kept.weights, kept.losses];
  }
  let at = -1;
  weights.forEach((weight, state) => {
    if (weight <= budget && (at < 0 || losses[state] < losses[at])) at = state;
  });
  if (at < 0) return node.chosen;
  const chosen = node.chosen.slice();
  for (const { item, options, kept } of steps.reverse()) {
    chosen[item] = options[kept[at] % options.length];
    at = Math.floor(kept[at] / options.length);
  }
  return chosen;
}

function compare(a, b) {
  return a < b ? -1 : a > b ? 1 : 0;
}

// Combine each state with each option, without those that a lighter one beats; keep at most STATES, the best at `price`.
function bestStates(weights, losses, more, less, price) {
  const count = more.length;
  const w = new Float64Array(weights.length * count), l = new Float64Array(w.length);
  weights.forEach((weight, state) => {
    for (let option = 0; option < count; option++) {
      w[state * count + option] = weight + more[option];
      l[state * count + option] = losses[state] + less[option];
    }
  });
  const order = Uint32Array.from(w, (_, at) => at).sort((a, b) => w[a] - w[b] || l[a] - l[b] || a - b);
  let kept = [];
  for (const at of order) if (!kept.length || l[at] < l[kept[kept.length - 1]]) kept.push(at);
  if (kept.length > STATES) {
    const value = (at) => l[at] + price * w[at];
    const ranked = kept.map((_, rank) => rank).sort((a, b) => value(kept[a]) - value(kept[b]) || a - b);
    kept = ranked.slice(0, STATES).sort((a, b) => a - b).map((rank) => kept[rank]);
  }
  return { index: kept, weights: kept.map((at) => w[at]), losses: kept.map((at) => l[at]) };
}
