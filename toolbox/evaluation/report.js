"use strict";
// The viewer of make_report.py's page: clips in step, wiped over one another, curves, cameras.
// Words from the data become text nodes, so that none of them is markup.
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const REGIONS = {holes: "Holes", known: "Known", all: "All"};
const MODES = ["wipe", "one", "all"];
const COLOURS = ["accent", "second", "third", "fourth"];
const PAUSE = "M3 1h4v14H3zM9 1h4v14H9z";
const PLAY = "M3 1v14l11-7z";
// moved: whether the user did, in time. turn: counts what was begun, which ends what was before
const state = {clip: null, frame: 0, playing: false, mode: "wipe", left: 0, right: 0, masked: false,
               region: "holes", wipe: 50, moved: false, turn: 0};
// The videos of the clip: {layer, video, figure, seen, wanted: seconds to go to, drawn: seconds}
let views = [];
const onFrame = {};  // functions that are told the frame whenever it changes
const choices = {};  // of left, right and mode

const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
const dB = (value) => value === null ? "–" : `${value.toFixed(1)} dB`;
const colour = (name, i) => `--colour: var(--${name === "Render" ? "soft" : COLOURS[i % 4]})`;

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

/** A row of options of which one is chosen: {node, set(number)}. */
function choice(words, options, chosen, pick, kind) {
  choice.count = (choice.count || 0) + 1;
  const inputs = options.map((_, i) =>
    el("input", {type: "radio", name: `choice${choice.count}`, value: i}));
  const labels = options.map((option, i) => el("label", {}, inputs[i], option));
  const node = el("fieldset", {class: `choice ${kind}`, "aria-label": words},
                  el("span", {"aria-hidden": true}, words), el("div", {}, ...labels));
  node.addEventListener("change", (event) => pick(Number(event.target.value)));
  inputs[chosen].checked = true;
  return {node, set: (i) => { inputs[i].checked = true; }};
}

// ---- time ---------------------------------------------------------------------------------------

/** The middle of a frame in seconds of a layer, so that no rounding of a browser leaves it. */
function middle(layer, frame) {
  const times = state.clip.times;
  return times.length ? (times[frame] + times[frame + 1]) / 2 : (frame + 0.5) / layer.fps;
}

/** Go to where a view is wanted, once it can: a seek that is under way ends first. */
function seek(view) {
  if (view.wanted === null || view.video.seeking || view.video.readyState === 0) return;
  view.video.currentTime = view.wanted;
  view.wanted = null;
}

function seekAll(some) {
  for (const view of some) {
    view.wanted = middle(view.layer, state.frame);
    seek(view);
  }
}

/** Wait until views show what they are to show, or for 5 seconds. */
async function settled(some) {
  const isReady = ({video, wanted}) =>
    video.error || (wanted === null && !video.seeking && video.readyState > 1);
  for (let tries = 0; tries < 300 && !some.every(isReady); tries++) {
    await new Promise((done) => setTimeout(done, 16));
  }
}

/** Show a frame: at once in the views that are seen, then in those that may be seen next. */
async function show(frame) {
  const turn = ++state.turn;
  const seen = views.filter((view) => view.seen);
  state.frame = clamp(frame, 0, state.clip.frames - 1);
  seekAll(seen);
  tell();
  await settled(seen);
  if (turn === state.turn && !state.playing) seekAll(views.filter((view) => !view.seen));
  return turn;
}

/** Go to a frame and stay there. */
function stop(frame = state.frame) {
  Object.assign(state, {playing: false, moved: true});
  for (const view of views) view.video.pause();
  show(frame);
}

/** Play from a frame on, once all that is seen is there. */
async function play(frame) {
  Object.assign(state, {playing: true, moved: true});
  for (const view of views) view.video.pause();
  const turn = await show(frame);
  if (turn !== state.turn) return;
  for (const view of views) {
    if (view.seen) view.video.play().catch(() => {});
  }
  requestAnimationFrame(() => follow(turn));
}

