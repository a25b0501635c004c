// Files that the page makes: the picture with its objects, and anything as text.

import { drawPicture } from "./picture.js";

const MOST_PIXELS = 16_000_000; // of a PNG; more than browsers' canvases bear is drawn smaller

export function saveText(text, name) {
  save(new Blob([text], { type: "application/json" }), name);
}

export async function savePicture(bitmap, objects, options, name) {
  const shrink = Math.min(1, Math.sqrt(MOST_PIXELS / (bitmap.width * bitmap.height)));
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(bitmap.width * shrink);
  canvas.height = Math.round(bitmap.height * shrink);
  const line = Math.max(1, Math.round(Math.max(canvas.width, canvas.height) / 500));
  drawPicture(canvas, bitmap, objects, { ...options, line });
  save(await new Promise((resolve) => canvas.toBlob(resolve, "image/png")), name);
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
