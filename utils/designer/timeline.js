"use strict";
// Time in the path designer: the frame that is shown, play, keys, curves and the fields of a frame.
const SIZES = {phi: 40, theta: 40, yaw: 40, pitch: 40, roll: 40};  // the least span of a curve
const FIELDS = {
  phi: ["phi, right °", "orbit to the right, degrees"],
  theta: ["theta, up °", "orbit upwards, degrees"],
  r: ["r, closer", "a fraction of the way to what the camera turns about"],
  zoom: ["focal, pixels", "focal length in pixels of the video"],
  x: ["x, right", "in radii"], y: ["y, down", "in radii"], z: ["z, forward", "in radii"],
  yaw: ["yaw, right °", "degrees"], pitch: ["pitch, up °", "degrees"], roll: ["roll °", "degrees"],
};
let numbers = [];  // [node, values of all frames, digits]: what drawNow() writes beside curves

// ---- the frame that is shown --------------------------------------------------------------------

function go(frame) {
  state.frame = clamp(Math.round(frame), 0, last);
  drawView();
  drawTime();
  drawNow();
  pressKey();
  drawFields();
  drawOverview();
  refreshPoints();
}

function drawTime() {
  $("scrub").value = state.frame;
  $("at").textContent = `${state.frame} / ${last}`;
  const still = path().still ?? withPicture(state.frame);
  $("still").options[1].textContent = `stands still at frame ${still} (bullet time)`;
}

const leftOf = (frame) => `${100 * placeOf(frame)}%`;
const newNow = () => el("div", {class: "now"});

/** Move what marks the frame that is shown, and tell its values beside the curves. */
function drawNow() {
  for (const node of document.querySelectorAll(".now")) node.style.left = leftOf(state.frame);
  for (const [node, values, digits] of numbers) {
    node.textContent = values[state.frame].toFixed(digits);
  }
  $("pose").textContent = inWords();
}

/** Where the camera is relative to the source's, as "12° right, 3° up, 10% closer". */
function inWords() {
  const all = computed[state.chosen].curves;
  const said = [["phi", "° right", "° left", 1], ["theta", "° up", "° down", 1],
                ["r", "% closer", "% back", 100]].map(([axis, more, less, unit]) => {
    const value = Math.round(unit * all[axis][state.frame]);
    return value ? `${Math.abs(value)}${value > 0 ? more : less}` : "";
  });
  return said.filter(Boolean).join(", ") || "orbit at the source";
}

function play() {
  state.playing = true;
  $("play").textContent = "Pause";
  const ends = data.times.length ? data.times.slice(1) : null;
  const length = ends ? ends[last] : data.frames / data.fps;
  const start = ends ? data.times[state.frame] : state.frame / data.fps;
  const begun = performance.now() / 1000 - start;
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
  if (!state.playing) return;
  state.playing = false;
  $("play").textContent = "Play";
  refreshPoints();
}

/** The frame under a pointer on the key strip, or on a curve. */
function frameAt({clientX}, node = $("keys")) {
  const {left, width} = node.getBoundingClientRect();
  return clamp((clientX - left) / width, 0, 1) * last;
}

function scrubOn(node) {
  onPress(node, (event) => {
    pause();
    go(frameAt(event, node));
    track(event, (move) => go(frameAt(move, node)));
  });
}

// ---- keys ---------------------------------------------------------------------------------------