/** While they play, keep what is seen in step: those ahead wait for the slowest. */
function follow(turn) {
  if (turn !== state.turn) return;
  const going = views.filter(({seen, video}) => seen && !video.error && !video.ended);
  if (!going.length) {
    play(0);
    return;
  }
  const slowest = Math.min(...going.map(position));
  for (const view of going) {
    const ahead = position(view) - slowest;  // frames
    const {video} = view;
    video.playbackRate = state.clip.fps / view.layer.fps * (1 - clamp(0.2 * ahead, 0, 0.2));
    if (ahead > 1) video.pause();
    else if (video.paused) video.play().catch(() => {});
  }
  state.frame = clamp(Math.floor(slowest), 0, state.clip.frames - 1);
  tell();
  requestAnimationFrame(() => follow(turn));
}

/** How far a view is, in frames; what was drawn may lag behind where the player is. */
function position({layer, video, drawn}) {
  const times = state.clip.times;
  const now = video.currentTime;
  const at = clamp(drawn ?? now, now - 3 / layer.fps, now);
  if (!times.length) return at * layer.fps;
  const after = times.findIndex((time) => time > at);
  return (after < 0 ? times.length : after) - 1;
}

function tell() {
  const {clip, frame, playing} = state;
  const seconds = clip.times.length ? clip.times[frame] : frame / clip.fps;
  const holes = clip.holes ? ` · ${Math.round(100 * clip.holes[frame])}% holes` : "";
  $("where").textContent = `${frame + 1} / ${clip.frames} · ${seconds.toFixed(2)} s${holes}`;
  $("scrub").value = frame;
  $("scrub").setAttribute("aria-valuetext", `frame ${frame + 1} of ${clip.frames}${holes}`);
  $("play").setAttribute("aria-label", playing ? "Pause" : "Play");
  $("play").querySelector("path").setAttribute("d", playing ? PAUSE : PLAY);
  for (const update of Object.values(onFrame)) update(frame);
}

// ---- the stage ----------------------------------------------------------------------------------

function addView(layer, kind) {
  const video = el("video", {src: layer.src, preload: "auto", playsinline: ""});
  const caption = el("figcaption", {}, layer.name);
  const figure = el("figure", {class: kind}, video, caption);
  const view = {layer, video, figure, seen: false, wanted: null, drawn: null};
  const note = (now, {mediaTime}) => {
    view.drawn = mediaTime;
    video.requestVideoFrameCallback(note);
  };
  video.requestVideoFrameCallback?.(note);
  video.muted = true;
  if ("part" in layer) figure.style = `--part: ${layer.part}; --parts: 3`;
  for (const name of ["loadedmetadata", "seeked"]) video.addEventListener(name, () => seek(view));
  video.addEventListener("error", () => {
    figure.classList.add("broken");
    caption.textContent = `${layer.name}: this browser cannot play it`;
  });
  $("stage").append(figure);
  return view;
}

/** Let go of the clip that is shown, so that its videos take no memory. */
function close() {
  for (const {video, figure} of views) {
    figure.remove();
    video.removeAttribute("src");
    video.load();
  }
}

function open(clip) {
  const {playing} = state;
  state.playing = false;
  const names = clip.layers.map((layer) => layer.name);
  const output = names.includes("Output") ? "Output" : names[names.length - 2];
  close();
  Object.assign(state, {clip, left: Math.max(0, names.indexOf("Render")),
                        right: Math.max(0, names.indexOf(output))});
  $("stage").style.setProperty("--aspect", clip.aspect);
  views = clip.layers.map((layer) => addView(layer, ""));
  if (clip.mask) views.push(addView({name: "Holes", src: clip.mask, fps: clip.fps}, "holes"));
  for (const side of ["left", "right"]) {
    const words = side === "left" ? "Left" : "Right";
    choices[side] = choice(words, names, state[side], (i) => look({[side]: i}), side);
  }
  $("layers").replaceChildren(choices.left.node, choices.right.node);
  $("mask").hidden = !clip.mask;
  $("scrub").max = clip.frames - 1;
  $("strip").setAttribute("d", clip.holes ? `${line(numbered(clip.holes), 0, 1)}V100H0Z` : "");
  data.clips.forEach((each, i) => {
    $("clips").children[i].setAttribute("aria-pressed", each === clip);
    document.querySelectorAll("aside")[i].hidden = each !== clip;
  });
  drawCurves();
  drawCameras();
  look({playing, frame: state.moved ? clamp(state.frame, 0, clip.frames - 1) : hardest(clip)});
}

/** The frame to begin with. */
function hardest({holes, frames}) {
  return holes ? holes.indexOf(Math.max(...holes)) : Math.floor(frames / 2);
}

