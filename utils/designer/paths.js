"use strict";
// Camera paths of the path designer: from keyframes to the camera of every frame.
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

// ---- matrices -----------------------------------------------------------------------------------

function multiply(a, b) {
  return a.map((row) => b[0].map((_, j) =>
    row.reduce((sum, value, i) => sum + value * b[i][j], 0)));
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
  const even = evenly(keys.length);
  return keys.length === 1 || keys.every(([t], i) => Math.abs(t - even[i]) < 1e-9);
}

/** Values of a track at moments `at` in [0, 1]; without keys `usual`. */
function valuesOf(keys, usual, between, at) {
  if (!keys || !keys.length) return at.map(() => usual);
  if (keys.length === 1) return at.map(() => keys[0][1]);
  if (between === "smooth") return smooth(keys, at);
  if (between === "lines" || keys.length < 4) return lines(keys, at);
  const ends = {0: keys[0][1], 1: keys[keys.length - 1][1]};  // which trajectory.py sets too
  return spline(keys.map(([, value]) => value), at).map((value, i) => ends[at[i]] ?? value);
}

/** Where on its path a camera is at t in [0, 1], if it starts and ends gently. */
function eased(t) {
  return t * t * (3 - 2 * t);
}

/** `count` numbers from 0 to 1 at even steps; 0 alone if it is one. */
function evenly(count) {
  return Array.from({length: count}, (_, i) => i / Math.max(1, count - 1));
}

/** The moments of all frames in [0, 1]. */
function moments(count, ease) {
  return ease ? evenly(count).map(eased) : evenly(count);
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
  const turn = multiply(rotation(phi, 2, 0), rotation(theta, 1, 2));
  const moved = multiply(turn, pivot.map((value) => [value * (1 + r)]));
  return pose(turn, pivot.map((value, i) => value - moved[i][0]));
}

/** Orbiting camera to the camera that it leaves, of one frame's values; null for no orbit. */
function orbitPose({phi, theta, r}, pivot) {
  return phi || theta || r ? inverse(orbit(phi, theta, r, pivot)) : null;
}

/** The same of free moves, which follow the orbit; `radius` is their unit. */
function freePose({x, y, z, yaw, pitch, roll}, radius) {
  if (!(x || y || z || yaw || pitch || roll)) return null;
  const turn = multiply(rotation(yaw, 2, 0), rotation(pitch, 1, 2));
  return pose(multiply(turn, rotation(roll, 0, 1)), [x, y, z].map((value) => value * radius));
}

/** {c2w, intrinsics, frames} of every frame, as --cameras reads them: c2w relative to the source's.
 *
 * source: {k: of every frame, c2w: camera to world of every frame or null, pivot}. A path with a
 * base orbits about source.pivot as the base's camera sees it, but about a point that was picked,
 * path.pivot, where that lies in the source camera.
 */
function cameras(path, source) {
  const count = source.k.length;
  const values = curves(path, count);
  const pivot = path.pivot ? path.pivot.point : source.pivot;
  const found = {c2w: [], intrinsics: [], frames: []};
  for (let i = 0; i < count; i++) {
    const now = Object.fromEntries(AXES.map((axis) => [axis, values[axis][i]]));
    const frame = path.still ?? i;
    const base = path.base ? path.base.c2w[i] : null;
    const around = orbitPose(now, pivot);
    const parts = path.pivot ? [around, base] : [base, around];
    if (path.anchor === "first" && source.c2w) {
      parts.unshift(inverse(source.c2w[frame]), source.c2w[0]);
    }
    parts.push(freePose(now, pivot[2]));
    const moved = parts.filter(Boolean);
    const [[fx, a, cx], [b, fy, cy], last] = path.base ? path.base.intrinsics[i] : source.k[i];
    found.c2w.push(moved.length ? moved.reduce(multiply) : identity(4));
    found.intrinsics.push([[fx * now.zoom, a, cx], [b, fy * now.zoom, cy], last]);
    found.frames.push(frame);
  }
  return found;
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
  return Object.fromEntries(AXES.map((axis) =>
    [axis, valuesOf(path.tracks[axis], Number(axis === "zoom"), path.between, [t])[0]]));
}

/** Whether an axis has so many keys that a txt's would not be joined by lines. */
function isCurved(path) {
  return Object.values(path.tracks).some((keys) => keys.length > 3);
}

/** Let a path go through its keys, once it may not be joined as a txt is.
 *
 * Keys of a smoothing spline move to where it passes, so that the path stays about where it was.
 */
function goThroughKeys(path) {
  if (path.between === "spline") {
    const at = keyTimes(path);
    for (const [axis, keys] of Object.entries(path.tracks)) {
      const values = valuesOf(keys, Number(axis === "zoom"), "spline", at);
      path.tracks[axis] = at.map((t, i) => [t, values[i]]);
    }
  }
  path.between = isCurved(path) ? "smooth" : "lines";
}

/** Set a keyframe at t: those values of it that `changes` gives, the others as they are there. */
function setKey(path, t, changes) {
  const isNew = !keyTimes(path).includes(t);
  if (path.between === "spline" && (isCurved(path) || isNew)) goThroughKeys(path);
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

/** Add a preset of an amount to a path. preset: {zero, one}, its keyframes of amounts 0 and 1.
 *
 * A path of a txt's keys becomes what `joined` of utils/trajectory.py makes of it and the preset.
 */
function addPreset(path, {zero, one}, amount, middle) {
  const isOfTxt = path.between === "spline" || (path.between === "lines" && !isCurved(path));
  const {between} = path;
  for (const [axis, keys] of Object.entries(one)) {
    if (axis === "frozen") {
      path.still = middle;
      continue;
    }
    const even = evenly(keys.length);
    const added = keys.map((value, i) =>
      [even[i], zero[axis][i] + amount * (value - zero[axis][i])]);
    path.tracks[axis] = addedTrack(path.tracks[axis], added, axis === "zoom", isOfTxt, between);
  }
  if (!isOfTxt || !isCurved(path)) return;
  const long = Object.values(path.tracks).filter((keys) => keys.length > 3);
  path.between = long.every(isEven) ? "spline" : "smooth";
}

/** The sum of two tracks, or the product of zooms; of even keys of a txt it is one of such keys. */
function addedTrack(track, added, isZoom, isOfTxt, between) {
  const there = track || [[0, Number(isZoom)]];
  const isJoined = isOfTxt && isEven(there);
  const all = [...new Set([...there, ...added].map(([t]) => t))].sort((a, b) => a - b);
  const at = isJoined ? evenly(Math.max(there.length, added.length)) : all;
  const before = valuesOf(there, Number(isZoom), isJoined ? "lines" : between, at);
  const more = lines(added, at);
  return at.map((t, i) => [t, isZoom ? before[i] * more[i] : before[i] + more[i]]);
}
