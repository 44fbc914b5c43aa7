"use strict";
// The path designer's page: the new view that is dragged, keys and curves, the overview, files.
// Words from data and files become text nodes, so that none of them is markup.
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const COLOURS = ["#0f8f98", "#d8722a", "#7d5fd3", "#3a9a50", "#c63d7c", "#8a7a16"];
const MANY_HOLES = 0.6;  // of a frame; data_gen.py warns of more
const POINTS = 4000;  // of the scene, that the overview draws
const UNDOS = 100;
const SIZES = {phi: 40, theta: 40, yaw: 40, pitch: 40, roll: 40};  // the least span of a curve
const FIELDS = {
  phi: ["phi", "degrees to the right"], theta: ["theta", "degrees up"],
  r: ["r", "closer, a fraction of the radius"], zoom: ["focal length", "pixels"],
  x: ["x", "right, in radii"], y: ["y", "down, in radii"], z: ["z", "forward, in radii"],
  yaw: ["yaw", "degrees to the right"], pitch: ["pitch", "degrees up"], roll: ["roll", "degrees"],
};
const MODES = {orbit: "Orbit", move: "Move", look: "Look"};
const HOLE_STYLES = {black: "Black", colour: "Pink", source: "Source"};
const source = {k: data.k, c2w: data.c2w, pivot: data.pivot};
const last = data.frames - 1;

const state = {paths: [], chosen: 0, frame: 0, mode: "orbit", holes: "colour", playing: false,
               isPicking: false, isSource: false, copied: null, saved: true, turn: 0};
const history = {undo: [], redo: []};
let shown = [];  // of each path: {cameras, curves, holes: share of each kept output frame}
let points = null;  // of the scene, at the frame that is shown
const look = {yaw: 35, pitch: -25, scale: 1.4};  // the overview's own camera

