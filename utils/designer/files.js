"use strict";
// Path files of the path designer: txt for --trajs, json for --cameras. What utils/camera_paths.py
// and utils/sequence.py refuse is refused here too, in words for people.
const OFF = 1e-3;  // that a rotation, and a skew in focal lengths, may be off by
const NEEDS = "# needs ";  // begins a comment of a txt: the flags that it is to be used with
const LINE_ENDS = /\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]/;
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;

// ---- txt ----------------------------------------------------------------------------------------

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
    if (keys.length > 3 && path.between !== "spline") return "a txt does not go through four keys";
  }
  return null;
}

/** The flags of data_gen.py that a txt of a path is to be used with, beside those of the page. */
function flagsOf(path) {
  return [path.pivot && `--pivot ${path.pivot.pixel}`,
          path.anchor === "first" && "--anchor first"].filter(Boolean);
}

function toTxt(path) {
  const numbers = (axis) => path.tracks[axis].map(([, value]) => String(value)).join(" ");
  const flags = flagsOf(path);
  const needs = flags.length ? `${NEEDS}${flags.join(" ")}\n` : "";
  return `${needs}${ORBIT.map(numbers).join("\n")}\n`;
}

/** What a txt's comment of toTxt says it needs: {pixel or null, anchor}. */
function needsOf(text) {
  const line = text.split(LINE_ENDS).find((each) => each.startsWith(NEEDS)) || "";
  const [, x, y] = line.match(/--pivot (\d+),(\d+)/) || [];
  return {pixel: x === undefined ? null : [Number(x), Number(y)],
          anchor: line.includes("--anchor first") ? "first" : "source"};
}

/** The path of a txt: read_keyframes of utils/camera_paths.py. */
function fromTxt(name, text) {
  const {far, most_keys: most} = data.constants;
  const rows = text.split(LINE_ENDS)
    .map((line) => line.split("#")[0].replaceAll(",", " ").split(/\s+/).filter(Boolean))
    .filter((words) => words.length);
  if (rows.length !== 3) {
    throw new Error(`${name} has ${rows.length} lines of numbers; expected three: phi, theta, r`);
  }
  const path = {...newPath(name.replace(/\.txt$/, "")), between: "spline"};
  rows.forEach((words, i) => {
    const wrong = words.find((word) => !NUMBER.test(word) || Math.abs(Number(word)) > far);
    if (wrong !== undefined) {
      throw new Error(`${name}, line ${i + 1}: expected numbers, got ${wrong.slice(0, 60)}`);
    }
    if (words.length > most) {
      throw new Error(`${name}, line ${i + 1} has ${words.length} numbers; expected up to ${most}`);
    }
    const even = evenly(words.length);
    path.tracks[ORBIT[i]] = words.map((word, j) => [even[j], Number(word)]);
  });
  return path;
}

// ---- json ---------------------------------------------------------------------------------------

function toJson(path, source) {
  return JSON.stringify({...cameras(path, source), design: path});
}

/** The path of a json that this page saved, or of one with c2w or keys. */
function fromJson(name, text, source) {
  let told;
  try {
    told = JSON.parse(text);
  } catch {
    throw new Error(`${name} is no JSON`);
  }
  if (Array.isArray(told)) told = {c2w: told};
  const label = name.replace(/\.json$/, "");
  const base = fromCameras(name, told, source);
  const {c2w, intrinsics, frames, design} = told;
  const own = {...newPath(label), ...design, name: label};
  const isOfThisVideo = isPath(own, source) &&
    JSON.stringify(cameras(own, source)) === JSON.stringify({c2w, intrinsics, frames});
  return isOfThisVideo ? own : {...newPath(label), ...base};
}

/** Whether something kept or loaded is a path that this page can show. */
function isPath(one, source) {
  const isTrack = ([axis, keys]) => AXES.includes(axis) && keys.length > 0 &&
    keys.every(([t, value], i) => t >= 0 && t <= 1 && (i === 0 || t > keys[i - 1][0]) &&
      Math.abs(value) <= data.constants.far);
  try {
    const {still, pivot, tracks} = one;
    return typeof one.name === "string" && ORBIT.every((axis) => axis in tracks) &&
      ["lines", "smooth", "spline"].includes(one.between) &&
      Object.entries(tracks).every(isTrack) && (still === null || isFrame(still, source)) &&
      (!pivot || [...pivot.pixel, ...pivot.point].every(Number.isFinite)) &&
      cameras(one, source).c2w.flat(2).every(Number.isFinite);
  } catch {  // something is not there, or of another kind
    return false;
  }
}

const isFrame = (value, source) => Number.isInteger(value) && value >= 0 && value < source.k.length;

function isMatrix(value, n) {
  return Array.isArray(value) && value.length === n &&
    value.every((row) => Array.isArray(row) && row.length === n && row.every(Number.isFinite));
}

/** A matrix of every frame: of each, or one for all; undefined where there is none. */
function matrixOfFrames(label, value, n, count) {
  if (value === undefined) return undefined;
  if (isMatrix(value, n)) return Array.from({length: count}, () => value);
  const isOfEach = Array.isArray(value) && value.length === count &&
    value.every((one) => isMatrix(one, n));
  if (isOfEach) return value;
  throw new Error(`${label} must be ${n} x ${n}, or so for each of the ${count} frames`);
}