/** The moment of a path that a frame shows. */
function shownMoment(frame) {
  return path().ease ? eased(placeOf(frame)) : placeOf(frame);
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

/** The moment of the key nearest to a frame, if that lies within half a frame, or null. */
function keyAt(frame) {
  let [nearest, least] = [null, 0.5 + 1e-6];
  for (const moment of keyTimes(path())) {
    const off = Math.abs(frameOf(moment) - frame);
    if (off < least) [nearest, least] = [moment, off];
  }
  return nearest;
}

/** The moment that is edited at a frame: that of its key, else the one that it shows. */
function momentOf(frame) {
  return keyAt(frame) ?? shownMoment(frame);
}

function drawKeys() {
  $("keys").replaceChildren(...keyTimes(path()).map((moment) => {
    const frame = frameOf(moment);
    const node = el("button", {title: `Key at frame ${+frame.toFixed(2)}`,
                               style: `left: ${leftOf(frame)}`});
    onPress(node, (event) => dragKey(event, moment));
    return node;
  }), newNow());
  pressKey();
}

/** Show which key is edited at the frame that is shown. */
function pressKey() {
  const keys = keyTimes(path());
  const here = keyAt(state.frame);
  keys.forEach((moment, i) => $("keys").children[i].setAttribute("aria-pressed", moment === here));
  $("delete").disabled = here === null || keys.length < 2;
  $("paste").disabled = !state.copied;
}

function dragKey(event, moment) {
  event.preventDefault();
  event.stopPropagation();
  pause();
  const before = beginChange();
  const {turn} = state;
  const keys = keyTimes(path());
  const at = keys.indexOf(moment);
  const low = at ? Math.floor(frameOf(keys[at - 1]) + 1e-6) + 1 : 0;
  const high = at < keys.length - 1 ? Math.ceil(frameOf(keys[at + 1]) - 1e-6) - 1 : last;
  let now = moment;
  go(frameOf(moment));
  track(event, (move) => {
    const frame = clamp(Math.round(frameAt(move)), low, high);
    const next = shownMoment(frame);
    if (low > high || next === now) return;
    moveKey(path(), now, next);
    now = next;
    state.frame = frame;
    changed(false);
  }, () => {
    if (now !== moment) finish(before);
    else if (turn !== state.turn) changed();  // it is back where it was
  });
}

// ---- curves -------------------------------------------------------------------------------------

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

/** Where a value is drawn in a curve of 100 units, with a margin. */
const heightOf = (value, low, high) => 94 - 88 * (value - low) / (high - low);

function line(values, low, high, count = values.length) {
  const step = 1000 / Math.max(1, count - 1);
  return values.map((value, i) =>
    `${i ? "L" : "M"}${(i * step).toFixed(1)} ${heightOf(value, low, high).toFixed(2)}`).join("");
}

/** [name and number, curve] of a row. */
function curveRow(name, number, ...drawing) {
  const box = el("div", {class: "curve"}, el("svg", {viewBox: "0 0 1000 100",
    preserveAspectRatio: "none", "aria-hidden": true}, ...drawing), newNow());
  scrubOn(box);
  const label = el("div", {class: "name curve-name"}, el("span", {class: "quiet"}, name), number);
  return [label, box];
}

function axisRow(axis, colour) {
  const all = computed[state.chosen].curves[axis];
  const values = all.map((value, frame) => seen(axis, value, frame));
  const [low, high] = spanOf(values, SIZES[axis] ?? (axis === "zoom" ? 0.4 * values[0] : 0.4));
  const zero = heightOf(axis === "zoom" ? values[0] : 0, low, high);
  const number = el("b");
  numbers.push([number, values, axis === "zoom" || DEGREES.includes(axis) ? 1 : 3]);
  return curveRow(FIELDS[axis][0], number, el("line", {x1: 0, x2: 1000, y1: zero, y2: zero}),
                  el("path", {d: line(values, low, high), stroke: colour}));
}

function holesRow(colour) {
  const {holes} = computed[state.chosen];
  const most = Math.max(0, ...holes);
  const limit = heightOf(MANY_HOLES, 0, 1);
  const isMany = most > MANY_HOLES;
  const number = el("b", {class: isMany ? "many" : ""}, holes.length ? percent(most) : "…");
  return curveRow("holes, most (red: 60%)", number,
                  el("line", {class: "limit", x1: 0, x2: 1000, y1: limit, y2: limit}),
                  el("path", {d: line(holes, 0, 1, countedFrames),
                              stroke: isMany ? "var(--bad)" : colour}));
}

function drawCurves() {
  const colour = COLOURS[state.chosen % COLOURS.length];
  numbers = [];
  const rows = axesOf(path()).map((axis) => axisRow(axis, colour));
  rows.push(holesRow(colour));
  for (const node of document.querySelectorAll(".curve, .curve-name")) node.remove();
  $("timeline").append(...rows.flat());
  drawNow();
}

function spanOf(values, least) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const more = Math.max(0, least - (high - low)) / 2;
  return [low - more, high + more];
}

// ---- fields -------------------------------------------------------------------------------------

function makeFields() {
  for (const axis of AXES) {
    const [name, unit] = FIELDS[axis];
    const step = axis === "zoom" ? "any" : DEGREES.includes(axis) ? 1 : 0.01;
    const input = el("input", {type: "number", step, id: `field-${axis}`});
    input.addEventListener("change", () => {
      const value = Number(input.value) / (axis === "zoom" ? baseK(state.frame)[0][0] : 1);
      const isGood = input.value !== "" && Math.abs(value) <= data.constants.far &&
        (axis !== "zoom" || value > 0) && (axis !== "r" || value < 1);
      if (isGood) {
        change(() => setKey(path(), momentOf(state.frame), {[axis]: value}));
        return;
      }
      note(`${name}: ${input.value || "nothing"} is out of range; r lies below 1, a focal length ` +
           "above 0.");
      drawFields();
    });
    const label = el("label", {title: unit}, el("span", {}, name), input);
    $(FREE.includes(axis) ? "free" : "orbit").append(label);
  }
}

/** Values of the frame, or of the key that is edited at it, which may lie between frames. */
function drawFields() {
  const key = keyAt(state.frame);
  const all = computed[state.chosen].curves;
  const isBetween = key !== null && Math.abs(frameOf(key) - state.frame) > 1e-6;
  const values = isBetween ? valuesAt(path(), key) : null;
  for (const axis of AXES) {
    const value = seen(axis, values ? values[axis] : all[axis][state.frame], state.frame);
    $(`field-${axis}`).value = String(+value.toFixed(axis === "zoom" ? 2 : 4));
  }
  const where = isBetween ? `the key at ${+frameOf(key).toFixed(2)}` : `frame ${state.frame}`;
  $("key-title").textContent = `Camera at ${where}${key === null || isBetween ? "" : ", a key"}`;
}
