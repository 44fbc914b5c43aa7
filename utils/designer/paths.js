"use strict";
// Camera paths of the path designer: keyframes to the camera of every frame, txt and json.
// The formulas are those of utils/trajectory.py. Matrices are arrays of rows.
//
// A path: {name, anchor, between, ease, still, pivot, tracks, base}. tracks: {axis: [[t, value],
// ...]}, t in [0, 1] over the video. between: "lines", "smooth" (through all keys), or "spline" (as
// data_gen.py joins four or more numbers of a txt). still: the one source frame shown, or null.
// base: cameras of a file that the path moves relative to, or null.
const ORBIT = ["phi", "theta", "r"];
const FREE = ["x", "y", "z", "yaw", "pitch", "roll"];
const AXES = [...ORBIT, "zoom", ...FREE];
const DEGREES = ["phi", "theta", "yaw", "pitch", "roll"];
const FAR = 1e6;

// ---- matrices -----------------------------------------------------------------------------------

function times(a, b) {
  return a.map((row) => b[0].map((_, j) => row.reduce((sum, value, i) => sum + value * b[i][j], 0)));
}

function identity(n) {
  return Array.from({length: n}, (_, i) => Array.from({length: n}, (_, j) => Number(i === j)));
}

/** By Gauss and Jordan, with pivots. */
function inverse(matrix) {
  const n = matrix.length;
  const eye = identity(n);
  const rows = matrix.map((row, i) => [...row, ...eye[i]]);
  for (let i = 0; i < n; i++) {
    let best = i;
    for (let j = i + 1; j < n; j++) {
      if (Math.abs(rows[j][i]) > Math.abs(rows[best][i])) best = j;
    }
    [rows[i], rows[best]] = [rows[best], rows[i]];
    const first = rows[i][i];
    rows[i] = rows[i].map((value) => value / first);
    for (let j = 0; j < n; j++) {
      const factor = rows[j][i];
      if (j !== i && factor) rows[j] = rows[j].map((value, c) => value - factor * rows[i][c]);
    }
  }
  return rows.map((row) => row.slice(n));
}

/** 3 x 3: turns axis a towards axis b. */
function rotation(degrees, a, b) {
  const matrix = identity(3);
  const angle = degrees * Math.PI / 180;
  matrix[a][a] = matrix[b][b] = Math.cos(angle);
  matrix[b][a] = Math.sin(angle);
  matrix[a][b] = -Math.sin(angle);
  return matrix;
}

function pose(turn, place) {
  return [...turn.map((row, i) => [...row, place[i]]), [0, 0, 0, 1]];
}

// ---- between keys -------------------------------------------------------------------------------

/** Values at `at`, sorted, of lines between keys [[t, value], ...]. */
function lines(keys, at) {
  let i = 0;
  return at.map((t) => {
    while (i < keys.length - 2 && t >= keys[i + 1][0]) i++;
    const [a, b] = [keys[i], keys[Math.min(i + 1, keys.length - 1)]];
    if (t <= a[0] || a === b) return a[1];
    return t >= b[0] ? b[1] : a[1] + (b[1] - a[1]) / (b[0] - a[0]) * (t - a[0]);
  });
}

/** The same of cubics through all keys that never overshoot them (Fritsch and Carlson, 1980). */
function smooth(keys, at) {
  if (keys.length < 3) return lines(keys, at);
  const widths = keys.slice(1).map(([t], i) => t - keys[i][0]);
  const slopes = keys.slice(1).map(([, value], i) => (value - keys[i][1]) / widths[i]);
  const speeds = keys.map((_, i) => {
    if (i === 0) return slopes[0];
    if (i === slopes.length) return slopes[i - 1];
    const [before, after] = [slopes[i - 1], slopes[i]];
    if (before * after <= 0) return 0;
    const [a, b] = [2 * widths[i] + widths[i - 1], widths[i] + 2 * widths[i - 1]];
    return (a + b) / (a / before + b / after);
  });
  let i = 0;
  return at.map((t) => {
    while (i < keys.length - 2 && t >= keys[i + 1][0]) i++;
    const s = Math.max(0, Math.min(1, (t - keys[i][0]) / widths[i]));
    const [a, b] = [keys[i][1], keys[i + 1][1]];
    const [da, db] = [speeds[i] * widths[i], speeds[i + 1] * widths[i]];
    return a + s * (da + s * (3 * (b - a) - 2 * da - db + s * (2 * (a - b) + da + db)));
  });
}

/** Whether keys lie at even times, as those of a txt do. */
function isEven(keys) {
  const last = keys.length - 1;
  return keys.length === 1 || keys.every(([t], i) => Math.abs(t - i / last) < 1e-9);
}

