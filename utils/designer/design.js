"use strict";
// The path designer's page: options and files of a path, the list of paths, buttons, the beginning.
const NEEDED = "Chrome 98, Edge 121, Firefox 113, Safari 16.4 or newer";
const INSTEAD = `Use ${NEEDED}, or data_gen.py --preview and trajs/*.txt.`;
const KEYS = {" ": "play", k: "add", Delete: "delete", Backspace: "delete"};

function drawAll() {
  drawTime();
  drawKeys();
  drawCurves();
  drawFields();
  drawOptions();
  drawOverview();
}

// ---- options and files --------------------------------------------------------------------------

function drawOptions() {
  const one = path();
  const isSpline = one.between === "spline" && isCurved(one);
  const ways = {lines: "straight lines", smooth: "smooth, through all keys"};
  if (isSpline) ways.spline = "smoothed, as a txt is";
  $("between").replaceChildren(...Object.entries(ways).map(([value, words]) =>
    el("option", {value}, words)));
  $("between").value = isSpline ? "spline" : one.between === "smooth" ? "smooth" : "lines";
  $("ease").selectedIndex = Number(one.ease);
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
  $("why").textContent = aboutFiles(one, why);
  $("command").textContent = commandOf(one, why ? "json" : state.kind || "json");
}

/** What people should know of a path's files. why: what keeps it from being a txt, or null. */
function aboutFiles(one, why) {
  if (why) return `A txt cannot hold this path: ${why}. The json is exact.`;
  if (one.pivot && data.width !== data.video[0]) {
    return "The pivot is exact in the json alone: for a txt, data_gen.py reads the depth there at " +
      "the video's full size, so that the camera turns about nearly the same point.";
  }
  return "Both files are exact. Put them beside data_gen.py.";
}

/** The name of a path's file: no other path's, and none that a program would take for a flag. */
function fileName(one, kind) {
  const taken = [];
  for (const each of state.paths) {
    const plain = each.name.replace(/[^\p{L}\p{N}._-]+/gu, "_").replace(/^[-.]+/, "") || "path";
    let name = plain;
    for (let n = 2; taken.includes(name.toLowerCase()); n++) name = `${plain}_${n}`;
    if (each === one) return `${name}.${kind}`;
    taken.push(name.toLowerCase());
  }
  return null;
}

function commandOf(one, kind) {
  const [start, orbit] = data.command;
  if (kind === "json") return `${start} --cameras ${fileName(one, "json")}`;
  const ofPage = orbit && !one.pivot ? [orbit] : [];
  return [start, "--trajs", fileName(one, "txt"), ...ofPage, ...flagsOf(one)].join(" ");
}

