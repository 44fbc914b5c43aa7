"use strict";
// What the path designer's page knows: the paths, what is computed of them, undo, the worker.
// Words from data and files become text nodes, so that none of them is markup.
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const COLOURS = ["#0f8f98", "#d8722a", "#7d5fd3", "#3a9a50", "#c63d7c", "#8a7a16"];
const MANY_HOLES = data.constants.many_holes;  // of a frame; data_gen.py warns of more
const UNDOS = 100;
const source = {k: data.k, c2w: data.c2w, pivot: data.pivot};
const last = data.frames - 1;
const countedFrames = Math.ceil(data.frames / data.every);  // whose holes are counted

const state = {paths: [], chosen: 0, frame: 0, mode: "orbit", holes: "colour", playing: false,
               isPicking: false, isSource: false, copied: null, turn: 0};
const steps = {undo: [], redo: []};
const written = new Set();  // paths as JSON that are in files, or with which the page began
let computed = [];  // of each path: {cameras, curves, track, holes: shares, isCounted}
let warp;

const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
const path = () => state.paths[state.chosen];
const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}%`;
/** Where a frame is in the video, in [0, 1]. */
const placeOf = (frame) => frame / Math.max(1, last);
/** The nearest frame at or before one that has a picture in the page. */
const withPicture = (frame) => frame - frame % data.every;

function el(name, attributes = {}, ...children) {
  const isShape = ["svg", "path", "line"].includes(name);
  const node = isShape ? document.createElementNS("http://www.w3.org/2000/svg", name)
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** Say something over the page, with a button that does something about it if there is one. */
function note(words, action = "", act = () => {}) {
  const [text, button, close] = $("note").children;
  const hide = () => { $("note").hidden = true; };
  text.textContent = words;
  button.textContent = action;
  button.hidden = !action;
  close.onclick = hide;
  button.onclick = () => {
    hide();
    act();
  };
  $("note").hidden = false;
}

/** Say what keeps the page from working. */
function fail(words) {
  $("trouble").textContent = words;
  $("trouble").hidden = false;
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

/** Listen to presses of a finger or of a mouse's first button. */
function onPress(node, act) {
  node.addEventListener("pointerdown", (event) => {
    if (event.button === 0) act(event);
  });
}

// ---- the worker ---------------------------------------------------------------------------------

const ORDER = ["view", "points"];  // what is asked first; holes and other things come after

/** Asks the warp one thing at a time. */
class Warp {
  constructor() {
    const code = [$("shared").textContent, $("warp").textContent].join("\n");
    this.worker = new Worker(URL.createObjectURL(new Blob([code], {type: "text/javascript"})));
    this.worker.onmessage = ({data: {answer, error}}) => this.done(answer, error);
    this.worker.onerror = (event) => {
      event.preventDefault();
      fail(`The warp stopped: ${event.message}. ${INSTEAD}`);
    };
    this.waiting = [];
    this.current = null;
  }

  /** The answer; of those with the same `only` that still wait, the newest alone is asked. */
  ask(ask, rest, only = null) {
    return new Promise((resolve, reject) => {
      if (only) this.waiting = this.waiting.filter((each) => each.only !== only);
      this.waiting.push({ask, rest, only, resolve, reject});
      this.next();
    });
  }

  next() {
    if (this.current || !this.waiting.length) return;
    const first = ORDER.find((only) => this.waiting.some((each) => each.only === only)) ?? null;
    const at = this.waiting.findIndex((each) => each.only === first);
    [this.current] = this.waiting.splice(at, 1);
    this.worker.postMessage({...this.current.rest, ask: this.current.ask});
  }

  done(answer, error) {
    const {resolve, reject} = this.current;
    this.current = null;
    if (error) reject(new Error(error));
    else resolve(answer);
    this.next();
  }

  /** Forget what waits and is neither view nor points. */
  drop() {
    this.waiting = this.waiting.filter(({only}) => only);
  }
}

// ---- what follows from the paths ----------------------------------------------------------------

/** What the warp needs to know of an output frame of a path.
 *
 * Where the frame's picture is not in the page, it is that of an output frame before it.
 */
function camera({frames, intrinsics, c2w}, output) {
  const i = frames[output] % data.every ? withPicture(output) : output;
  const frame = withPicture(frames[i]);
  return {picture: frame / data.every, k: data.k[frame], target: intrinsics[i], c2w: c2w[i]};
}

/** Compute what a path shows after it changed; its holes follow when there is time. */
function update(i) {
  const found = cameras(state.paths[i], source);
  computed[i] = {
    cameras: found, curves: curves(state.paths[i], data.frames),
    track: found.c2w.map((c2w, output) => multiply(sourcePoses[found.frames[output]], c2w)),
    holes: computed[i]?.holes || [], isCounted: false,
  };
}

/** Source camera of every frame in the world of the first one. */
const sourcePoses = data.c2w ? data.c2w.map((c2w) => multiply(inverse(data.c2w[0]), c2w))
  : data.k.map(() => identity(4));

async function countHoles(i) {
  const {turn} = state;
  const found = [];
  for (let frame = 0; frame < data.frames; frame += data.every) {
    found.push(await warp.ask("holes", camera(computed[i].cameras, frame)));
    if (turn !== state.turn) return;
    if (found.length % 8 === 0 && i === state.chosen && found.length > computed[i].holes.length) {
      computed[i].holes = [...found];
      drawCurves();
    }
  }
  Object.assign(computed[i], {holes: found, isCounted: true});
  if (i === state.chosen) drawCurves();
  drawShares(i);
}

/** Count the holes of the chosen path, then of the others, where that is still to be done. */
async function countAll() {
  const {turn} = state;
  const others = state.paths.map((_, i) => i).filter((i) => i !== state.chosen);
  for (const i of [state.chosen, ...others]) {
    if (turn !== state.turn) return;
    if (!computed[i].isCounted) await countHoles(i);
  }
}

/** After a change: draw at once what is seen; once it is over, keep it and count holes. */
function changed(isOver = true) {
  update(state.chosen);
  state.turn++;
  warp.drop();
  drawView();
  drawAll();
  if (!isOver) return;
  remember();
  countAll();
}

function updateAll() {
  computed = [];
  state.paths.forEach((_, i) => update(i));
}

/** Compute and draw everything anew. */
function showPaths() {
  updateAll();
  changed();
  drawPaths();
  drawPoints();
}

// ---- changes, undo, what the browser keeps ------------------------------------------------------

const copyOf = (one) => ({...one, tracks: structuredClone(one.tracks)});

function snapshot() {
  return {paths: state.paths.map(copyOf), chosen: state.chosen};
}

/** The state to which undo shall return: that before a change that begins. */
function beginChange() {
  finishWheel();
  return snapshot();
}

function finish(before) {
  steps.undo.push(before);
  if (steps.undo.length > UNDOS) steps.undo.shift();
  steps.redo = [];
  changed();
}

/** Make a change that can be undone. */
function change(act) {
  if (state.isPicking) setPicking(false);
  const before = beginChange();
  act();
  finish(before);
}

function travel(from, to) {
  finishWheel();
  if (!steps[from].length) return;
  steps[to].push(snapshot());
  Object.assign(state, steps[from].pop());
  showPaths();
}

function isWritten() {
  return state.paths.every((one) => written.has(JSON.stringify(one)));
}

/** Keep in this browser what is in no file. */
function remember() {
  $("undo").disabled = !steps.undo.length;
  $("redo").disabled = !steps.redo.length;
  const isSafe = isWritten();
  $("unsaved").textContent = isSafe ? "" : "kept in this browser until saved";
  try {
    if (isSafe) localStorage.removeItem(`design ${data.id}`);
    else localStorage.setItem(`design ${data.id}`, JSON.stringify(snapshot()));
  } catch {
    if (!isSafe) $("unsaved").textContent = "not saved, and this browser keeps nothing";
  }
}

/** {paths, chosen} that this browser kept, or null; given paths that are not there are added. */
function recall(given) {
  let told = null;
  try {
    told = JSON.parse(localStorage.getItem(`design ${data.id}`));
  } catch {}  // then nothing is kept
  if (!Array.isArray(told?.paths)) return null;
  const paths = told.paths.filter((one) => isPath(one, source));
  if (!paths.length) return null;
  for (const one of paths) if (!data.c2w) one.anchor = "source";
  const names = paths.map(({name}) => name);
  paths.push(...given.filter(({name}) => !names.includes(name)));
  return {paths, chosen: Math.max(0, paths.indexOf(told.paths[told.chosen]))};
}
