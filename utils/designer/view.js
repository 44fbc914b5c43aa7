"use strict";
// The new view of the path designer, and what fingers, mouse and wheel do to it.
const MODES = {orbit: "Orbit", move: "Move", look: "Look"};
const HOLE_STYLES = {black: "Black", colour: "Pink", source: "Source"};
const WHEEL_PAUSE = 300;  // milliseconds after which a turn of the wheel is over

async function drawView() {
  const {isPicking, isSource} = state;
  const view = camera(computed[state.chosen].cameras, state.frame);
  const {pixels, share} = isPicking || isSource
    ? await warp.ask("source", {picture: isPicking ? 0 : view.picture}, "view")
    : await warp.ask("view", {...view, holes: state.holes}, "view");
  $("view").getContext("2d").putImageData(new ImageData(pixels, data.width, data.height), 0, 0);
  $("share").hidden = share === undefined;
  $("what").hidden = share !== undefined;
  $("what").textContent = isPicking ? "Click what the camera shall turn about" : "Source";
  if (share === undefined) return;
  $("share").textContent = `${percent(share)} holes`;
  $("share").classList.toggle("many", share > MANY_HOLES);
}

// ---- what a gesture does to the values ----------------------------------------------------------

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
  const {far} = data.constants;
  if (mode === "move") return {x: values.x - dx, y: values.y - dy};
  if (mode === "look") return {yaw: values.yaw - 60 * dx, pitch: values.pitch + 60 * dy};
  return {phi: clamp(values.phi - 90 * dx, -far, far), theta: values.theta + 90 * dy};
}

/** What coming closer by `step` does in a mode. */
function closer(values, step, mode) {
  if (mode === "move") return {z: values.z + step};
  if (mode === "look") return {roll: values.roll + 60 * step};
  return {r: Math.min(0.99, values.r + step)};
}

/** What two fingers do: a pinch is r, together they move the camera, a twist rolls it. */
function pinched(values, from, to, dx, dy) {
  const turned = to.angle - from.angle;
  const twist = turned - 360 * Math.ceil((turned - 180) / 360);  // in (-180, 180]
  return {...closer(values, Math.log(to.length / from.length) / 2, "orbit"),
          ...dragged(values, dx, dy, "move"), roll: values.roll - twist};
}

const modeOf = (event) => event.altKey ? "look" : event.shiftKey ? "move" : state.mode;

// ---- fingers and mouse --------------------------------------------------------------------------

const gesture = {fingers: new Map(), before: null, held: null, from: null, isMoved: false};

/** The middle of the fingers, in pixels, how far apart they are and in what direction. */
function middleOfFingers() {
  const all = [...gesture.fingers.values()];
  const [a, b] = [all[0], all[all.length - 1]];
  return {x: (a.x + b.x) / 2, y: (a.y + b.y) / 2,
          length: Math.max(1, Math.hypot(a.x - b.x, a.y - b.y)),
          angle: Math.atan2(b.y - a.y, b.x - a.x) * 180 / Math.PI};
}

function beginGesture() {
  gesture.held = grab();
  gesture.from = middleOfFingers();
}

function fingerDown(event) {
  finishWheel();
  if (state.isPicking) {
    pick(event);
    return;
  }
  pause();
  $("view").setPointerCapture(event.pointerId);
  const {fingers} = gesture;
  fingers.set(event.pointerId, {x: event.clientX, y: event.clientY});
  if (fingers.size === 1) Object.assign(gesture, {before: beginChange(), isMoved: false});
  beginGesture();
}

function fingerMoved(event) {
  const {fingers, held, from} = gesture;
  if (!fingers.has(event.pointerId)) return;
  fingers.set(event.pointerId, {x: event.clientX, y: event.clientY});
  const to = middleOfFingers();
  const width = $("view").clientWidth;
  const [dx, dy] = [(to.x - from.x) / width, (to.y - from.y) / width];
  if (!gesture.isMoved && fingers.size === 1 && Math.hypot(dx, dy) * width < 3) return;
  gesture.isMoved = true;
  held.set(fingers.size === 1 ? dragged(held.values, dx, dy, modeOf(event))
    : pinched(held.values, from, to, dx, dy));
}

function fingerUp(event) {
  if (!gesture.fingers.delete(event.pointerId)) return;
  if (gesture.fingers.size) beginGesture();
  else if (gesture.isMoved) finish(gesture.before);
}

// ---- the wheel ----------------------------------------------------------------------------------

let wheel = null;  // {before, timer} while it turns

function turnWheel(event) {
  event.preventDefault();
  if (state.isPicking || gesture.fingers.size) return;
  pause();
  const {values, set} = grab();
  const turned = event.deltaY || event.deltaX;  // browsers turn it sideways with Shift
  wheel ||= {before: snapshot()};
  set(closer(values, clamp(-turned, -120, 120) / 120 * 0.04, modeOf(event)));
  clearTimeout(wheel.timer);
  wheel.timer = setTimeout(finishWheel, WHEEL_PAUSE);
}

/** End a turn of the wheel, so that what follows is undone apart from it. */
function finishWheel() {
  if (!wheel) return;
  const {before, timer} = wheel;
  clearTimeout(timer);
  wheel = null;
  finish(before);
}

function listenToView() {
  const view = $("view");
  onPress(view, fingerDown);
  view.addEventListener("pointermove", fingerMoved);
  view.addEventListener("pointerup", fingerUp);
  view.addEventListener("pointercancel", fingerUp);
  view.addEventListener("wheel", turnWheel, {passive: false});
  onPress($("hold"), (event) => {
    showSource(true);
    track(event, () => {}, () => showSource(false));
  });
}

function showSource(isSource) {
  state.isSource = isSource;
  drawView();
}

// ---- the subject --------------------------------------------------------------------------------

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