/** Change what is looked at: left, right, mode, masked, frame, playing. */
function look(change) {
  Object.assign(state, change);
  const {left, right, mode, masked} = state;
  views.forEach((view, i) => {
    const isMask = i === state.clip.layers.length;
    const chosen = i === right || (i === left && mode === "wipe") || mode === "all";
    view.seen = isMask ? masked : chosen;
    view.figure.classList.toggle("a", i === left);
    view.figure.classList.toggle("b", i === right);
  });
  $("stage").className = mode;
  $("stage").classList.toggle("masked", masked);
  $("mask").setAttribute("aria-pressed", masked);
  choices.left.set(left);
  choices.right.set(right);
  choices.mode.set(MODES.indexOf(mode));
  choices.left.node.hidden = mode !== "wipe";
  choices.right.node.hidden = mode === "all";
  if (state.playing) play(state.frame);
  else show(state.frame);
}

function wipe(percent) {
  state.wipe = clamp(percent, 0, 100);
  $("stage").style.setProperty("--x", `${state.wipe}%`);
  $("wipe").setAttribute("aria-valuenow", Math.round(state.wipe));
}

function listenToWipe() {
  const stage = $("stage");
  const drag = (event) => {
    const box = stage.getBoundingClientRect();
    wipe(100 * (event.clientX - box.left) / box.width);
  };
  stage.addEventListener("pointerdown", (event) => {
    if (state.mode !== "wipe" || event.button) return;
    event.preventDefault();  // no focus, so that arrows go on to step through frames
    stage.setPointerCapture(event.pointerId);
    drag(event);
  });
  stage.addEventListener("pointermove", (event) => {
    if (stage.hasPointerCapture(event.pointerId)) drag(event);
  });
  $("wipe").addEventListener("keydown", (event) => {
    const steps = {ArrowLeft: -2, ArrowRight: 2, Home: -100, End: 100};
    if (!(event.key in steps)) return;
    wipe(state.wipe + steps[event.key]);
    event.preventDefault();
    event.stopPropagation();
  });
}

// ---- curves and cameras -------------------------------------------------------------------------

const numbered = (values) => values.map((value, i) => [i, value]);

/** The outline of points [x, y] in a box of 1000 x 100. There is a gap where y is null. */
function line(points, low, high) {
  const first = points[0][0];
  const width = points[points.length - 1][0] - first || 1;
  let pen = "M";
  let outline = "";
  for (const [x, y] of points) {
    const at = [1000 * (x - first) / width, 100 * (high - y) / (high - low)];
    if (y !== null) outline += pen + at.map((number) => number.toFixed(2));
    pen = y === null ? "M" : "L";
  }
  return outline;
}

/** About three round numbers between two. */
function ticks(low, high) {
  const power = 10 ** Math.floor(Math.log10((high - low) / 3));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= (high - low) / 3);
  const count = Math.floor(high / step) - Math.ceil(low / step) + 1;
  return Array.from({length: count}, (_, i) => (Math.ceil(low / step) + i) * step);
}

/** Curves over one axis. series: {points, style, kind}. words: of a number of the y axis. */
function chart(title, series, words) {
  const points = series.flatMap((each) => each.points).filter(([, y]) => y !== null);
  const values = points.map(([, y]) => y);
  const margin = 0.08 * (Math.max(...values) - Math.min(...values)) || 0.5;
  const low = Math.min(...values) - margin;
  const high = Math.max(...values) + margin;
  const box = svg("svg", {viewBox: "0 0 1000 100", preserveAspectRatio: "none"});
  const plot = el("div", {class: "plot numbers", role: "img", "aria-label": title}, box);
  for (const tick of points.length ? ticks(low, high) : []) {
    const y = 100 * (high - tick) / (high - low);
    box.append(svg("path", {class: "grid", d: `M0 ${y}H1000`}));
    plot.append(el("span", {style: `top: ${y}%`}, words(tick)));
  }
  for (const {points, style, kind = ""} of series) {
    box.append(svg("path", {class: kind, style, d: line(points, low, high)}));
  }
  return plot;
}