/** {base, still} of the numbers that --cameras reads: read_cameras of utils/camera_paths.py. */
function fromCameras(name, told, source) {
  const count = source.k.length;
  const c2w = matrixOfFrames(`${name}: c2w`, told?.c2w, 4, count) ?? fromKeys(name, told, count);
  const intrinsics = matrixOfFrames(`${name}: intrinsics`, told.intrinsics, 3, count) ?? source.k;
  c2w.forEach((pose, i) => checkPose(`${name}: c2w ${i}`, pose));
  intrinsics.forEach((k, i) => checkK(`${name}: intrinsics ${i}`, k));
  const base = {c2w, intrinsics};
  const {frames} = told;
  if (frames === undefined) return {base, still: null};
  const isOfEach = Array.isArray(frames) && frames.length === count;
  if (isOfEach && frames.every((frame, i) => frame === i)) return {base, still: null};
  const isStill = isOfEach && frames.every((frame) => frame === frames[0]);
  if (isStill && isFrame(frames[0], source)) return {base, still: frames[0]};
  throw new Error(`${name}: frames must be 0 to ${count - 1}, or one of them ${count} times`);
}

/** Poses of every frame between the key poses of a json. */
function fromKeys(name, told, count) {
  const keys = told?.keys;
  const most = data.constants.most_keys;
  const areKeys = Array.isArray(keys) && keys.length && keys.every((key) => isMatrix(key, 4));
  if (!areKeys) throw new Error(`${name} has neither c2w nor keys: no camera file`);
  if (keys.length > most) throw new Error(`${name}: ${keys.length} keys; expected up to ${most}`);
  keys.forEach((key, i) => checkPose(`${name}: key ${i}`, key));
  return betweenPoses(keys, count);
}

/** Throws unless a matrix is a rotation and a translation. */
function checkPose(label, pose) {
  const turn = turnOf(pose);
  const square = multiply(turn, transposed(turn));
  const off = Math.max(...square.flatMap((row, i) => row.map((value, j) =>
    Math.abs(value - Number(i === j)))));
  const isLastRow = pose[3].every((value, i) =>
    Math.abs(value - Number(i === 3)) <= (i === 3 ? 1.1e-5 : 1e-6));
  const [a, b, c] = turn;
  const determinant = a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0]) +
    a[2] * (b[0] * c[1] - b[1] * c[0]);
  if (isLastRow && off <= OFF && determinant > 0) return;
  throw new Error(`${label} is no rotation and translation: expected R R^T = 1, determinant 1, ` +
                  "last row 0 0 0 1");
}

/** Throws unless a matrix is the K of a pinhole camera, its principal point in the picture. */
function checkK(label, [[fx, skew, cx], [other, fy, cy], end]) {
  const [width, height] = data.video;
  const isPinhole = fx > 0 && fy > 0 &&
    Math.abs(skew) <= OFF * fx && Math.abs(other) <= OFF * fy &&
    end[0] === 0 && end[1] === 0 && end[2] === 1;
  if (isPinhole && cx > 0 && cx < width && cy > 0 && cy < height) return;
  throw new Error(`${label} is no K: expected fx 0 cx, 0 fy cy, 0 0 1, focal lengths above 0 and ` +
                  `the principal point within ${width} x ${height}`);
}

// ---- between key poses --------------------------------------------------------------------------

const turnOf = (pose) => pose.slice(0, 3).map((row) => row.slice(0, 3));
const transposed = (matrix) => matrix[0].map((_, j) => matrix.map((row) => row[j]));

/** between_keys of utils/trajectory.py: even turns about one axis and even moves between poses. */
function betweenPoses(keys, count) {
  const turns = keys.map((key) => quaternionOf(turnOf(key)));
  return evenly(count).map((t) => {
    const at = t * (keys.length - 1);
    const i = Math.max(0, Math.min(Math.floor(at), keys.length - 2));
    const next = Math.min(i + 1, keys.length - 1);
    const place = [0, 1, 2].map((axis) =>
      keys[i][axis][3] + (at - i) * (keys[next][axis][3] - keys[i][axis][3]));
    const across = partOfTurn(quaternionProduct(conjugate(turns[i]), turns[next]), at - i);
    return pose(matrixOf(quaternionProduct(turns[i], across)), place);
  });
}

/** A quaternion [x, y, z, w] of a rotation matrix, by its largest part, as scipy finds it. */
function quaternionOf(m) {
  const trace = m[0][0] + m[1][1] + m[2][2];
  const parts = [m[0][0], m[1][1], m[2][2], trace];
  const i = parts.indexOf(Math.max(...parts));
  const found = [m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1], 1 + trace];
  if (i < 3) {
    const [j, k] = [(i + 1) % 3, (i + 2) % 3];
    found[i] = 1 - trace + 2 * m[i][i];
    found[j] = m[j][i] + m[i][j];
    found[k] = m[k][i] + m[i][k];
    found[3] = m[k][j] - m[j][k];
  }
  const length = Math.hypot(...found);
  return found.map((value) => value / length);
}

const conjugate = ([x, y, z, w]) => [-x, -y, -z, w];

function quaternionProduct([a, b, c, d], [x, y, z, w]) {
  return [d * x + a * w + b * z - c * y, d * y + b * w + c * x - a * z,
          d * z + c * w + a * y - b * x, d * w - a * x - b * y - c * z];
}

/** A share of a quaternion's turn, the shorter way; a half turn goes about +axis, as scipy's. */
function partOfTurn(turn, part) {
  const [x, y, z, w] = turn[3] < 0 ? turn.map((value) => -value) : turn;
  const length = Math.hypot(x, y, z);
  if (length < 1e-15) return [0, 0, 0, 1];
  const half = part * Math.atan2(length, w);
  const scale = Math.sin(half) / length;
  return [x * scale, y * scale, z * scale, Math.cos(half)];
}

function matrixOf([x, y, z, w]) {
  return [[1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
          [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
          [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]];
}