/** Values of a track at moments `at` in [0, 1]; without keys `usual`. */
function valuesOf(keys, usual, between, at) {
  if (!keys || !keys.length) return at.map(() => usual);
  if (keys.length === 1) return at.map(() => keys[0][1]);
  if (between === "smooth") return smooth(keys, at);
  if (between === "lines" || keys.length < 4) return lines(keys, at);
  const values = spline(keys.map(([, value]) => value), at);
  values[0] = keys[0][1];
  values[values.length - 1] = keys[keys.length - 1][1];
  return values;
}

/** Where on its path a camera is at t in [0, 1], if it starts and ends gently. */
function eased(t) {
  return t * t * (3 - 2 * t);
}

/** The moments of all frames in [0, 1]. */
function moments(count, ease) {
  const at = Array.from({length: count}, (_, i) => count > 1 ? i / (count - 1) : 0);
  return ease ? at.map(eased) : at;
}

// ---- from paths to cameras ----------------------------------------------------------------------

/** {axis: value of every frame}. */
function curves(path, count) {
  const at = moments(count, path.ease);
  const found = {};
  for (const axis of AXES) {
    found[axis] = valuesOf(path.tracks[axis], Number(axis === "zoom"), path.between, at);
  }
  return found;
}

/** Source camera to target camera of an orbit: relative_motion of utils/trajectory.py. */
function orbit(phi, theta, r, pivot) {
  const turn = times(rotation(phi, 2, 0), rotation(theta, 1, 2));
  const moved = times(turn, pivot.map((value) => [value * (1 + r)]));
  return pose(turn, pivot.map((value, i) => value - moved[i][0]));
}

/** Target camera to the camera that the path moves relative to, of one frame's values. */
function relativePose(values, pivot) {
  const {phi, theta, r, x, y, z, yaw, pitch, roll} = values;
  let c2w = identity(4);
  if (phi || theta || r) c2w = inverse(orbit(phi, theta, r, pivot));
  if (!(x || y || z || yaw || pitch || roll)) return c2w;
  const turn = times(times(rotation(yaw, 2, 0), rotation(pitch, 1, 2)), rotation(roll, 0, 1));
  return times(c2w, pose(turn, [x, y, z].map((value) => value * pivot[2])));
}

/** {c2w, intrinsics, frames} of every frame, as --cameras reads them: c2w relative to the source's.
 *
 * source: {k: of every frame, c2w: camera to world of every frame or null, pivot}.
 */
function cameras(path, source) {
  const count = source.k.length;
  const values = curves(path, count);
  const pivot = path.pivot ? path.pivot.point : source.pivot;
  const found = {c2w: [], intrinsics: [], frames: []};
  for (let i = 0; i < count; i++) {
    const now = Object.fromEntries(AXES.map((axis) => [axis, values[axis][i]]));
    const frame = path.still ?? i;
    let c2w = relativePose(now, pivot);
    if (path.base) c2w = isIdentity(c2w) ? path.base.c2w[i] : times(path.base.c2w[i], c2w);
    if (path.anchor === "first" && source.c2w) {
      c2w = times(times(inverse(source.c2w[frame]), source.c2w[0]), c2w);
    }
    const [[fx, a, cx], [b, fy, cy], last] = path.base ? path.base.intrinsics[i] : source.k[i];
    found.c2w.push(c2w);
    found.intrinsics.push([[fx * now.zoom, a, cx], [b, fy * now.zoom, cy], last]);
    found.frames.push(frame);
  }
  return found;
}

function isIdentity(matrix) {
  return matrix.every((row, i) => row.every((value, j) => value === Number(i === j)));
}

// ---- editing ------------------------------------------------------------------------------------

function newPath(name) {
  return {name, anchor: "source", between: "lines", ease: false, still: null, pivot: null,
          base: null, tracks: {phi: [[0, 0]], theta: [[0, 0]], r: [[0, 0]]}};
}

/** The moments of all keys, sorted. */
function keyTimes(path) {
  const all = Object.values(path.tracks).flatMap((keys) => keys.map(([t]) => t));
  return [...new Set(all)].sort((a, b) => a - b);
}

/** Values of a path at one moment of its video, by axis. */
function valuesAt(path, t) {
  const around = [0, t, 1];  // valuesOf pins the first and last of what it is asked for
  return Object.fromEntries(AXES.map((axis) =>
    [axis, valuesOf(path.tracks[axis], Number(axis === "zoom"), path.between, around)[1]]));
}

/** Let a path go through its keys, once it may not be joined as a txt is.
 *
 * Keys of a smoothing spline move to where it passes, so that the path stays about where it was.
 */