function download(one, kind) {
  const text = kind === "json" ? toJson(one, source) : toTxt(one);
  const link = el("a", {download: fileName(one, kind),
                        href: URL.createObjectURL(new Blob([text], {type: "text/plain"}))});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function save(paths, kind) {
  finishWheel();
  for (const one of paths) {
    download(one, kind);
    written.add(JSON.stringify(one));
  }
  state.kind = kind;
  remember();
  drawOptions();
}

async function load(all) {
  for (const file of all) {
    try {
      const text = await file.text();
      const isTxt = file.name.endsWith(".txt");
      addPath(isTxt ? await withNeeds(fromTxt(file.name, text), needsOf(text))
        : fromJson(file.name, text, source));
    } catch (error) {
      note(error.message);
    }
  }
}

/** A txt's path as it was saved: relative to what, and turning about what. */
async function withNeeds(one, {pixel, anchor}) {
  if (anchor === "first" && !data.c2w) note(`${one.name}.txt was relative to the first camera.`);
  else one.anchor = anchor;
  const [x, y] = pixel || [];
  const point = pixel && await warp.ask("point", {picture: 0, k: data.k[0], x, y});
  if (point) one.pivot = {pixel, point};
  return one;
}

async function copyCommand() {
  try {
    await navigator.clipboard.writeText($("command").textContent);
    note("Copied. Run it in the folder of data_gen.py.");
  } catch {  // no clipboard here, or it may not be used
    getSelection().selectAllChildren($("command"));
  }
}

// ---- the list of paths --------------------------------------------------------------------------

function addPath(one) {
  const before = beginChange();
  const isTaken = (name) => state.paths.some((other) => other.name === name);
  let name = one.name;
  for (let number = 2; isTaken(name); number++) name = `${one.name}_${number}`;
  state.paths.push({...one, name, anchor: data.c2w ? one.anchor : "source"});
  state.chosen = state.paths.length - 1;
  finish(before);
  drawPaths();
}

function removePath() {
  change(() => {
    state.paths.splice(state.chosen, 1);
    computed.splice(state.chosen, 1);
    state.chosen = Math.min(state.chosen, state.paths.length - 1);
  });
  drawPaths();
}

function choose(i) {
  if (i === state.chosen) return;
  finishWheel();
  state.chosen = i;
  [...$("paths").children].forEach((row, j) => row.setAttribute("aria-current", j === i));
  drawView();
  drawAll();
  refreshPoints();
}

function drawPaths() {
  $("paths").replaceChildren(...state.paths.map((one, i) => {
    const colour = COLOURS[i % COLOURS.length];
    const name = el("input", {type: "text", value: one.name, "aria-label": "Name"});
    name.addEventListener("change", () => {
      change(() => { state.paths[i].name = name.value.trim().slice(0, 60) || "path"; });
      name.value = state.paths[i].name;
    });
    name.addEventListener("focus", () => choose(i));
    const row = el("div", {"aria-current": i === state.chosen},
                   el("i", {style: `background: ${colour}`}), name,
                   el("svg", {viewBox: "0 0 1000 100", preserveAspectRatio: "none"},
                      el("path", {stroke: colour})),
                   el("b", {title: "most holes of a frame"}));
    onPress(row, () => choose(i));
    return row;
  }));
  state.paths.forEach((_, i) => drawShares(i));
  $("remove").disabled = state.paths.length < 2;
}

/** Write the holes of a path into its row, while its name may be typed there. */
function drawShares(i) {
  const row = $("paths").children[i];
  if (!row) return;
  const {holes} = computed[i];
  const most = Math.max(0, ...holes);
  row.querySelector("path").setAttribute("d", line(holes, 0, 1, countedFrames));
  const number = row.querySelector("b");
  number.textContent = holes.length ? percent(most) : "…";
  number.classList.toggle("many", most > MANY_HOLES);
}

// ---- presets and copies -------------------------------------------------------------------------

function applyPreset() {
  const preset = data.presets[$("preset").selectedIndex];
  const amount = Number($("amount").value);
  const next = copyOf(path());
  addPreset(next, preset, amount, withPicture(Math.floor(data.frames / 2)));
  const {r, zoom} = curves(next, data.frames);
  const isGood = $("amount").value !== "" && Math.abs(amount) <= data.constants.far &&
    Math.min(...zoom) > 0 && Math.max(...r) < 1;
  if (isGood) {
    change(() => { state.paths[state.chosen] = next; });
    return;
  }
  note(`${preset.name} by ${$("amount").value || "nothing"} leads past what the camera turns ` +
       "about, or to no focal length. Give a smaller amount.");
}

/** What is copied, without free moves and zoom that neither it nor this path has. */
function pasted() {
  const has = (axis) => ORBIT.includes(axis) || path().tracks[axis] ||
    state.copied[axis] !== Number(axis === "zoom");
  return Object.fromEntries(Object.entries(state.copied).filter(([axis]) => has(axis)));
}

function showPreset() {
  const {usual, unit} = data.presets[$("preset").selectedIndex];
  $("amount").value = usual;
  $("unit").textContent = unit;
}

// ---- buttons and keyboard -----------------------------------------------------------------------

const PRESSED = {
  play: () => (state.playing ? pause() : play()),
  undo: () => travel("undo", "redo"),
  redo: () => travel("redo", "undo"),
  add: () => change(() => setKey(path(), momentOf(state.frame), {})),
  delete: () => change(() => deleteKey(path(), keyAt(state.frame))),
  copy: () => {
    state.copied = valuesAt(path(), momentOf(state.frame));
    pressKey();
  },
  paste: () => change(() => setKey(path(), momentOf(state.frame), pasted())),
  new: () => addPath(newPath("path")),
  double: () => addPath(copyOf(path())),
  remove: removePath,
  apply: applyPreset,
  pick: () => setPicking(!state.isPicking),
  centre: () => change(() => { path().pivot = null; }),
  json: () => save([path()], "json"),
  txt: () => save([path()], "txt"),
  "save-all": () => save(state.paths, "json"),
  load: () => $("file").click(),
  clip: copyCommand,
};

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

/** Let a control change the path. */
function onChange(id, act) {
  $(id).addEventListener("change", () => change(() => act(path(), $(id))));
}

function listenToOptions() {
  onChange("between", (one, {value}) => {
    if (one.between === "spline") goThroughKeys(one);
    one.between = value;
  });
  onChange("ease", (one, {selectedIndex}) => { one.ease = selectedIndex === 1; });
  onChange("still", (one, {selectedIndex}) => {
    one.still = selectedIndex ? withPicture(state.frame) : null;
  });
  onChange("anchor", (one, {value}) => { one.anchor = value; });
  $("still").append(el("option", {}, "passes"), el("option"));
  $("preset").append(...data.presets.map(({name}) => el("option", {}, name)));
  $("preset").addEventListener("change", showPreset);
  showPreset();
}

function listenToFiles() {
  $("file").addEventListener("change", async () => {
    await load($("file").files);
    $("file").value = "";
  });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    load(event.dataTransfer.files);
  });
}