function drawCurves() {
  const {clip} = state;
  $("curves").replaceChildren();
  delete onFrame.curves;
  if (!clip.curves) return;
  const regions = Object.keys(clip.curves);
  const region = regions.includes(state.region) ? state.region : regions[0];
  const known = regions.length < 2 && region === "known" ? " on known pixels" : "";
  const title = `PSNR of each frame, against the ${clip.against.toLowerCase()}${known}`;
  const series = Object.entries(clip.curves[region]).map(([name, values], i) =>
    ({name, values, points: numbered(values), style: colour(name, i), now: el("b")}));
  const setRegion = (i) => {
    state.region = regions[i];
    drawCurves();
    tell();
  };
  const words = regions.map((each) => REGIONS[each]);
  const pick = choice("Where", words, regions.indexOf(region), setRegion, "end");
  pick.node.hidden = regions.length < 2;
  const plot = chart(`${title}: ${REGIONS[region]}`, series, (tick) => `${tick} dB`);
  const cursor = plot.appendChild(el("div", {class: "cursor"}));
  const legend = series.map(({name, style, now}) => el("span", {style}, el("i"), `${name} `, now));
  plot.addEventListener("click", (event) => {
    const box = plot.getBoundingClientRect();
    stop(Math.round((clip.frames - 1) * (event.clientX - box.left) / box.width));
  });
  $("curves").append(el("div", {class: "bar"}, el("h3", {}, title), pick.node), plot,
                     el("div", {class: "legend numbers"}, ...legend));
  onFrame.curves = (frame) => {
    cursor.style.left = `${100 * frame / Math.max(1, clip.frames - 1)}%`;
    for (const {values, now} of series) now.textContent = dB(values[frame]);
  };
}

/** The source's and the new camera from above and from the side, beside the stage. */
function drawCameras() {
  const {cameras} = state.clip;
  const moves = [];
  onFrame.cameras = (frame) => moves.forEach((move) => move(frame));
  if (!cameras) return;
  const {source, points} = data.cameras;
  const all = data.clips.flatMap((clip) => clip.cameras || []).concat(source, points);
  const tracks = {source: [source, "--colour: var(--soft)"], new: [cameras, colour("", 0)]};
  // of x right, y down, z forward: what is to the right and what is down in a picture
  const sides = {"From above": ([x, , z]) => [x, -z], "From the right": ([, y, z]) => [-z, y]};
  const figures = Object.entries(sides).map(([title, flat]) => {
    const x = all.map((point) => flat(point)[0]);
    const y = all.map((point) => flat(point)[1]);
    const width = Math.max(...x) - Math.min(...x);
    const height = Math.max(...y) - Math.min(...y);
    const size = 0.1 * Math.max(width, height) || 1;
    const box = [Math.min(...x) - size, Math.min(...y) - size, width + 2 * size, height + 2 * size];
    const picture = svg("svg", {role: "img", "aria-label": title, viewBox: box.join(" ")});
    picture.append(svg("path", {class: "scene", d: points.map((at) => `M${flat(at)}h0`).join("")}));
    for (const [track, style] of Object.values(tracks)) {
      picture.append(svg("path", {class: "track", style, d: `M${track.map(flat).join("L")}`}));
      const camera = picture.appendChild(svg("path", {class: "camera", style}));
      moves.push((frame) => camera.setAttribute("d", wedge(track[frame], flat, size)));
    }
    return el("figure", {}, picture, el("figcaption", {}, title));
  });
  const legend = Object.entries(tracks).map(([name, [, style]]) =>
    el("span", {style}, el("i"), `${name} camera`));
  if (points.length) legend.push(el("span", {}, "dots: what frame 1 shows"));
  document.querySelector("aside:not([hidden]) .views").replaceChildren(
    ...figures, el("div", {class: "legend"}, ...legend));
}

/** The outline of a camera [x, y, z, and the way it looks], seen flat. */
function wedge(camera, flat, size) {
  const [x, y] = flat(camera.slice(0, 3));
  const [dx, dy] = flat(camera.slice(3)).map((part) => part * size);
  return `M${x} ${y}L${x + dx - dy / 2} ${y + dy + dx / 2}L${x + dx + dy / 2} ${y + dy - dx / 2}Z`;
}