function goThroughKeys(path) {
  if (path.between === "spline") {
    const all = keyTimes(path).map((t) => [t, valuesAt(path, t)]);
    for (const axis of Object.keys(path.tracks)) {
      path.tracks[axis] = all.map(([t, values]) => [t, values[axis]]);
    }
  }
  const most = Math.max(...Object.values(path.tracks).map((keys) => keys.length));
  path.between = most > 3 ? "smooth" : "lines";
}

/** Set a keyframe at t: those values of it that `changes` gives, the others as they are there. */
function setKey(path, t, changes) {
  const isCurved = Object.values(path.tracks).some((keys) => keys.length > 3);
  if (path.between === "spline" && (isCurved || !keyTimes(path).includes(t))) goThroughKeys(path);
  const now = {...valuesAt(path, t), ...changes};
  const before = keyTimes(path);
  for (const axis of new Set([...ORBIT, ...Object.keys(path.tracks), ...Object.keys(changes)])) {
    const usual = Number(axis === "zoom");
    const keys = path.tracks[axis] ||= before.map((time) => [time, usual]);
    const there = keys.find(([time]) => time === t);
    if (there) there[1] = now[axis];
    else keys.push([t, now[axis]]);
    keys.sort((a, b) => a[0] - b[0]);
  }
  if (before.length < 4 && keyTimes(path).length > 3) path.between = "smooth";
}

function moveKey(path, from, to) {
  if (path.between === "spline" && keyTimes(path).length > 3) goThroughKeys(path);
  for (const keys of Object.values(path.tracks)) {
    for (const key of keys) if (key[0] === from) key[0] = to;
  }
}

function deleteKey(path, t) {
  if (path.between === "spline") goThroughKeys(path);
  for (const [axis, keys] of Object.entries(path.tracks)) {
    const left = keys.filter(([time]) => time !== t);
    if (left.length) path.tracks[axis] = left;
    else if (ORBIT.includes(axis)) path.tracks[axis] = [[0, 0]];
    else delete path.tracks[axis];
  }
}

/** Add a preset of an amount to a path. preset: {zero, one}, its keyframes of amounts 0 and 1. */
function addPreset(path, {zero, one}, amount, middle) {
  const combine = {zoom: (a, b) => a * b};
  for (const [axis, keys] of Object.entries(one)) {
    if (axis === "frozen") {
      path.still = middle;
      continue;
    }
    const added = keys.map((value, i) =>
      [i / (keys.length - 1), zero[axis][i] + amount * (value - zero[axis][i])]);
    const usual = Number(axis === "zoom");
    const there = path.tracks[axis] || [[0, usual]];
    const all = [...new Set([...there, ...added].map(([t]) => t))].sort((a, b) => a - b);
    const [before, after] = [valuesOf(there, usual, path.between, all), lines(added, all)];
    path.tracks[axis] = all.map((t, i) =>
      [t, (combine[axis] || ((a, b) => a + b))(before[i], after[i])]);
    if (all.length > 3 && path.between !== "smooth") {
      path.between = isEven(path.tracks[axis]) ? "spline" : "smooth";
    }
  }
}

// ---- files --------------------------------------------------------------------------------------

/** What keeps a path from being written as a txt, in words, or null. */
function whyNoTxt(path) {
  const free = FREE.some((axis) => (path.tracks[axis] || []).some(([, value]) => value));
  if (path.base) return "it began as a camera file";
  if (free) return "it moves freely, not on an orbit";
  if ((path.tracks.zoom || []).some(([, value]) => value !== 1)) return "its focal length changes";
  if (path.ease) return "it is eased";
  if (path.still !== null) return "time stands still";
  for (const axis of ORBIT) {
    const keys = path.tracks[axis];
    if (!isEven(keys)) return `its keys of ${axis} are not evenly spread`;
    if (keys.length > 2 && path.between === "smooth") return "it is smooth";
    if (keys.length > 3 && path.between !== "spline") return "a txt does not pass through four keys";
  }
  return null;
}

function toTxt(path) {
  const numbers = (axis) => path.tracks[axis].map(([, value]) => String(value)).join(" ");
  return `${ORBIT.map(numbers).join("\n")}\n`;
}

