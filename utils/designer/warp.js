"use strict";
// The worker of the path designer: data_gen.py's forward warp, in the same float32 arithmetic.
// Every operation of utils/warp.py that decides where a pixel lands is rounded as it is there, by
// Math.fround, so that the masks are equal. Nothing here needs a GPU.
const round = Math.fround;
const KEPT = 100;  // decoded frames held in memory
const HOLES = {black: [0, 0, 0], colour: [255, 0, 140]};
let scene;  // what utils/designer/page.py wrote, with depth as codes
const pictures = new Map();  // number of a picture: bytes, RGBA
const depths = new Map();    // number of a picture: float32, at the size shown
let sums = null;             // of the splat: red, green, blue, weight of each pixel

// ---- what the page holds ------------------------------------------------------------------------

async function unzip(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Depth maps as codes of 16 bits: what pack() of page.py wrote. */
async function readCodes({width, height, maps}) {
  const count = width * height;
  const stride = width + 1;
  const codes = [];
  for (const map of maps) {
    const bytes = await unzip(map);
    const padded = new Uint16Array(stride * (height + 1));
    for (let i = 0; i < count; i++) {
      const at = i + stride + 1 + Math.floor(i / width);
      const left = padded[at - 1];
      const upper = padded[at - stride];
      const line = left + upper - padded[at - stride - 1];
      const guess = Math.max(Math.min(left, upper), Math.min(Math.max(left, upper), line));
      const step = bytes[i] + 256 * bytes[count + i];
      padded[at] = guess + (step & 1 ? -(step + 1) / 2 : step / 2);
    }
    codes.push(padded);
  }
  return codes;
}

/** The depth of every code: float16 bits, or even steps of 1 / z or log z; 0 stands for unknown. */
function codebook({kind, low, step}) {
  const values = new Float32Array(65536);
  for (let code = 1; code < 65536; code++) {
    if (kind === "inverse") {
      values[code] = 1 / (low + step * code);
    } else if (kind === "log") {
      values[code] = Math.exp(low + step * code);
    } else if (code < 0x7c00) {
      const exponent = code >> 10;
      const fraction = code & 1023;
      values[code] = exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction / 2 ** 24;
    }
  }
  return values;
}

/** What a map holds of a key, or make() gives; what was used least recently goes first. */
async function cached(map, key, make) {
  const value = map.get(key) ?? await make();
  map.delete(key);
  map.set(key, value);
  if (map.size > KEPT) map.delete(map.keys().next().value);
  return value;
}

function picture(i) {
  return cached(pictures, i, async () => {
    const bytes = Uint8Array.from(atob(scene.pictures[i]), (c) => c.charCodeAt(0));
    const image = await createImageBitmap(new Blob([bytes], {type: "image/avif"}),
                                          {colorSpaceConversion: "none"});
    const context = new OffscreenCanvas(scene.width, scene.height)
      .getContext("2d", {willReadFrequently: true});
    context.drawImage(image, 0, 0);
    return context.getImageData(0, 0, scene.width, scene.height).data;
  });
}

function depth(i) {
  return cached(depths, i, async () => {
    const {width, height} = scene.depth;
    const map = new Float32Array(width * height);
    const codes = scene.codes[i];
    for (let y = 0, at = 0; y < height; y++) {
      const row = (y + 1) * (width + 1) + 1;
      for (let x = 0; x < width; x++, at++) map[at] = scene.codebook[codes[row + x]];
    }
    const whole = resize(map, width, height, scene.width, scene.height);
    return scene.edge_threshold ? cutEdges(whole, scene.edge_threshold) : whole;
  });
}

/** Of each output pixel: the two inputs about it and the second one's weight, as torch has them. */
function taps(size, wanted) {
  const scale = round(size / wanted);
  const found = [];
  for (let i = 0; i < wanted; i++) {
    const at = Math.max(0, round(round(scale * round(i + 0.5)) - 0.5));
    const low = Math.min(Math.floor(at), size - 1);
    const weight = round(at - low);
    found.push([low, Math.min(low + 1, size - 1), round(1 - weight), weight]);
  }
  return found;
}

/** Sequence.depth of utils/sequence.py: bilinear, 0 where any of the four depths is unknown. */
function resize(map, width, height, newWidth, newHeight) {
  if (width === newWidth && height === newHeight) return map;
  const columns = taps(width, newWidth);
  const rows = taps(height, newHeight);
  const result = new Float32Array(newWidth * newHeight);
  const across = (row, [low, high, a, b]) =>
    round(round((map[row + low] || 1) * a) + round((map[row + high] || 1) * b));
  const unknown = (row, [low, high, a, b]) => (map[row + low] ? 0 : a) + (map[row + high] ? 0 : b);
  for (let y = 0; y < newHeight; y++) {
    const [top, bottom, c, d] = rows[y];
    for (let x = 0; x < newWidth; x++) {
      const above = across(top * width, columns[x]);
      const below = across(bottom * width, columns[x]);
      const lost = unknown(top * width, columns[x]) * c + unknown(bottom * width, columns[x]) * d;
      if (lost < 1e-4) result[y * newWidth + x] = round(round(above * c) + round(below * d));
    }
  }
  return result;
}

/** cut_edges of utils/warp.py: unknown where depth jumps by over `threshold` in 3 x 3 pixels. */
function cutEdges(map, threshold) {
  const {width, height} = scene;
  const factor = round(1 + threshold);
  const result = map.slice();
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      let far = 0;
      let near = Infinity;
      for (let row = Math.max(0, y - 1); row <= Math.min(height - 1, y + 1); row++) {
        for (let column = Math.max(0, x - 1); column <= Math.min(width - 1, x + 1); column++) {
          const z = map[row * width + column];
          far = Math.max(far, z);
          near = Math.min(near, z);
        }
      }
      if (far > round(factor * near)) result[y * width + x] = 0;
    }
  }
  return result;
}

