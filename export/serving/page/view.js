// The page as the state wants it.

import { fillClasses, fillObjects } from "./lists.js";
import { drawPicture } from "./picture.js";
import { classCounts, description, shown, state, visible } from "./state.js";

const LARGEST_ZOOM = 8; // small pictures are enlarged so far at most

export const $ = (id) => document.getElementById(id);

// Brings everything up to date; showClass(name, isShown) is called by the list of classes.
export function update(showClass) {
  const filled = Boolean(state.bitmap);
  const found = state.objects.length > 0;
  document.querySelector("main").classList.toggle("filled", filled);
  $("picker").hidden = filled;
  $("figure").hidden = !filled;
  $("panel").hidden = !found;
  $("file-label").textContent = filled ? "Choose another picture" : "Choose a picture";
  draw();
  if (!found) return;
  const objects = visible();
  fillClasses($("classes"), classCounts(), state.hidden, showClass);
  fillObjects($("objects"), objects, state.alone);
  $("no-objects").hidden = objects.length > 0;
  $("leave").hidden = !state.alone;
  const count = shown().length;
  $("download-count").textContent = count === 1 ? "1 object" : `${count} objects`;
}

// Draws the picture as large as there is room for.
export function draw() {
  if (!state.bitmap) return;
  const canvas = $("canvas");
  const { width, height } = state.bitmap;
  const room = { width: $("figure").clientWidth, height: Math.max(320, innerHeight * 0.76) };
  const zoom = Math.min(room.width / width, room.height / height, LARGEST_ZOOM);
  const density = Math.min(devicePixelRatio, 2);
  canvas.style.width = `${Math.max(1, Math.round(width * zoom))}px`;
  canvas.width = Math.max(1, Math.round(width * zoom * density));
  canvas.height = Math.max(1, Math.round(height * zoom * density));
  const options = { alone: state.alone, near: state.near, line: 2 * density };
  drawPicture(canvas, state.bitmap, visible(), options);
  canvas.ariaLabel = `${state.file.name}: ${description()}`;
}

// Stresses the object of that number, or none.
export function showNear(number) {
  for (const item of $("objects").children) {
    item.classList.toggle("near", Number(item.dataset.number) === number);
  }
  draw();
}

export function showBusy(isBusy) {
  $("progress").hidden = $("cancel").hidden = !isBusy;
  $("figure").ariaBusy = String(isBusy);
}

// Tells what happened, to screen readers too.
export function say(text) {
  $("status").textContent = text;
}

export function showError(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}
