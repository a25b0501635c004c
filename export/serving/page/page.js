// The page: what happens to a picture, and what people can do with it.

import { shades } from "./colors.js";
import { savePicture, saveText } from "./downloads.js";
import { readPicture, wireInput } from "./input.js";
import { wireObjects } from "./lists.js";
import { areaOf, covers } from "./picture.js";
import { toCoco, toText } from "./results.js";
import { detect, RequestError } from "./server.js";
import { shown, state, summary, visible } from "./state.js";
import { $, draw, say, showBusy, showError, showNear, update } from "./view.js";

let running = null; // AbortController of the request under way

// --- From file to objects

async function take(file) {
  running?.abort();
  const request = (running = new AbortController());
  showError("");
  try {
    const bitmap = await open(file);
    if (request.signal.aborted) return;
    begin(file, bitmap);
    const began = performance.now();
    const found = await detect(file, bitmap, request.signal);
    const seconds = (performance.now() - began) / 1000;
    const exact = await readPicture(file, found);
    if (!request.signal.aborted) accept(found.objects, exact, seconds);
  } catch (error) {
    if (!request.signal.aborted) fail(error);
  } finally {
    if (running === request) showBusy(false);
  }
}

async function open(file) {
  try {
    return await readPicture(file);
  } catch {
    throw new RequestError(`“${file.name}” cannot be read as a picture.`);
  }
}

function begin(file, bitmap) {
  Object.assign(state, { file, bitmap, objects: [], alone: null, near: null });
  state.hidden.clear();
  update(showClass);
  showBusy(true);
  say(`Looking at ${file.name} …`);
}

function accept(objects, bitmap, seconds) {
  const colors = shades(objects);
  state.bitmap = bitmap;
  state.objects = objects.map((o, i) => ({ ...o, number: i, shade: colors[i] }));
  update(showClass);
  say(`${summary()} Answered in ${seconds.toFixed(2)} s.`);
}

function fail(error) {
  say("");
  showError(error instanceof RequestError ? error.message : `This went wrong: ${error.message}`);
}

function cancel() {
  running?.abort();
  showBusy(false);
  say("Cancelled.");
}

// --- What is shown

function changed() {
  if (state.alone && !visible().includes(state.alone)) state.alone = null;
  update(showClass);
  say(summary());
}

function showClass(name, isShown) {
  state.hidden[isShown ? "delete" : "add"](name);
  changed();
}

function showNoClass() {
  for (const { className } of state.objects) state.hidden.add(className);
  changed();
}

function readScore() {
  state.minScore = Number($("score").value);
  $("score-value").textContent = state.minScore.toFixed(2);
}

// Shows the object of that number alone; that one again, or null: all.
function choose(number) {
  const object = number === null ? null : state.objects[number];
  if (!object && !state.alone) return;
  state.alone = object === state.alone ? null : object;
  changed();
}

function near(number) {
  const object = number === null ? null : state.objects[number];
  if (object === state.near) return;
  state.near = object;
  showNear(number);
}

// The number of the smallest object whose mask is at this place of the page, or null.
function objectAt(event) {
  const frame = $("canvas").getBoundingClientRect();
  const x = ((event.clientX - frame.left) / frame.width) * state.bitmap.width;
  const y = ((event.clientY - frame.top) / frame.height) * state.bitmap.height;
  const hit = visible().filter((object) => covers(object, x, y));
  return hit.sort((a, b) => areaOf(a) - areaOf(b))[0]?.number ?? null;
}

// --- Downloads: of what is shown

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

wireInput($("file"), take, showError);
wireObjects($("objects"), choose, near);
readScore();
$("score").addEventListener("input", () => (readScore(), changed()));
$("cancel").addEventListener("click", cancel);
$("all-classes").addEventListener("click", () => (state.hidden.clear(), changed()));
$("no-classes").addEventListener("click", showNoClass);
$("leave").addEventListener("click", () => {
  choose(null);
  $("objects").querySelector('[tabindex="0"]')?.focus();
});
$("download-json").addEventListener("click", downloadJson);
$("download-png").addEventListener("click", downloadPng);
$("canvas").addEventListener("click", (event) => choose(objectAt(event)));
$("canvas").addEventListener("pointermove", (event) => near(objectAt(event)));
$("canvas").addEventListener("pointerleave", () => near(null));
document.addEventListener("keydown", (event) => event.key === "Escape" && choose(null));
addEventListener("resize", draw);
