"use strict";
// The cubic smoothing spline that data_gen.py joins four or more numbers of a txt by: what scipy's
// UnivariateSpline gives with its default smoothing (P. Dierckx, Curve and Surface Fitting with
// Splines, 1993: knots are added where it misses most, until the squares of what it misses sum to
// less than the count of keys; then it is smoothed until they sum to just that).
const TOLERANCE = 0.001;  // of that sum

/** Values at moments `at` in [0, 1] of the spline of keys evenly spread over [0, 1]. */
function spline(keys, at) {
  if (!keys.every(Number.isFinite)) return at.map(() => NaN);  // nothing would be close to these
  const count = keys.length;
  const x = evenly(count);
  const fit = findKnots(x, keys);
  const weights = fit.missed < count - TOLERANCE * count && fit.knots.length > 8
    ? relax(x, keys, fit) : fit.weights;
  return at.map((t) => evaluate(fit.knots, weights, t));
}

/** {knots, weights, missed: the sum of squares, first: that of one cubic, diagonal}. */
function findKnots(x, keys) {
  const count = keys.length;
  const accuracy = TOLERANCE * count;
  let knots = [0, 0, 0, 0, 1, 1, 1, 1];
  let inside = [count - 2];  // keys strictly between knots
  let limit = Math.max(count >> 1, 8);  // of knots, at which scipy begins to count anew
  let [adding, before, first] = [0, 0, null];
  for (;;) {
    const fit = leastSquares(x, keys, knots, null);
    first ??= fit.missed;
    const over = fit.missed - count;
    if (Math.abs(over) < accuracy || over < 0) return {...fit, knots, first};
    if (knots.length === 8) {
      adding = 1;
    } else if (knots.length === limit) {
      [adding, limit] = [1, count + 4];
    } else {
      const gained = before - fit.missed;
      const wanted = gained > accuracy ? Math.trunc(adding * over / gained) : 2 * adding;
      adding = Math.min(2 * adding, Math.max(wanted, adding >> 1, 1));
    }
    if (knots.length === 8) limit = limit === 8 ? count + 4 : limit;
    before = fit.missed;
    const parts = missedBetween(x, keys, knots, fit.weights);
    for (let i = 0; i < adding && knots.length < limit; i++) {
      addKnot(x, knots, inside, parts);
      if (knots.length === count + 4) {
        knots = [0, 0, 0, 0, ...x.slice(2, -2), 1, 1, 1, 1];
        break;
      }
    }
  }
}

/** The sums of squares between neighbouring knots; a key on a knot counts half on each side. */
function missedBetween(x, keys, knots, weights) {
  const parts = [];
  let [next, part] = [4, 0];
  x.forEach((at, i) => {
    const square = (evaluate(knots, weights, at) - keys[i]) ** 2;
    part += square;
    if (at >= knots[next] && next < knots.length - 4) {
      parts.push(part - square / 2);
      part = square / 2;
      next++;
    }
  });
  return [...parts, part];
}

/** Put a knot on the middle key of where most is missed. */
function addKnot(x, knots, inside, parts) {
  let [most, where, begin, start] = [0, 0, 0, 0];
  inside.forEach((keys, j) => {
    if (keys && parts[j] > most) [most, where, start] = [parts[j], j, begin];
    begin += keys + 1;
  });
  const keys = inside[where];
  const half = (keys >> 1) + 1;
  inside.splice(where, 1, half - 1, keys - half);
  parts.splice(where, 1, most * (half - 1) / keys, most * (keys - half) / keys);
  knots.splice(4 + where, 0, x[start + half]);
}

/** Weights of the B-splines that are smooth enough to miss the keys by their count in all. */
function relax(x, keys, {knots, missed, first, diagonal}) {
  const count = keys.length;
  const accuracy = TOLERANCE * count;
  const jumps = thirdDerivativeJumps(knots);
  let low = {p: 0, f: first - count};
  let high = {p: -1, f: missed - count};
  let p = diagonal.length / diagonal.reduce((sum, value) => sum + value);
  let [isLow, isHigh] = [false, false];  // whether p is known to lie above low, below high
  for (let i = 1; ; i++) {
    const fit = leastSquares(x, keys, knots, {jumps, p});
    const now = {p, f: fit.missed - count};
    if (Math.abs(now.f) < accuracy || i === 20) return fit.weights;
    if (!isHigh && now.f - high.f <= accuracy) {
      high = now;
      p *= 0.04;
      if (p <= low.p) p = 0.9 * low.p + 0.1 * now.p;
      continue;
    }
    isHigh ||= now.f < 0;
    if (!isLow && low.f - now.f <= accuracy) {
      low = now;
      p /= 0.04;
      if (high.p >= 0 && p >= high.p) p = 0.1 * now.p + 0.9 * high.p;
      continue;
    }
    isLow ||= now.f > 0;
    if (now.f >= low.f || now.f <= high.f) return fit.weights;
    p = rational(low, now, high);
    if (now.f < 0) high = now;
    else low = now;
  }
}