function listen() {
  choice("modes", MODES, state.mode, (mode) => { state.mode = mode; });
  choice("holes", HOLE_STYLES, state.holes, (holes) => {
    state.holes = holes;
    drawView();
  });
  for (const [id, press] of Object.entries(PRESSED)) $(id).addEventListener("click", press);
  $("scrub").max = last;
  $("scrub").addEventListener("input", () => {
    pause();
    go(Number($("scrub").value));
  });
  addEventListener("keydown", onKey);
  addEventListener("click", ({detail, target}) => {  // space is to play after a click
    if (detail && target.closest("button, summary")) document.activeElement.blur();
  });
  scrubOn($("keys"));
  listenToOptions();
  listenToFiles();
  listenToView();
  listenToOverview();
}

// ---- the beginning ------------------------------------------------------------------------------

/** Throws if this browser lacks something. */
function checkBrowser() {
  const needed = ["Worker", "DecompressionStream", "OffscreenCanvas", "structuredClone"];
  const missing = needed.find((name) => !(name in window));
  if (missing) throw new Error(`This browser has no ${missing}`);
}

function tellFacts() {
  const [width, height] = data.video;
  const facts = [`${data.frames} frames`, `${width} × ${height}`, `${+data.fps.toFixed(3)} fps`];
  if (data.width !== width) facts.push(`shown at ${data.width} × ${data.height}`);
  if (data.every > 1) facts.push(`one frame in ${data.every} is shown`);
  if (data.edge_threshold) facts.push(`--edge_threshold ${data.edge_threshold}`);
  if (data.fused) facts.push("holes are shown as before --fuse_static");
  $("facts").textContent = facts.join(" · ");
}

function startWarp() {
  warp = new Warp();
  const {width, height, depth, pictures, edge_threshold, constants} = data;
  const scale = [width / data.video[0], height / data.video[1]];
  const scene = {width, height, depth, pictures, edge_threshold, constants, scale};
  return warp.ask("start", {scene});
}

/** Begin with what this browser kept, else with the paths of the page. */
function beginWithPaths() {
  for (const one of data.paths) written.add(JSON.stringify(one));
  const before = recall(data.paths.map(copyOf));
  Object.assign(state, before || {paths: data.paths.map(copyOf)});
  showPaths();
  if (!before) return;
  note("These are the paths that you had not saved.", "Discard them", () => {
    change(() => {
      Object.assign(state, {paths: data.paths.map(copyOf), chosen: 0});
      updateAll();
    });
    drawPaths();
  });
}

async function start() {
  try {
    checkBrowser();
    tellFacts();
    Object.assign($("view"), {width: data.width, height: data.height});
    $("view").style.setProperty("--aspect", data.width * data.pixel_aspect / data.height);
    $("trouble").hidden = true;
    $("all").hidden = false;
    await startWarp();
    makeFields();
    listen();
    beginWithPaths();
    addEventListener("unhandledrejection", ({reason}) => fail(`${reason.message}. ${INSTEAD}`));
  } catch (error) {
    $("all").hidden = true;
    fail(`${error.message}. ${INSTEAD}`);
  }
}

start();
