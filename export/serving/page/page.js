// The page: what is known of the picture, and how each part of the page shows it.

import { shades } from "./colors.js";
import { savePicture, saveText } from "./downloads.js";
import { readPicture, wireInput } from "./input.js";
import { fillClasses, fillObjects, wireObjects } from "./lists.js";
import { covers, drawPicture } from "./picture.js";
import { toCoco, toText } from "./results.js";
import { detect, RequestError } from "./server.js";

const LARGEST_ZOOM = 8; // small pictures are enlarged so far at most
const $ = (id) => document.getElementById(id);

const state = {
  file: null, // the picture, as File and as ImageBitmap
  bitmap: null,
  objects: [], // all the server found, best first
  hidden: new Set(), // names of classes
  minScore: Number($("score").value),
  alone: null, // the object that is seen alone
  near: null, // the object under the pointer or the focus
  request: null, // AbortController of the running one
};

function visible() {
  return state.objects.filter((o) => o.score >= state.minScore && !state.hidden.has(o.className));
}

function shown() {
  return state.alone ? [state.alone] : visible();
}

// --- From file to objects

async function take(file) {
  state.request?.abort();
  const request = (state.request = new AbortController());
  showError("");
  try {
    const bitmap = await readPicture(file).catch(() => {
      throw new RequestError(`“${file.name}” cannot be read as a picture.`);
    });
    if (request.signal.aborted) return;
    Object.assign(state, { file, bitmap, objects: [], alone: null, near: null });
    state.hidden.clear();
    update();
    busy(true);
    say(`Looking at ${file.name} …`);
    const began = performance.now();
    const found = await detect(file, bitmap, request.signal);
    const seconds = (performance.now() - began) / 1000;
    const exact = await readPicture(file, found);
    if (request.signal.aborted) return;
    accept(found, exact, seconds);
  } catch (error) {
    if (error.name === "AbortError") return;
    say("");
    showError(error instanceof RequestError ? error.message : `This went wrong: ${error.message}`);
  } finally {
    if (state.request === request) busy(false);
  }
}

function accept(found, bitmap, seconds) {
  state.bitmap = bitmap;
  const colors = shades(found.objects);
  state.objects = found.objects.map((o, i) => ({ ...o, number: i, shade: colors[i] }));
  busy(false);
  update();
  say(`${summary()} Answered in ${seconds.toFixed(2)} s.`);
}

function busy(isBusy) {
  if (!isBusy) state.request = null;
  $("progress").hidden = $("cancel").hidden = !isBusy;
  $("figure").ariaBusy = String(isBusy);
}

// --- What is shown

function update() {
  const filled = Boolean(state.bitmap);
  const found = state.objects.length > 0;
  document.querySelector("main").classList.toggle("filled", filled);
  $("picker").hidden = filled;
  $("figure").hidden = !filled;
  $("panel").hidden = !found;
  $("file-label").textContent = filled ? "Choose another picture" : "Choose a picture";
  if (!found) return draw();
  const objects = visible();
  fillClasses($("classes"), classCounts(), state.hidden, showClass);
  fillObjects($("objects"), objects, state.alone);
  $("no-objects").hidden = objects.length > 0;
  $("leave").hidden = !state.alone;
  const count = shown().length;
  $("download-count").textContent = count === 1 ? "1 object" : `${count} objects`;
  draw();
}

function classCounts() {
  const counts = new Map();
  for (const { className, maskSeen, score } of state.objects) {
    const entry = counts.get(className) ?? { count: 0, maskSeen };
    if (score >= state.minScore) entry.count++;
    counts.set(className, entry);
  }
  return counts;
}

function draw() {
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

function description() {
  const counts = new Map();
  for (const { className } of shown()) counts.set(className, (counts.get(className) ?? 0) + 1);
  const parts = [...counts].map(([name, count]) => `${count} ${name}`);
  return parts.length ? parts.join(", ") : "no objects shown";
}

function summary() {
  const [all, now] = [state.objects.length, visible().length];
  if (state.alone) return `Only ${state.alone.className} ${state.alone.score.toFixed(2)} is shown.`;
  if (!all) return "No objects were found.";
  if (!now) return `None of ${all} objects is shown: lower the score or choose classes.`;
  return `${now} of ${all} objects are shown.`;
}

// --- What people do

function showClass(name, isShown) {
  state.hidden[isShown ? "delete" : "add"](name);
  changed();
}

function changed() {
  if (state.alone && !visible().includes(state.alone)) state.alone = null;
  update();
  say(summary());
}

function choose(number) {
  const object = number === null ? null : state.objects[number];
  state.alone = object === state.alone ? null : object;
  update();
  say(summary());
}

function near(number) {
  const object = number === null ? null : state.objects[number];
  if (object === state.near) return;
  state.near = object;
  for (const item of $("objects").children) {
    item.classList.toggle("near", Number(item.dataset.number) === number);
  }
  draw();
}

// The best object whose mask is at this place of the page; a tap beside all masks is none.
function objectAt(event) {
  const frame = $("canvas").getBoundingClientRect();
  const x = ((event.clientX - frame.left) / frame.width) * state.bitmap.width;
  const y = ((event.clientY - frame.top) / frame.height) * state.bitmap.height;
  return visible().find((object) => covers(object, x, y))?.number ?? null;
}

function stem() {
  return state.file.name.replace(/\.[^.]*$/, "") || "picture";
}

function downloadJson() {
  const results = toCoco(shown(), 1, state.file.name, $("format").value);
  saveText(toText(results), `${stem()}.json`);
}

function downloadPng() {
  savePicture(state.bitmap, visible(), { alone: state.alone }, `${stem()}-objects.png`);
}

function say(text) {
  $("status").textContent = text;
}

function showError(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}

function showScore() {
  state.minScore = Number($("score").value);
  $("score-value").textContent = state.minScore.toFixed(2);
}

wireInput($("file"), take, showError);
wireObjects($("objects"), choose, near);
showScore();
$("score").addEventListener("input", () => (showScore(), changed()));
$("cancel").addEventListener("click", () => {
  state.request?.abort();
  busy(false);
  say("Cancelled.");
});
$("all-classes").addEventListener("click", () => (state.hidden.clear(), changed()));
$("no-classes").addEventListener("click", () => {
  for (const { className } of state.objects) state.hidden.add(className);
  changed();
});
$("leave").addEventListener("click", () => choose(null));
$("download-json").addEventListener("click", downloadJson);
$("download-png").addEventListener("click", downloadPng);
$("canvas").addEventListener("click", (event) => choose(objectAt(event)));
$("canvas").addEventListener("pointermove", (event) => near(objectAt(event)));
$("canvas").addEventListener("pointerleave", () => near(null));
document.addEventListener("keydown", (event) => event.key === "Escape" && choose(null));
addEventListener("resize", draw);