// ---- the warp -----------------------------------------------------------------------------------

/** H and T t of reproject in utils/warp.py, 9 and 3 numbers of float32. */
function homography(motion, k, target) {
  const rotation = motion.slice(0, 3).map((row) => row.slice(0, 3));
  const product = multiply(target, rotation);
  const h = multiply(product.map((row, i) => row.map((value, j) => value - k[i][j])), inverse(k));
  const moved = multiply(target, motion.slice(0, 3).map((row) => [row[3]]));
  return [h.flatMap((row, i) => row.map((value, j) => round(value + (i === j)))),
          moved.map(([value]) => round(value))];
}

/** Where a coordinate falls on a canvas with a border of one: cut to it, and 1 added. */
function onCanvas(at, size) {
  if (!(at > -1)) return 0;  // not a number counts as outside
  return at < size ? round(at + 1) : size + 1;
}

/** The sums of all pixels' weighted colours, or, without a picture, of nothing but presence. */
function splat(z, [h, t], colours) {
  const {width, height} = scene;
  const [h0, h1, h2, h3, h4, h5, h6, h7, h8] = h;
  const [t0, t1, t2] = t;
  const stride = width + 2;
  const total = sums ||= new Float32Array(4 * stride * (height + 2));
  total.fill(0);
  const {sharpness, max_depth: most} = scene.constants;
  const falloff = colours ? -sharpness / farthest(z, h, t2) : 0;
  for (let y = 0, i = 0; y < height; y++) {
    const a = round(h1 * y);
    const b = round(h4 * y);
    const c = round(h7 * y);
    for (let x = 0; x < width; x++, i++) {
      const near = z[i];
      if (near === 0) continue;
      const inverted = round(1 / near);
      const below = round(round(round(round(h6 * x) + c) + h8) + round(t2 * inverted));
      const now = round(below * near);
      if (!(now > 0)) continue;
      const across = round(round(round(round(h0 * x) + a) + h2) + round(t0 * inverted));
      const down = round(round(round(round(h3 * x) + b) + h5) + round(t1 * inverted));
      const u = onCanvas(round(across / below), width);
      const v = onCanvas(round(down / below), height);
      const left = Math.floor(u);
      const top = Math.floor(v);
      const right = Math.ceil(u);
      const bottom = Math.ceil(v);
      const weight = colours ? Math.exp(falloff * Math.log1p(Math.min(now, most))) : 1;
      const leftShare = round(1 - round(u - left));
      const rightShare = round(1 - round(right - u));
      const upper = weight * round(1 - round(v - top));
      const lower = weight * round(1 - round(bottom - v));
      const p = 4 * i;
      add(total, 4 * (top * stride + left), upper * leftShare, colours, p);
      add(total, 4 * (top * stride + right), upper * rightShare, colours, p);
      add(total, 4 * (bottom * stride + left), lower * leftShare, colours, p);
      add(total, 4 * (bottom * stride + right), lower * rightShare, colours, p);
    }
  }
  return total;
}

function add(total, at, share, colours, p) {
  total[at + 3] += share;
  if (colours === null) return;
  total[at] += share * colours[p];
  total[at + 1] += share * colours[p + 1];
  total[at + 2] += share * colours[p + 2];
}

/** The largest log(1 + z') of a frame, which the soft z-buffer is normalised by. */
function farthest(z, h, t2) {
  const {width, height} = scene;
  let most = 0;
  for (let y = 0, i = 0; y < height; y++) {
    const c = h[7] * y + h[8];
    for (let x = 0; x < width; x++, i++) {
      if (z[i] !== 0) most = Math.max(most, (h[6] * x + c) * z[i] + t2);
    }
  }
  return Math.max(Math.log1p(Math.min(most, scene.constants.max_depth)), 1e-12);
}