function drawTraining() {
  const {fixed, loss, psnr} = data.training;
  const log = loss.filter(([, y]) => y > 0).map(([x, y]) => [x, Math.log10(y)]);
  const smooth = log.map(([x], i) => {
    const last = log.slice(Math.max(0, i - 19), i + 1).map(([, y]) => y);
    return [x, last.reduce((sum, y) => sum + y) / last.length];
  });
  const style = colour("", 0);
  const charts = [
    ["Loss of the fixed batch", [{style, points: fixed}], (y) => y.toPrecision(2)],
    ["Loss of each step, and the mean of 20", [{style, points: log, kind: "faint"},
      {style, points: smooth}], (y) => (10 ** y).toPrecision(1)],
    ["PSNR of validations", [{style, points: psnr}], dB],
  ];
  for (const [title, series, words] of charts.filter((each) => each[1][0].points.length > 1)) {
    const steps = series[0].points.map(([x]) => x);
    const ends = [steps[0], steps[steps.length - 1]].map((x) => el("span", {}, `step ${x}`));
    $("losses").append(el("div", {class: "card"}, el("h3", {}, title), chart(title, series, words),
                          el("div", {class: "ends numbers"}, ...ends)));
    $("training").hidden = false;
  }
}

// ---- choosing, keys -----------------------------------------------------------------------------

/** The numbers of the first clip of a group, and of the first after it. */
function range(group) {
  const first = data.groups.slice(0, group).reduce((sum, [, count]) => sum + count, 0);
  return [first, first + data.groups[group][1]];
}

function openGroup(group) {
  const [first, end] = range(group);
  [...$("clips").children].forEach((card, i) => { card.hidden = i < first || i >= end; });
  open(data.clips[first]);
}

function openOther(step) {
  const number = data.clips.indexOf(state.clip);
  const [first, end] = data.groups.map((_, group) => range(group)).find((each) => number < each[1]);
  open(data.clips[first + (number - first + step + end - first) % (end - first)]);
}

const toggle = (mode) => look({mode: state.mode === mode ? "wipe" : mode});
const BUTTONS = {
  play: () => state.playing ? stop() : play((state.frame + 1) % state.clip.frames && state.frame),
  back: () => stop(state.frame - 1),
  next: () => stop(state.frame + 1),
  mask: () => look({masked: !state.masked}),
  full: () => document.fullscreenElement ? document.exitFullscreen()
    : $("screen").requestFullscreen(),
  keys: () => $("help").showModal(),
  close: () => $("help").close(),
};
const KEYS = {
  " ": BUTTONS.play, m: BUTTONS.mask, f: BUTTONS.full, "?": BUTTONS.keys,
  "[": () => openOther(-1), "]": () => openOther(1), w: () => toggle("one"), a: () => toggle("all"),
  x: () => look({left: state.right, right: state.left}),
};

function onKey(event) {
  const {key, shiftKey, target} = event;
  const modified = event.ctrlKey || event.metaKey || event.altKey;
  if (modified || $("help").open || !$("listen").checked) return;
  if (key === " " && target.closest("button, a, summary")) return;
  if (key.startsWith("Arrow") && target.type === "radio") return;
  const digit = /^Digit([1-9])$/.exec(event.code);
  const arrow = {ArrowLeft: -1, ArrowRight: 1}[key];
  if (arrow) stop(state.frame + arrow * (shiftKey ? 10 : 1));
  else if (digit && digit[1] <= state.clip.layers.length) {
    look({[shiftKey ? "left" : "right"]: digit[1] - 1});
  } else if (key in KEYS) KEYS[key]();
  else return;
  event.preventDefault();
}

function start() {
  choices.mode = choice("View", ["Wipe", "One", "All"], 0, (i) => look({mode: MODES[i]}), "");
  $("modes").append(choices.mode.node);
  if (data.groups.length > 1) {
    const names = data.groups.map(([name, count]) => `${name} (${count})`);
    $("groups").append(choice("Kind of clip", names, 0, openGroup, "").node);
  }
  data.clips.forEach((clip, i) => {
    $("clips").children[i].addEventListener("click", () => open(clip));
  });
  for (const [id, press] of Object.entries(BUTTONS)) $(id).addEventListener("click", press);
  $("full").hidden = !document.fullscreenEnabled;
  $("scrub").addEventListener("input", (event) => stop(Number(event.target.value)));
  document.addEventListener("keydown", onKey);
  document.addEventListener("click", ({detail, target}) => {  // space is to play after a click
    const pressed = detail && target.closest("button, label") && !$("help").open;
    if (pressed) requestAnimationFrame(() => document.activeElement.blur());
  });
  listenToWipe();
  wipe(50);
  openGroup(0);
  drawTraining();
}

start();