/** Where the rational function through three points is 0; high.p may be infinite, said by -1. */
function rational(low, now, high) {
  if (high.p <= 0) {
    return (low.p * (low.f - high.f) * now.f - now.p * (now.f - high.f) * low.f) /
      ((low.f - now.f) * high.f);
  }
  const [a, b, c] = [low.f * (now.f - high.f), now.f * (high.f - low.f), high.f * (low.f - now.f)];
  return -(low.p * now.p * c + now.p * high.p * a + high.p * low.p * b) /
    (low.p * a + now.p * b + high.p * c);
}

/** How the third derivatives of five B-splines jump at each inner knot. */
function thirdDerivativeJumps(knots) {
  const rows = [];
  const scale = knots.length - 7;
  for (let l = 4; l < knots.length - 4; l++) {
    const row = [];
    for (let j = 0; j < 5; j++) {
      let product = scale ** 3;
      for (let i = 0; i < 5; i++) {
        const other = l - 4 + j + i;
        if (other !== l) product *= knots[l] - knots[other];
      }
      row.push((knots[l + j] - knots[l - 4 + j]) / product);
    }
    rows.push({at: l - 4, row});
  }
  return rows;
}

/** The weights that miss keys least, with jumps counted by 1 / p if they are given. */
function leastSquares(x, keys, knots, smoothing) {
  const size = knots.length - 4;
  // [i][k]: row i, column i + k
  const matrix = Array.from({length: size}, () => new Float64Array(5));
  const right = new Float64Array(size);
  const count = (at, row, factor) => {
    for (let i = 0; i < row.length; i++) {
      for (let j = i; j < row.length; j++) matrix[at + i][j - i] += factor * row[i] * row[j];
    }
  };
  x.forEach((t, n) => {
    const at = interval(knots, t) - 3;
    const row = basis(knots, t, at + 3);
    count(at, row, 1);
    row.forEach((value, i) => { right[at + i] += value * keys[n]; });
  });
  if (smoothing) {
    for (const {at, row} of smoothing.jumps) count(at, row, smoothing.p ** -2);
  }
  const {weights, diagonal} = solve(matrix, right);
  const missed = x.reduce((sum, t, n) => sum + (evaluate(knots, weights, t) - keys[n]) ** 2, 0);
  return {weights, diagonal, missed};
}

/** A symmetric band matrix's solution, by Cholesky; diagonal: that of its root. */
function solve(matrix, right) {
  const size = right.length;
  const diagonal = [];
  for (let i = 0; i < size; i++) {
    const root = Math.sqrt(matrix[i][0]);
    diagonal.push(root);
    for (let k = 0; k < 5; k++) matrix[i][k] /= root;
    right[i] /= root;
    for (let j = 1; j < 5 && i + j < size; j++) {
      for (let k = j; k < 5; k++) matrix[i + j][k - j] -= matrix[i][j] * matrix[i][k];
      right[i + j] -= matrix[i][j] * right[i];
    }
  }
  const weights = new Float64Array(size);
  for (let i = size - 1; i >= 0; i--) {
    weights[i] = right[i];
    for (let k = 1; k < 5 && i + k < size; k++) weights[i] -= matrix[i][k] * weights[i + k];
    weights[i] /= diagonal[i];
  }
  return {weights, diagonal};
}

/** The knot at or before t, within the inner ones. */
function interval(knots, t) {
  let at = 3;
  while (at < knots.length - 5 && t >= knots[at + 1]) at++;
  return at;
}

/** The four cubic B-splines that are not 0 at t, in the interval after knots[at]. */
function basis(knots, t, at) {
  let values = [1];
  for (let degree = 1; degree < 4; degree++) {
    const next = new Array(degree + 1).fill(0);
    values.forEach((value, i) => {
      const [low, high] = [knots[at + 1 + i - degree], knots[at + 1 + i]];
      const part = value / (high - low);
      next[i] += part * (high - t);
      next[i + 1] += part * (t - low);
    });
    values = next;
  }
  return values;
}

function evaluate(knots, weights, t) {
  const at = interval(knots, t);
  return basis(knots, t, at).reduce((sum, value, i) => sum + value * weights[at - 3 + i], 0);
}
