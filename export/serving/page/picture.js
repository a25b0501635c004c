// The picture with masks, boxes and labels over it, at any scale.

import { css, rgb } from "./colors.js";
import { pasteRegion } from "./masks.js";

const FILL = { plain: 0.42, near: 0.6, alone: 0.08 }; // opacity of masks
const VEIL = "rgb(12 14 17 / 0.72)"; // over all but the object that is seen alone

// Draws into a canvas of the size it has; small objects end up on top.
//   bitmap: the picture; objects: those to draw, best first, with `shade`;
//   alone: the object among them that is seen alone, or null; near: one to stress, or null.
export function drawPicture(canvas, bitmap, objects, { alone = null, near = null, line = 2 } = {}) {
  const context = canvas.getContext("2d");
  const scale = canvas.width / bitmap.width;
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const shown = alone ? [alone] : objects.toSorted((a, b) => areaOf(a) - areaOf(b));
  const styleOf = (object) => (alone ? "alone" : object === near ? "near" : "plain");
  const layers = shown.map((object) => layerOf(object, canvas, scale, line, styleOf(object)));
  if (alone) veil(context, canvas, bitmap, layers[0]);
  for (const layer of layers.toReversed()) {
    if (layer.picture) context.drawImage(layer.picture, layer.left, layer.top);
  }
  for (const object of shown.toReversed()) {
    drawBox(context, object, scale, object === near ? line * 2 : line);
  }
  const first = near && shown.includes(near) ? [near] : [];
  const ranked = alone ? shown : objects;
  drawLabels(context, [...first, ...ranked.filter((o) => o !== near)], near, scale, line);
}

// Whether a point of the picture, in its pixels, is in an object's mask.
export function covers(object, x, y) {
  const [y1, x1, y2, x2] = object.maskWindow;
  if (x < x1 || x >= x2 || y < y1 || y >= y2) return false;
  const [row, column] = [Math.floor(y), Math.floor(x)];
  const window = [y1 - row, x1 - column, y2 - row, x2 - column]; // from that pixel's corner
  return pasteRegion(object.mask, window, 1, 1).data[0] === 1;
}

// Of an object's box, in pixels of the picture.
export function areaOf({ box: [y1, x1, y2, x2] }) {
  return (y2 - y1) * (x2 - x1);
}

// An object's mask at this scale, with a solid edge; kept, since pasting is the slow part.
const kept = new WeakMap();

function layerOf(object, canvas, scale, line, style) {
  const key = `${canvas.width}×${canvas.height} ${line} ${style}`;
  const layers = kept.get(object) ?? new Map();
  kept.set(object, layers);
  if (layers.size > 4) layers.clear(); // scales of windows resized long ago
  if (!layers.has(key)) layers.set(key, makeLayer(object, canvas, scale, line, FILL[style]));
  return layers.get(key);
}

function makeLayer(object, canvas, scale, line, fill) {
  const window = object.maskWindow.map((value) => value * scale);
  const region = pasteRegion(object.mask, window, canvas.height, canvas.width);
  const { data, width, height, top, left } = region;
  if (!width || !height) return { top, left };
  const picture = new OffscreenCanvas(width, height);
  const context = picture.getContext("2d");
  const image = context.createImageData(width, height);
  const [edge, inside] = [1, fill].map((opacity) => packed(object.shade, opacity));
  const pixels = new Uint32Array(image.data.buffer);
  const reach = Math.max(1, Math.round(line * 0.8));
  const isSet = (x, y) => x >= 0 && x < width && y >= 0 && y < height && data[y * width + x];
  const inner = (x, y) =>
    isSet(x - reach, y) && isSet(x + reach, y) && isSet(x, y - reach) && isSet(x, y + reach);
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      if (data[i]) pixels[i] = inner(x, y) ? inside : edge;
    }
  }
  context.putImageData(image, 0, 0);
  return { picture, region, top, left };
}

// A pixel's four bytes as one number, in this machine's order.
function packed(shade, opacity) {
  return new Uint32Array(new Uint8Array([...rgb(shade), Math.round(255 * opacity)]).buffer)[0];
}

// Darkens all but one mask.
function veil(context, canvas, bitmap, layer) {
  context.fillStyle = VEIL;
  context.fillRect(0, 0, canvas.width, canvas.height);
  if (!layer.picture) return;
  const { data, width, height } = layer.region;
  const cut = new OffscreenCanvas(width, height);
  const inside = cut.getContext("2d");
  const image = inside.createImageData(width, height);
  data.forEach((value, i) => (image.data[4 * i + 3] = 255 * value));
  inside.putImageData(image, 0, 0);
  inside.globalCompositeOperation = "source-in";
  inside.drawImage(bitmap, -layer.left, -layer.top, canvas.width, canvas.height);
  context.drawImage(cut, layer.left, layer.top);
}

function drawBox(context, object, scale, line) {
  const [y1, x1, y2, x2] = object.box.map((value) => value * scale);
  context.save();
  context.lineWidth = line;
  context.strokeStyle = css(object.shade, 0.08);
  if (!object.maskSeen) context.setLineDash([line * 3.5, line * 2]);
  context.strokeRect(x1 + line / 2, y1 + line / 2, x2 - x1 - line, y2 - y1 - line);
  context.restore();
}

// Labels where there is room for them: the first come first; `near` always has one.
function drawLabels(context, objects, near, scale, line) {
  const size = Math.round(line * (context.canvas.width / line < 260 ? 5.4 : 6.2));
  const height = Math.round(size * 1.6);
  const { width: right, height: bottom } = context.canvas;
  const taken = [];
  context.font = `600 ${size}px system-ui, "Liberation Sans", sans-serif`;
  context.textBaseline = "middle";
  for (const object of objects) {
    const text = `${object.className} ${object.score.toFixed(2)}`;
    const width = Math.ceil(context.measureText(text).width + size * 1.3);
    const [y1, x1, y2] = object.box.map((value) => value * scale);
    const x = Math.max(0, Math.min(x1, right - width));
    const places = [y1 - height, y1, y2 - height, y2].filter((y) => y >= 0 && y + height <= bottom);
    const free = places.find((y) => !taken.some((t) => overlaps(t, { x, y, width, height })));
    const y = free ?? (object === near ? (places[0] ?? 0) : null);
    if (y === null) continue;
    taken.push({ x, y, width, height });
    context.fillStyle = "rgb(15 18 22 / 0.86)";
    context.fillRect(x, y, width, height);
    context.fillStyle = css(object.shade, 0.1);
    context.fillRect(x, y, Math.ceil(size * 0.32), height);
    context.fillStyle = "#fff";
    context.fillText(text, x + size * 0.72, y + height / 2 + 1);
  }
}

function overlaps(a, b) {
  const [across, down] = [a.x < b.x + b.width && b.x < a.x + a.width, a.y < b.y + b.height];
  return across && down && b.y < a.y + a.height;
}