/** The path of a txt: three lines of numbers; # begins a comment. Throws words for people. */
function fromTxt(name, text) {
  const rows = text.split("\n").map((line) => line.split("#")[0].trim()).filter(Boolean);
  if (rows.length !== 3) {
    throw new Error(`${name} has ${rows.length} lines of numbers; expected three: phi, theta, r`);
  }
  const path = {...newPath(name.replace(/\.txt$/, "")), between: "spline"};
  rows.forEach((row, i) => {
    const values = row.split(/[\s,]+/).filter(Boolean).map(Number);
    if (!values.every((value) => Math.abs(value) <= FAR)) {
      throw new Error(`${name}, line ${i + 1}: expected numbers, got ${row.slice(0, 60)}`);
    }
    const last = values.length - 1;
    path.tracks[ORBIT[i]] = values.map((value, j) => [last ? j / last : 0, value]);
  });
  return path;
}

function toJson(path, source) {
  return JSON.stringify({...cameras(path, source), design: path});
}

/** The path of a json that this page saved, or of one with c2w or keys. Throws words for people. */
function fromJson(name, text, source) {
  let data;
  try {
    data = JSON.parse(text);
  } catch {
    throw new Error(`${name} is no JSON`);
  }
  if (Array.isArray(data)) data = {c2w: data};
  const label = name.replace(/\.json$/, "");
  if (data?.design?.tracks) {
    const own = {...newPath(label), ...data.design, name: label};
    const again = cameras(own, source);
    const isSame = JSON.stringify(again) === JSON.stringify({
      c2w: data.c2w, intrinsics: data.intrinsics, frames: data.frames});
    if (isSame) return own;  // of this very video
  }
  return {...newPath(label), ...fromCameras(name, data, source)};
}

/** {base, still} of the numbers that --cameras reads. */
function fromCameras(name, data, source) {
  const count = source.k.length;
  const is = (value, n) => Array.isArray(value) && value.length === n &&
    value.every((row) => Array.isArray(row) && row.length === n && row.every(Number.isFinite));
  const every = (what, value, n, usual) => {
    if (value === undefined) return usual;
    if (is(value, n)) return Array.from({length: count}, () => value);
    if (Array.isArray(value) && value.length === count && value.every((one) => is(one, n))) return value;
    throw new Error(`${name}: ${what} must be ${n} x ${n}, or so for each of the ${count} frames`);
  };
  let c2w = every("c2w", data?.c2w, 4, null);
  if (!c2w && Array.isArray(data?.keys) && data.keys.length && data.keys.every((key) => is(key, 4))) {
    c2w = betweenPoses(data.keys, count);
  }
  if (!c2w) throw new Error(`${name} has neither c2w nor keys: no camera file`);
  const intrinsics = every("intrinsics", data.intrinsics, 3, source.k);
  const {frames} = data;
  const first = Array.isArray(frames) ? frames[0] : frames;
  const all = Array.from({length: count}, (_, i) => Array.isArray(frames) ? frames[i] : first);
  const isStill = count > 1 && all.every((frame) => frame === first) && first in source.k;
  if (data.frames !== undefined && !isStill && !all.every((frame, i) => frame === i)) {
    throw new Error(`${name}: frames must be 0 to ${count - 1}, or one of them ${count} times`);
  }
  return {base: {c2w, intrinsics}, still: data.frames !== undefined && isStill ? first : null};
}

/** between_keys of utils/trajectory.py: even turns about one axis and even moves between poses. */
function betweenPoses(keys, count) {
  return moments(count, false).map((t) => {
    const at = t * (keys.length - 1);
    const i = Math.max(0, Math.min(Math.floor(at), keys.length - 2));
    const [a, b] = [keys[i], keys[Math.min(i + 1, keys.length - 1)]];
    const turn = (matrix) => matrix.slice(0, 3).map((row) => row.slice(0, 3));
    const across = times(inverse(turn(a)), turn(b));
    const place = [0, 1, 2].map((axis) => a[axis][3] + (at - i) * (b[axis][3] - a[axis][3]));
    return pose(times(turn(a), partOfTurn(across, at - i)), place);
  });
}

/** A share of a rotation matrix's turn about its axis (Rodrigues' formula). */
function partOfTurn(matrix, part) {
  const axis = [matrix[2][1] - matrix[1][2], matrix[0][2] - matrix[2][0],
                matrix[1][0] - matrix[0][1]];
  const length = Math.hypot(...axis);
  const angle = Math.atan2(length, matrix[0][0] + matrix[1][1] + matrix[2][2] - 1);
  if (length < 1e-12) return identity(3);
  const [x, y, z] = axis.map((value) => value / length);
  const cross = [[0, -z, y], [z, 0, -x], [-y, x, 0]];
  const [sin, cos] = [Math.sin(part * angle), 1 - Math.cos(part * angle)];
  const square = times(cross, cross);
  return identity(3).map((row, i) =>
    row.map((value, j) => value + sin * cross[i][j] + cos * square[i][j]));
}