const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
const path = () => state.paths[state.chosen];
const kept = Math.ceil(data.frames / data.every);  // frames whose holes are counted
const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}%`;

function el(name, attributes = {}, ...children) {
  const isShape = ["svg", "path", "line"].includes(name);
  const node = isShape ? document.createElementNS("http://www.w3.org/2000/svg", name)
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function note(words, action = "Close", act = () => {}) {
  const [text, button] = $("note").children;
  text.textContent = words;
  button.textContent = action;
  button.onclick = () => {
    $("note").hidden = true;
    act();
  };
  $("note").hidden = false;
}

// ---- the worker ---------------------------------------------------------------------------------

/** Asks the warp one thing at a time: what is wanted of the view first, then what waits. */
class Warp {
  constructor() {
    const code = [$("shared").textContent, $("warp").textContent].join("\n");
    this.worker = new Worker(URL.createObjectURL(new Blob([code], {type: "text/javascript"})));
    this.worker.onmessage = ({data: {number, answer, error}}) => this.done(number, answer, error);
    this.waiting = [];
    this.number = 0;
    this.current = null;
  }

  /** The answer; of those with the same `only` that still wait, the newest alone is asked. */
  ask(ask, rest, only = null) {
    return new Promise((resolve, reject) => {
      if (only) this.waiting = this.waiting.filter((each) => each.only !== only);
      const one = {ask, rest, only, resolve, reject};
      if (only) this.waiting.unshift(one);
      else this.waiting.push(one);
      this.next();
    });
  }

  next() {
    if (this.current || !this.waiting.length) return;
    this.current = this.waiting.shift();
    this.worker.postMessage({...this.current.rest, ask: this.current.ask, number: ++this.number});
  }

  done(number, answer, error) {
    const {resolve, reject} = this.current;
    this.current = null;
    if (error) reject(new Error(error));
    else resolve(answer);
    this.next();
  }

  /** Forget what waits and is no view. */
  drop() {
    this.waiting = this.waiting.filter(({only}) => only);
  }
}

let warp;

// ---- what is shown ------------------------------------------------------------------------------

const pictureOf = (frame) => Math.floor(frame / data.every);

/** What the warp needs to know of an output frame of a path. */
function camera(cameras, i) {
  const frame = cameras.frames[i];
  return {picture: pictureOf(frame), k: data.k[frame], target: cameras.intrinsics[i],
          c2w: cameras.c2w[i]};
}

async function drawView() {
  const i = state.frame;
  const isSource = state.isSource || state.isPicking;
  const view = camera(shown[state.chosen].cameras, i);
  if (isSource) Object.assign(view, {c2w: identity(4), target: view.k});
  if (state.isPicking) Object.assign(view, {picture: 0, k: data.k[0], target: data.k[0]});
  const {pixels, share} = await warp.ask("view", {...view, holes: state.holes}, "view");
  $("view").getContext("2d").putImageData(new ImageData(pixels, data.width, data.height), 0, 0);
  $("share").textContent = `${percent(share)} holes`;
  $("share").classList.toggle("many", share > MANY_HOLES);
  $("share").hidden = isSource;
  $("what").hidden = !isSource;
  $("what").textContent = state.isPicking ? "Click what the camera shall turn about" : "Source";
}

async function drawPoints() {
  const frame = shown[state.chosen].cameras.frames[state.frame];
  const answer = await warp.ask("points", {picture: pictureOf(frame), k: data.k[frame],
                                           count: POINTS}, "points");
  points = {...answer, frame};
  drawOverview();
}

/** Compute what a path shows after it changed; its holes follow when there is time. */
function update(i) {
  const before = shown[i]?.holes;
  const cameras_ = cameras(state.paths[i], source);
  shown[i] = {cameras: cameras_, curves: curves(state.paths[i], data.frames), holes: before || []};
}

async function countHoles(i) {
  const {turn} = state;
  const {cameras: all, holes} = shown[i];
  const found = [];
  for (let frame = 0; frame < data.frames; frame += data.every) {
    try {
      found.push([frame, await warp.ask("holes", camera(all, frame))]);
    } catch {
      return;
    }
    if (turn !== state.turn) return;
    if (found.length % 8 === 0 && i === state.chosen && found.length > holes.length) {
      shown[i].holes = [...found];
      drawCurves();
    }
  }
  shown[i].holes = found;
  drawCurves();
  drawPaths();
}

/** After a change: draw at once what is seen; once it is over, keep it and count holes. */
function changed(isOver = true) {
  update(state.chosen);
  state.turn++;
  warp.drop();
  drawView();
  drawAll();
  if (isOver) {
    remember();
    state.paths.forEach((_, i) => (i === state.chosen ? null : shown[i] || update(i)));
    countAll();
  }
}

async function countAll() {
  const {turn} = state;
  const others = state.paths.map((_, i) => i).filter((i) => i !== state.chosen);
  for (const i of [state.chosen, ...others]) {
    if (turn === state.turn && (i === state.chosen || !shown[i].holes.length)) await countHoles(i);
  }
}

function drawAll() {
  drawTime();
  drawKeys();
  drawCurves();
  drawFields();
  drawOptions();
  drawOverview();
}

function go(frame) {
  state.frame = clamp(Math.round(frame), 0, last);
  drawView();
  drawTime();
  drawKeys();
  drawFields();
  drawCurves();
  if (points?.frame !== shown[state.chosen].cameras.frames[state.frame]) drawPoints();
  drawOverview();
}

function drawTime() {
  $("scrub").value = state.frame;
  $("at").textContent = `${state.frame} / ${last}`;
}

// ---- time and keys ------------------------------------------------------------------------------

/** The moment of a path that a frame shows; a key that lies there to rounding is met exactly. */
function momentOf(frame) {
  const t = last ? frame / last : 0;
  const at = path().ease ? eased(t) : t;
  return keyTimes(path()).find((key) => Math.abs(key - at) < 1e-6) ?? at;
}

/** The frame, with a fraction, that shows a moment of a path. */
function frameOf(moment) {
  if (!path().ease) return moment * last;
  let [low, high] = [0, 1];
  for (let i = 0; i < 50; i++) {
    const middle = (low + high) / 2;
    if (eased(middle) < moment) low = middle;
    else high = middle;
  }
  return low * last;
}

function hasKeyHere() {
  return keyTimes(path()).includes(momentOf(state.frame));
}

function drawKeys() {
  const keys = keyTimes(path());
  $("keys").replaceChildren(...keys.map((moment) => {
    const frame = frameOf(moment);
    const isHere = Math.abs(frame - state.frame) < 1e-6;
    const node = el("button", {"aria-pressed": isHere, title: `Key at frame ${+frame.toFixed(2)}`,
                               style: `left: ${last ? 100 * frame / last : 0}%`});
    node.addEventListener("pointerdown", (event) => dragKey(event, moment));
    return node;
  }), el("div", {class: "now", style: `left: ${last ? 100 * state.frame / last : 0}%`}));
  $("delete").disabled = !hasKeyHere() || keys.length < 2;
  $("paste").disabled = !state.copied;
}

function dragKey(event, moment) {
  event.preventDefault();
  event.stopPropagation();
  pause();
  const before = snapshot();
  const keys = keyTimes(path());
  const at = keys.indexOf(moment);
  const low = at ? Math.floor(frameOf(keys[at - 1])) + 1 : 0;
  const high = at < keys.length - 1 ? Math.ceil(frameOf(keys[at + 1])) - 1 : last;
  let now = moment;
  go(frameOf(moment));
  track(event, (move) => {
    const frame = clamp(Math.round(frameAt(move)), low, high);
    const next = path().ease ? eased(frame / last) : frame / last;
    if (low > high || next === now) return;
    moveKey(path(), now, next);
    now = next;
    state.frame = frame;
    changed(false);
  }, () => (now === moment ? null : finish(before)));
}

/** The frame under a pointer on the key strip or a curve. */
function frameAt({clientX}) {
  const {left, width} = $("keys").getBoundingClientRect();
  return clamp((clientX - left) / width, 0, 1) * last;
}

/** Follow a pointer until it is released. */
function track(event, onMove, onEnd = () => {}) {
  const end = () => {
    removeEventListener("pointermove", onMove);
    removeEventListener("pointerup", end);
    removeEventListener("pointercancel", end);
    onEnd();
  };
  addEventListener("pointermove", onMove);
  addEventListener("pointerup", end);
  addEventListener("pointercancel", end);
}

function scrubOn(node) {
  node.addEventListener("pointerdown", (event) => {
    pause();
    go(frameAt(event));
    track(event, (move) => go(frameAt(move)));
  });
}

function play() {
  state.playing = true;
  $("play").textContent = "Pause";
  const ends = data.times.length ? data.times.slice(1) : null;
  const length = ends ? ends[last] : data.frames / data.fps;
  const begun = performance.now() / 1000 - (ends ? data.times[state.frame] : state.frame / data.fps);
  const step = () => {
    if (!state.playing) return;
    const now = (performance.now() / 1000 - begun) % length;
    const frame = ends ? ends.findIndex((end) => end > now) : Math.floor(now * data.fps);
    if (frame !== state.frame) go(frame);
    requestAnimationFrame(step);
  };
  step();
}

function pause() {
  state.playing = false;
  $("play").textContent = "Play";
}

// ---- changes, undo, what the browser keeps ------------------------------------------------------

const copyOf = (one) => ({...one, tracks: structuredClone(one.tracks)});

function snapshot() {
  return {paths: state.paths.map(copyOf), chosen: state.chosen};
}

/** Make a change that can be undone. */
function change(act) {
  if (state.isPicking) setPicking(false);
  const before = snapshot();
  act();
  finish(before);
}

function finish(before) {
  history.undo.push(before);
  if (history.undo.length > UNDOS) history.undo.shift();
  history.redo = [];
  state.saved = false;
  changed();
}

function travel(from, to) {
  if (!from.length) return;
  to.push(snapshot());
  Object.assign(state, from.pop());
  shown = [];
  state.saved = false;
  showPaths();
}

/** Draw everything anew. */
function showPaths() {
  state.paths.forEach((_, i) => update(i));
  changed();
  drawPaths();
  drawPoints();
}

function remember() {
  $("undo").disabled = !history.undo.length;
  $("redo").disabled = !history.redo.length;
  $("kept").textContent = state.saved ? "" : "kept in this browser until saved";
  if (state.saved) return;
  try {
    localStorage.setItem(`design ${data.id}`, JSON.stringify(snapshot()));
  } catch {
    $("kept").textContent = "not saved, and this browser keeps nothing";
  }
}

function forget() {
  try {
    localStorage.removeItem(`design ${data.id}`);
  } catch {}  // then nothing is kept
}

function recall() {
  try {
    return JSON.parse(localStorage.getItem(`design ${data.id}`));
  } catch {
    return null;
  }
}

// ---- the view as a control ----------------------------------------------------------------------

/** Values at the frame that is shown, and a function that sets some of them. */
function grab() {
  const moment = momentOf(state.frame);
  return {values: valuesAt(path(), moment), set: (changes) => {
    setKey(path(), moment, changes);
    changed(false);
  }};
}

/** What a drag of (dx, dy), in shares of the view's width, does in a mode. */
function dragged(values, dx, dy, mode) {
  if (mode === "move") return {x: values.x - dx, y: values.y - dy};
  if (mode === "look") return {yaw: values.yaw - 60 * dx, pitch: values.pitch + 60 * dy};
  return {phi: clamp(values.phi - 90 * dx, -FAR, FAR), theta: values.theta + 90 * dy};
}

/** What coming closer by `step` does in a mode. */
function closer(values, step, mode) {
  if (mode === "move") return {z: values.z + step};
  if (mode === "look") return {roll: values.roll + 60 * step};
  return {r: Math.min(0.99, values.r + step)};
}

const modeOf = (event) => event.altKey ? "look" : event.shiftKey ? "move" : state.mode;

function listenToView() {
  const view = $("view");
  const fingers = new Map();
  let [before, held, start, isMoved] = [null, null, null, false];
  const middle = () => {
    const all = [...fingers.values()];
    const [a, b] = [all[0], all[all.length - 1]];
    return {x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, length: Math.hypot(a.x - b.x, a.y - b.y),
            angle: Math.atan2(b.y - a.y, b.x - a.x) * 180 / Math.PI};
  };
  const begin = () => {
    held = grab();
    start = middle();
  };
  view.addEventListener("pointerdown", (event) => {
    if (state.isPicking) {
      pick(event);
      return;
    }
    pause();
    view.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, {x: event.clientX, y: event.clientY});
    if (fingers.size === 1) [before, isMoved] = [snapshot(), false];
    begin();
  });
  view.addEventListener("pointermove", (event) => {
    if (!fingers.has(event.pointerId)) return;
    fingers.set(event.pointerId, {x: event.clientX, y: event.clientY});
    const now = middle();
    const width = view.clientWidth;
    const [dx, dy] = [(now.x - start.x) / width, (now.y - start.y) / width];
    if (!isMoved && fingers.size === 1 && Math.hypot(dx, dy) * width < 3) return;
    isMoved = true;
    if (fingers.size === 1) {
      held.set(dragged(held.values, dx, dy, modeOf(event)));
    } else {  // two fingers: pinch is r, together they move the camera, a twist rolls it
      held.set({...closer(held.values, Math.log(now.length / start.length), "orbit"),
                ...dragged(held.values, dx, dy, "move"),
                roll: held.values.roll - (now.angle - start.angle)});
    }
  });
  const end = (event) => {
    if (!fingers.delete(event.pointerId)) return;
    if (fingers.size) begin();
    else if (isMoved) finish(before);
  };
  view.addEventListener("pointerup", end);
  view.addEventListener("pointercancel", end);
  let wheel = null;  // {before, timer} while it turns
  view.addEventListener("wheel", (event) => {
    event.preventDefault();
    if (state.isPicking) return;
    pause();
    const {values, set} = grab();
    const turned = event.deltaY || event.deltaX;  // browsers turn it sideways with Shift
    wheel ||= {before: snapshot()};
    set(closer(values, clamp(-turned, -120, 120) / 120 * 0.04, modeOf(event)));
    clearTimeout(wheel.timer);
    wheel.timer = setTimeout(() => {
      finish(wheel.before);
      wheel = null;
    }, 300);
  }, {passive: false});
}

/** Turn about what is seen at a click on the first frame. */
async function pick(event) {
  const box = $("view").getBoundingClientRect();
  const [width, height] = data.video;
  const x = clamp(Math.floor((event.clientX - box.left) / box.width * width), 0, width - 1);
  const y = clamp(Math.floor((event.clientY - box.top) / box.height * height), 0, height - 1);
  const point = await warp.ask("point", {picture: 0, k: data.k[0], x, y});
  setPicking(false);
  if (!point) note(`The depth at ${x}, ${y} is unknown. Click another pixel.`);
  else change(() => { path().pivot = {pixel: [x, y], point}; });
}

function setPicking(isPicking) {
  state.isPicking = isPicking;
  $("pick").setAttribute("aria-pressed", isPicking);
  $("view").classList.toggle("picking", isPicking);
  if (isPicking) $("stage").scrollIntoView({block: "nearest"});
  drawView();
}

// ---- curves and fields --------------------------------------------------------------------------

/** The axes that a path's curves show. */
function axesOf(one) {
  return AXES.filter((axis) => !FREE.includes(axis) ||
    (one.tracks[axis] || []).some(([, value]) => value));
}

/** A value of an axis as people see it. */
function seen(axis, value, frame) {
  return axis === "zoom" ? value * baseK(frame)[0][0] : value;
}

const baseK = (frame) => (path().base ? path().base.intrinsics[frame] : data.k[frame]);

function line(values, low, high, count = values.length) {
  const step = 1000 / Math.max(1, count - 1);
  return values.map((value, i) =>
    `${i ? "L" : "M"}${(i * step).toFixed(1)} ${(94 - 88 * (value - low) / (high - low)).toFixed(2)}`)
    .join("");
}

function curveRow(name, value, drawing, isMany = false) {
  const box = el("div", {class: "curve"}, el("svg", {viewBox: "0 0 1000 100",
    preserveAspectRatio: "none", "aria-hidden": true}, ...drawing),
  el("div", {class: "now", style: `left: ${last ? 100 * state.frame / last : 0}%`}));
  scrubOn(box);
  const told = el("b", isMany ? {class: "many"} : {}, value);
  return [el("div", {class: "name curve-name"}, el("span", {class: "quiet"}, name), told), box];
}

function drawCurves() {
  const {curves: all, holes} = shown[state.chosen];
  const colour = COLOURS[state.chosen % COLOURS.length];
  const rows = axesOf(path()).map((axis) => {
    const values = all[axis].map((value, frame) => seen(axis, value, frame));
    const now = values[state.frame];
    const [low, high] = spanOf(values, SIZES[axis] ?? (axis === "zoom" ? 0.4 * now : 0.4));
    const digits = axis === "zoom" || DEGREES.includes(axis) ? 1 : 3;
    const zero = axis === "zoom" ? values[0] : 0;
    return curveRow(FIELDS[axis][0], now.toFixed(digits), [
      el("line", {x1: 0, x2: 1000, y1: 94 - 88 * (zero - low) / (high - low),
                  y2: 94 - 88 * (zero - low) / (high - low)}),
      el("path", {d: line(values, low, high), stroke: colour})]);
  });
  const shares = holes.map(([, share]) => share);
  const most = Math.max(0, ...shares);
  rows.push(curveRow("holes, at most", shares.length ? percent(most) : "…", [
    el("line", {class: "limit", x1: 0, x2: 1000, y1: 94 - 88 * MANY_HOLES, y2: 94 - 88 * MANY_HOLES}),
    el("path", {d: line(shares, 0, 1, kept), stroke: most > MANY_HOLES ? "var(--bad)" : colour})],
  most > MANY_HOLES));
  for (const node of document.querySelectorAll(".curve, .curve-name")) node.remove();
  $("timeline").append(...rows.flat());
}

function spanOf(values, least) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const more = Math.max(0, least - (high - low)) / 2;
  return [low - more, high + more];
}

function makeFields() {
  for (const axis of AXES) {
    const [name, unit] = FIELDS[axis];
    const input = el("input", {type: "number", step: DEGREES.includes(axis) ? 1 :
      axis === "zoom" ? "any" : 0.01, id: `field-${axis}`});
    input.addEventListener("change", () => {
      const value = Number(input.value) / (axis === "zoom" ? baseK(state.frame)[0][0] : 1);
      const isGood = input.value !== "" && Math.abs(value) <= FAR &&
        (axis !== "zoom" || value > 0) && (axis !== "r" || value < 1);
      if (isGood) change(() => setKey(path(), momentOf(state.frame), {[axis]: value}));
      else drawFields();
    });
    const label = el("label", {title: unit}, el("span", {}, name), input);
    $(FREE.includes(axis) ? "free" : "orbit").append(label);
  }
}

function drawFields() {
  const {curves: all} = shown[state.chosen];
  for (const axis of AXES) {
    const value = seen(axis, all[axis][state.frame], state.frame);
    $(`field-${axis}`).value = String(+value.toFixed(axis === "zoom" ? 2 : 4));
  }
  $("key-title").textContent = `Camera at frame ${state.frame}${hasKeyHere() ? ", a key" : ""}`;
}

// ---- options and files --------------------------------------------------------------------------

function drawOptions() {
  const one = path();
  const isSpline = one.between === "spline" &&
    Object.values(one.tracks).some((keys) => keys.length > 3);
  const ways = {lines: "straight lines", smooth: "smooth, through all keys"};
  if (isSpline) ways.spline = "smoothed, as a txt is";
  $("between").replaceChildren(...Object.entries(ways).map(([value, words]) =>
    el("option", {value}, words)));
  $("between").value = isSpline ? "spline" : one.between === "smooth" ? "smooth" : "lines";
  $("ease").selectedIndex = Number(one.ease);
  const still = one.still ?? state.frame;
  $("still").replaceChildren(el("option", {}, "passes"),
                             el("option", {}, `stands still at frame ${still} (bullet time)`));
  $("still").selectedIndex = Number(one.still !== null);
  $("anchor").value = one.anchor;
  $("anchor").disabled = !data.c2w;
  $("anchor").title = data.c2w ? "" : "needs --extrinsics_file";
  $("pivot").textContent = one.pivot
    ? `pixel ${one.pivot.pixel.join(", ")}, depth ${one.pivot.point[2].toPrecision(3)}`
    : `depth ${data.pivot[2].toPrecision(4)}`;
  $("centre").hidden = !one.pivot;
  const why = whyNoTxt(one);
  $("txt").disabled = Boolean(why);
  $("why").textContent = why ? `A txt cannot hold this path: ${why}. The json is exact.`
    : "Both files are exact. Put them beside data_gen.py.";
  $("command").textContent = commandOf(one, why ? "json" : state.kind || "json");
}

function fileName(one, kind) {
  return `${one.name.replace(/[^\p{L}\p{N}._-]+/gu, "_") || "path"}.${kind}`;
}

function commandOf(one, kind) {
  const [start, orbit] = data.command;
  if (kind === "json") return `${start} --cameras ${fileName(one, "json")}`;
  const pivot = one.pivot ? ` --pivot ${one.pivot.pixel}` : orbit && ` ${orbit}`;
  const anchor = one.anchor === "first" ? " --anchor first" : "";
  return `${start} --trajs ${fileName(one, "txt")}${pivot}${anchor}`;
}

function download(one, kind) {
  const text = kind === "json" ? toJson(one, source) : toTxt(one);
  const link = el("a", {download: fileName(one, kind),
                        href: URL.createObjectURL(new Blob([text], {type: "text/plain"}))});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function save(paths, kind) {
  for (const one of paths) download(one, kind);
  state.kind = kind;
  if (paths.length === state.paths.length) {
    state.saved = true;
    forget();
  }
  remember();
  drawOptions();
}

async function load(all) {
  for (const file of all) {
    try {
      const text = await file.text();
      const one = file.name.endsWith(".txt") ? fromTxt(file.name, text)
        : fromJson(file.name, text, source);
      addPath(one);
    } catch (error) {
      note(error.message);
    }
  }
}

// ---- the list of paths --------------------------------------------------------------------------

function addPath(one) {
  const before = snapshot();
  const isTaken = (name) => state.paths.some((other) => other.name === name);
  let name = one.name;
  for (let number = 2; isTaken(name); number++) name = `${one.name}_${number}`;
  state.paths.push({...one, name});
  state.chosen = state.paths.length - 1;
  finish(before);
  drawPaths();
}

function choose(i) {
  if (i === state.chosen) return;
  state.chosen = i;
  drawPaths();
  go(state.frame);
  drawAll();
}

function drawPaths() {
  $("paths").replaceChildren(...state.paths.map((one, i) => {
    const colour = COLOURS[i % COLOURS.length];
    const shares = (shown[i]?.holes || []).map(([, share]) => share);
    const most = Math.max(0, ...shares);
    const name = el("input", {type: "text", value: one.name, "aria-label": "Name"});
    name.addEventListener("change", () => {
      change(() => { one.name = name.value.trim().slice(0, 60) || "path"; });
      drawPaths();
    });
    const row = el("div", {"aria-current": i === state.chosen},
                   el("i", {style: `background: ${colour}`}), name,
                   el("svg", {viewBox: "0 0 1000 100", preserveAspectRatio: "none"},
                      el("path", {d: line(shares, 0, 1, kept), stroke: colour})),
                   el("b", {class: most > MANY_HOLES ? "many" : "", title: "most holes of a frame"},
                      shares.length ? percent(most) : "…"));
    row.addEventListener("pointerdown", () => choose(i));
    name.addEventListener("focus", () => choose(i));
    return row;
  }));
  $("remove").disabled = state.paths.length < 2;
}

// ---- the overview -------------------------------------------------------------------------------

/** Source camera of a frame in the world of the first one. */
const sourcePose = (frame) =>
  (data.c2w ? times(inverse(data.c2w[0]), data.c2w[frame]) : identity(4));

function drawOverview() {
  const canvas = $("overview");
  const scale = devicePixelRatio;
  const [width, height] = [canvas.clientWidth * scale, canvas.clientHeight * scale];
  if (canvas.width !== Math.round(width)) Object.assign(canvas, {width, height});
  const context = canvas.getContext("2d");
  const radius = data.pivot[2];
  const turn = times(rotation(look.pitch, 1, 2), rotation(look.yaw, 2, 0));
  const focal = 1.1 * Math.min(width, height) * look.scale;
  const project = (place) => {  // looks at the pivot from two and a half radii away
    const from = place.map((value, i) => [(value - data.pivot[i]) / radius]);
    const [x, y, z] = times(turn, from).map(([value]) => value);
    const depth = z + 2.5;
    return depth > 0.05 ? [width / 2 + focal * x / depth, height / 2 + focal * y / depth, depth] : null;
  };
  context.clearRect(0, 0, width, height);
  if (points) drawScene(context, project, scale);
  const style = getComputedStyle(document.body);
  context.lineWidth = scale;
  context.strokeStyle = style.getPropertyValue("--quiet");
  const poses = Array.from({length: data.frames}, (_, i) => sourcePose(i));
  drawTrack(context, project, poses);
  state.paths.forEach((_, i) => {
    const {cameras: all} = shown[i];
    const isChosen = i === state.chosen;
    context.globalAlpha = isChosen ? 1 : 0.45;
    context.strokeStyle = COLOURS[i % COLOURS.length];
    context.lineWidth = (isChosen ? 2 : 1) * scale;
    const track = all.c2w.map((c2w, frame) => times(poses[all.frames[frame]], c2w));
    drawTrack(context, project, track);
    if (isChosen) drawFrustum(context, project, track[state.frame], all.intrinsics[state.frame]);
  });
  context.globalAlpha = 1;
  context.strokeStyle = style.getPropertyValue("--quiet");
  const frame = shown[state.chosen].cameras.frames[state.frame];
  drawFrustum(context, project, poses[frame], data.k[frame]);
}

function drawScene(context, project, scale) {
  const {places, colours, frame} = points;
  const pose = sourcePose(frame);
  const found = [];
  for (let i = 0; i < places.length; i += 3) {
    const at = [places[i], places[i + 1], places[i + 2]];
    const seenAt = project([0, 1, 2].map((row) =>
      pose[row][0] * at[0] + pose[row][1] * at[1] + pose[row][2] * at[2] + pose[row][3]));
    if (seenAt) found.push([...seenAt, i]);
  }
  found.sort((a, b) => b[2] - a[2]);
  for (const [x, y, depth, i] of found) {
    const size = clamp(6 / depth, 1.5, 5) * scale;
    context.fillStyle = `rgb(${colours[i]} ${colours[i + 1]} ${colours[i + 2]})`;
    context.fillRect(x, y, size, size);
  }
}

function drawTrack(context, project, poses) {
  stroke(context, poses.map((pose) => project([pose[0][3], pose[1][3], pose[2][3]])));
}

/** Lines through places, of which those behind the eye are null. */
function stroke(context, places) {
  context.beginPath();
  let isDown = false;
  for (const place of places) {
    if (place && isDown) context.lineTo(place[0], place[1]);
    else if (place) context.moveTo(place[0], place[1]);
    isDown = Boolean(place);
  }
  context.stroke();
}

/** A pyramid of the view, a fifth of the radius deep. */
function drawFrustum(context, project, pose, k) {
  const depth = 0.2 * data.pivot[2];
  const [width, height] = data.video;
  const inWorld = (place) => project([0, 1, 2].map((row) =>
    pose[row][0] * place[0] + pose[row][1] * place[1] + pose[row][2] * place[2] + pose[row][3]));
  const corners = [[0, 0], [width, 0], [width, height], [0, height]].map(([x, y]) =>
    inWorld([depth * (x - k[0][2]) / k[0][0], depth * (y - k[1][2]) / k[1][1], depth]));
  const eye = inWorld([0, 0, 0]);
  stroke(context, [...corners, corners[0]]);
  for (const corner of corners) stroke(context, [eye, corner]);
}

function listenToOverview() {
  const canvas = $("overview");
  canvas.addEventListener("pointerdown", (event) => {
    let [x, y] = [event.clientX, event.clientY];
    track(event, (move) => {
      look.yaw += (move.clientX - x) / 2;
      look.pitch = clamp(look.pitch - (move.clientY - y) / 2, -89, 89);
      [x, y] = [move.clientX, move.clientY];
      drawOverview();
    });
  });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    look.scale = clamp(look.scale * Math.exp(-event.deltaY / 500), 0.2, 8);
    drawOverview();
  }, {passive: false});
}

// ---- the beginning ------------------------------------------------------------------------------

/** A row of buttons of which one is pressed. */
function choice(id, options, chosen, act) {
  const nodes = Object.entries(options).map(([value, words]) => {
    const node = el("button", {"aria-pressed": value === chosen}, words);
    node.addEventListener("click", () => {
      nodes.forEach((each) => each.setAttribute("aria-pressed", each === node));
      act(value);
    });
    return node;
  });
  $(id).append(...nodes);
}

const PRESSED = {
  play: () => (state.playing ? pause() : play()),
  undo: () => travel(history.undo, history.redo),
  redo: () => travel(history.redo, history.undo),
  add: () => change(() => setKey(path(), momentOf(state.frame), {})),
  delete: () => change(() => deleteKey(path(), momentOf(state.frame))),
  copy: () => {
    state.copied = valuesAt(path(), momentOf(state.frame));
    drawKeys();
  },
  paste: () => change(() => setKey(path(), momentOf(state.frame), pasted())),
  new: () => addPath(newPath("path")),
  double: () => addPath(copyOf(path())),
  remove: () => {
    change(() => {
      state.paths.splice(state.chosen, 1);
      shown.splice(state.chosen, 1);
      state.chosen = Math.min(state.chosen, state.paths.length - 1);
    });
    showPaths();
  },
  apply: applyPreset,
  pick: () => setPicking(!state.isPicking),
  centre: () => change(() => { path().pivot = null; }),
  json: () => save([path()], "json"),
  txt: () => save([path()], "txt"),
  every: () => save(state.paths, "json"),
  load: () => $("file").click(),
  clip: () => navigator.clipboard.writeText($("command").textContent)
    .then(() => note("Copied. Run it in the folder of data_gen.py."),
          () => getSelection().selectAllChildren($("command"))),
};

function applyPreset() {
  const preset = data.presets[$("preset").selectedIndex];
  const amount = Number($("amount").value);
  const next = copyOf(path());
  addPreset(next, preset, amount, Math.floor(data.frames / 2));
  const {r, zoom} = curves(next, data.frames);
  if ($("amount").value === "" || !(Math.abs(amount) <= FAR) || Math.min(...zoom) <= 0 ||
      Math.max(...r) >= 1) {
    note(`${preset.name} by ${$("amount").value || "nothing"} leads past what the camera turns ` +
         "about, or to no focal length. Give a smaller amount.");
    return;
  }
  change(() => { state.paths[state.chosen] = next; });
}

/** What is copied, without free moves and zoom that neither it nor this path has. */
function pasted() {
  const has = (axis) => ORBIT.includes(axis) || path().tracks[axis] ||
    state.copied[axis] !== Number(axis === "zoom");
  return Object.fromEntries(Object.entries(state.copied).filter(([axis]) => has(axis)));
}

const KEYS = {" ": "play", k: "add", Delete: "delete", Backspace: "delete"};

function onKey(event) {
  if (event.target.matches("input:not([type=range]), select")) return;
  if (event.key === " " && event.target.matches("button, summary")) return;
  if ((event.ctrlKey || event.metaKey) && "zy".includes(event.key.toLowerCase())) {
    PRESSED[event.shiftKey || event.key === "y" ? "redo" : "undo"]();
  } else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
    pause();
    go(state.frame + (event.key === "ArrowLeft" ? -1 : 1));
  } else if (event.key === "Escape" && state.isPicking) {
    setPicking(false);
  } else if (KEYS[event.key] && !$(KEYS[event.key]).disabled) {
    PRESSED[KEYS[event.key]]();
  } else {
    return;
  }
  event.preventDefault();
}

function showPreset() {
  const {usual, unit} = data.presets[$("preset").selectedIndex];
  $("amount").value = usual;
  $("unit").textContent = unit;
}

function listen() {
  choice("modes", MODES, state.mode, (mode) => { state.mode = mode; });
  choice("holes", HOLE_STYLES, state.holes, (holes) => {
    state.holes = holes;
    drawView();
  });
  for (const [id, press] of Object.entries(PRESSED)) $(id).addEventListener("click", press);
  for (const [name, isSource] of [["pointerdown", true], ["pointerup", false], ["pointerleave", false]]) {
    $("source").addEventListener(name, () => {
      if (state.isSource === isSource) return;
      state.isSource = isSource;
      drawView();
    });
  }
  $("scrub").max = last;
  $("scrub").addEventListener("input", () => {
    pause();
    go(Number($("scrub").value));
  });
  $("between").addEventListener("change", () => change(() => {
    if (path().between === "spline") goThroughKeys(path());
    path().between = $("between").value;
  }));
  $("ease").addEventListener("change", () =>
    change(() => { path().ease = $("ease").selectedIndex === 1; }));
  $("still").addEventListener("change", () => change(() => {
    path().still = $("still").selectedIndex ? state.frame : null;
  }));
  $("anchor").addEventListener("change", () => change(() => { path().anchor = $("anchor").value; }));
  $("preset").append(...data.presets.map(({name}) => el("option", {}, name)));
  $("preset").addEventListener("change", showPreset);
  showPreset();
  $("file").addEventListener("change", () => load($("file").files).then(() => {
    $("file").value = "";
  }));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    load(event.dataTransfer.files);
  });
  addEventListener("keydown", onKey);
  addEventListener("click", ({detail, target}) => {  // space is to play after a click
    if (detail && target.closest("button, summary")) document.activeElement.blur();
  });
  addEventListener("resize", drawOverview);
  scrubOn($("keys"));
  listenToView();
  listenToOverview();
}

/** What this browser lacks, or null. */
function missing() {
  const needed = ["Worker", "DecompressionStream", "OffscreenCanvas", "structuredClone"];
  return needed.find((name) => !(name in window));
}

async function start() {
  if (missing()) {
    $("trouble").textContent = `This browser has no ${missing()}. Use Chrome or Edge 80, Firefox ` +
      "113, Safari 16.4 or newer, or data_gen.py --preview and trajs/*.txt.";
    $("trouble").hidden = false;
    return;
  }
  const [width, height] = data.video;
  const facts = [`${data.frames} frames`, `${width} × ${height}`, `${+data.fps.toFixed(3)} fps`];
  if (data.width !== width) facts.push(`shown at ${data.width} × ${data.height}`);
  if (data.every > 1) facts.push(`one frame in ${data.every} is shown`);
  if (data.edge_threshold) facts.push(`--edge_threshold ${data.edge_threshold}`);
  $("facts").textContent = facts.join(" · ");
  Object.assign($("view"), {width: data.width, height: data.height});
  $("view").style.setProperty("--aspect", data.width * data.pixel_aspect / data.height);
  $("all").hidden = false;
  warp = new Warp();
  const scale = [data.width / width, data.height / height];
  const {width: w, height: h, depth, pictures, edge_threshold} = data;
  await warp.ask("start", {scene: {width: w, height: h, depth, pictures, edge_threshold, scale}});
  const before = recall();
  const given = {paths: data.paths.length ? data.paths : [newPath("path")], chosen: 0};
  Object.assign(state, before ? {...before, saved: false} : {paths: given.paths.map(copyOf)});
  makeFields();
  listen();
  showPaths();
  if (before) {
    note("These are the paths that you had not saved.", "Discard them", () => change(() => {
      Object.assign(state, {paths: given.paths.map(copyOf), chosen: 0});
      showPaths();
    }));
  }
}

start();
