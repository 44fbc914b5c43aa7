"use strict";
// The overview of the path designer: scene, source cameras and paths from outside, on a 2D canvas.
const POINTS = 4000;  // of the scene, that are drawn
const outside = {yaw: 35, pitch: -25, scale: 1.15};  // the camera that looks at it all
let points = null;  // of the scene: {places, colours, frame: of the source}
let isPaintAsked = false;

const sourceFrame = () => withPicture(computed[state.chosen].cameras.frames[state.frame]);

async function drawPoints() {
  const frame = sourceFrame();
  const wanted = {picture: frame / data.every, k: data.k[frame], count: POINTS};
  points = {...await warp.ask("points", wanted, "points"), frame};
  drawOverview();
}

/** Bring the points to the frame that is shown; while the video plays, that would hold it up. */
function refreshPoints() {
  if (!state.playing && points?.frame !== sourceFrame()) drawPoints();
}

/** Paint once before the next picture of the screen, however often it is asked. */
function drawOverview() {
  if (isPaintAsked) return;
  isPaintAsked = true;
  requestAnimationFrame(() => {
    isPaintAsked = false;
    paintOverview();
  });
}

function paintOverview() {
  const canvas = $("overview");
  const scale = devicePixelRatio;
  const width = Math.round(canvas.clientWidth * scale);
  const height = Math.round(canvas.clientHeight * scale);
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, {width, height});
  const context = canvas.getContext("2d");
  const project = projection(width, height);
  context.clearRect(0, 0, width, height);
  if (points) drawScene(context, project, scale);
  const quiet = getComputedStyle(document.body).getPropertyValue("--quiet");
  Object.assign(context, {lineWidth: scale, strokeStyle: quiet});
  drawTrack(context, project, sourcePoses);
  computed.forEach(({track: poses, cameras: {intrinsics}}, i) => {
    const isChosen = i === state.chosen;
    Object.assign(context, {globalAlpha: isChosen ? 1 : 0.45, lineWidth: (isChosen ? 2 : 1) * scale,
                            strokeStyle: COLOURS[i % COLOURS.length]});
    drawTrack(context, project, poses);
    if (isChosen) drawFrustum(context, project, poses[state.frame], intrinsics[state.frame]);
  });
  Object.assign(context, {globalAlpha: 1, strokeStyle: quiet});
  const frame = computed[state.chosen].cameras.frames[state.frame];
  drawFrustum(context, project, sourcePoses[frame], data.k[frame]);
}

/** A function from a place to [x, y, depth] on the canvas; null behind the eye.
 *
 * The eye looks at a place before the pivot from two and a half radii away.
 */
function projection(width, height) {
  const radius = data.pivot[2];
  const turn = multiply(rotation(outside.pitch, 1, 2), rotation(outside.yaw, 2, 0));
  const focal = 1.1 * Math.min(width, height) * outside.scale;
  return (place) => {
    const from = place.map((value, i) => (value - 0.6 * data.pivot[i]) / radius);
    const [x, y, z] = turn.map((row) => row[0] * from[0] + row[1] * from[1] + row[2] * from[2]);
    const depth = z + 2.5;
    if (depth <= 0.05) return null;
    return [width / 2 + focal * x / depth, height / 2 + focal * y / depth, depth];
  };
}

/** A place in a camera, in the world. */
function inWorld(pose, [x, y, z]) {
  return [0, 1, 2].map((i) => pose[i][0] * x + pose[i][1] * y + pose[i][2] * z + pose[i][3]);
}

function drawScene(context, project, scale) {
  const {places, colours, frame} = points;
  const found = [];
  for (let i = 0; i < places.length; i += 3) {
    const at = project(inWorld(sourcePoses[frame], places.slice(i, i + 3)));
    if (at) found.push([...at, i]);
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
  const place = ([x, y]) => project(inWorld(pose,
    [depth * (x - k[0][2]) / k[0][0], depth * (y - k[1][2]) / k[1][1], depth]));
  const corners = [[0, 0], [width, 0], [width, height], [0, height]].map(place);
  const eye = project(inWorld(pose, [0, 0, 0]));
  stroke(context, [...corners, corners[0]]);
  for (const corner of corners) stroke(context, [eye, corner]);
}

function listenToOverview() {
  const canvas = $("overview");
  onPress(canvas, (event) => {
    let [x, y] = [event.clientX, event.clientY];
    track(event, (move) => {
      outside.yaw += (move.clientX - x) / 2;
      outside.pitch = clamp(outside.pitch - (move.clientY - y) / 2, -89, 89);
      [x, y] = [move.clientX, move.clientY];
      drawOverview();
    });
  });
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;  // the page scrolls; a pinch on a trackpad has ctrlKey
    event.preventDefault();
    outside.scale = clamp(outside.scale * Math.exp(-event.deltaY / 500), 0.2, 8);
    drawOverview();
  }, {passive: false});
  addEventListener("resize", drawOverview);
}