/** Where a new view is known: 1, or 0 in a hole that has grown by `reach` pixels to every side. */
function grownMask(total) {
  const {width, height, constants: {reach}} = scene;
  const across = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) {
    const row = 4 * ((y + 1) * (width + 2) + 1) + 3;
    let last = -Infinity;  // the hole nearest on the left of x + reach
    for (let x = 0; x < width + reach; x++) {
      if (x < width && !(total[row + 4 * x] > 0)) last = x;
      if (x >= reach) across[y * width + x - reach] = x - last > 2 * reach ? 1 : 0;
    }
  }
  const mask = new Uint8Array(width * height);
  for (let x = 0; x < width; x++) {
    let last = -Infinity;
    for (let y = 0; y < height + reach; y++) {
      if (y < height && !across[y * width + x]) last = y;
      if (y >= reach) mask[(y - reach) * width + x] = y - last > 2 * reach ? 1 : 0;
    }
  }
  return mask;
}

/** Bytes RGBA of a view; holes: black, colour, or source, which shines through. */
function colour(total, mask, source, holes) {
  const {width, height} = scene;
  const pixels = new Uint8ClampedArray(4 * width * height);
  const [red, green, blue] = HOLES[holes] || HOLES.black;
  for (let y = 0, i = 0; y < height; y++) {
    let at = 4 * ((y + 1) * (width + 2) + 1);
    for (let x = 0; x < width; x++, i++, at += 4) {
      const p = 4 * i;
      pixels[p + 3] = 255;
      if (mask[i]) {
        const weight = total[at + 3];
        for (let c = 0; c < 3; c++) pixels[p + c] = Math.floor(total[at + c] / weight + 1e-3);
      } else if (holes === "source") {
        for (let c = 0; c < 3; c++) pixels[p + c] = 40 + source[p + c] / 3;
      } else {
        pixels[p] = red;
        pixels[p + 1] = green;
        pixels[p + 2] = blue;
      }
    }
  }
  return pixels;
}

// ---- what the page asks for ---------------------------------------------------------------------

/** K in pixels of the size shown. */
function shownK(k) {
  const [x, y] = scene.scale;
  return [[k[0][0] * x, k[0][1] * x, k[0][2] * x], [k[1][0] * y, k[1][1] * y, k[1][2] * y], k[2]];
}

function motionOf({k, target, c2w}) {
  return homography(inverse(c2w), shownK(k), shownK(target));
}

const answers = {
  /** A new view: its pixels, its share of holes and, if it is wanted, its mask. */
  async view({picture: i, holes, isMaskWanted, ...camera}) {
    const source = await picture(i);
    const total = splat(await depth(i), motionOf(camera), source);
    const mask = grownMask(total);
    const found = {pixels: colour(total, mask, source, holes), share: share(mask)};
    return isMaskWanted ? {...found, mask} : found;
  },
  /** The pixels of a picture itself. */
  async source({picture: i}) {
    return {pixels: (await picture(i)).slice()};
  },
  /** The share of holes alone. */
  async holes({picture: i, ...camera}) {
    return share(grownMask(splat(await depth(i), motionOf(camera), null)));
  },
  /** The point that a pixel shows, in source camera coordinates, or null. */
  async point({picture: i, k, x, y}) {
    const at = Math.floor(y * scene.scale[1]) * scene.width + Math.floor(x * scene.scale[0]);
    const z = (await depth(i))[at];
    return z > 0 ? [z * (x - k[0][2]) / k[0][0], z * (y - k[1][2]) / k[1][1], z] : null;
  },
  /** Some points of a frame and their colours, in source camera coordinates. */
  async points({picture: i, k, count}) {
    const [map, bytes] = [await depth(i), await picture(i)];
    const step = Math.max(1, Math.round(Math.sqrt(map.length / count)));
    const [[fx, , cx], [, fy, cy]] = shownK(k);
    const places = [];
    const colours = [];
    for (let y = step >> 1; y < scene.height; y += step) {
      for (let x = step >> 1; x < scene.width; x += step) {
        const at = y * scene.width + x;
        const z = map[at];
        if (z === 0) continue;
        places.push(z * (x - cx) / fx, z * (y - cy) / fy, z);
        colours.push(bytes[4 * at], bytes[4 * at + 1], bytes[4 * at + 2]);
      }
    }
    return {places, colours};
  },
};

function share(mask) {
  let known = 0;
  for (let i = 0; i < mask.length; i++) known += mask[i];
  return 1 - known / mask.length;
}

async function start(given) {
  scene = given;
  scene.codes = await readCodes(scene.depth);
  scene.codebook = codebook(scene.depth);
  await picture(0).catch(() => {
    throw new Error("This browser cannot read AVIF pictures");
  });
}

if (typeof WorkerGlobalScope !== "undefined") {
  onmessage = async ({data: {ask, ...rest}}) => {
    try {
      const answer = ask === "start" ? await start(rest.scene) : await answers[ask](rest);
      postMessage({answer}, answer?.pixels ? [answer.pixels.buffer] : []);
    } catch (error) {
      postMessage({error: error.message});
    }
  };
}
