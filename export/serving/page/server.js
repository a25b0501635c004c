// The request to TensorFlow Serving's REST interface, and its answer as objects.

const DECODED_BY_THE_SERVER = ["image/jpeg", "image/png"];

export class RequestError extends Error {}

export function modelName() {
  return document.querySelector('meta[name="model-name"]').content;
}

// The objects in a picture, best first:
//   {height, width, objects: [{className, classId, score, box: [y1, x1, y2, x2], maskSeen, mask,
//   imageSize: [height, width]}]}
export async function detect(file, bitmap, signal) {
  const encoded = DECODED_BY_THE_SERVER.includes(file.type) ? file : await toPng(bitmap);
  const b64 = await toBase64(encoded);
  const body = JSON.stringify({ instances: [{ image_bytes: { b64 } }] });
  return parse(await send(body, signal));
}

function modelUrl() {
  return `/v1/models/${encodeURIComponent(modelName())}`;
}

async function send(body, signal) {
  const url = `${modelUrl()}:predict`;
  const headers = { "Content-Type": "application/json" };
  let response;
  try {
    response = await fetch(url, { method: "POST", headers, body, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestError("The server cannot be reached. Is it still running?");
  }
  const answer = await response.json().catch((error) => {
    if (error.name === "AbortError") throw error;
    return {};
  });
  if (response.ok && answer.predictions) return answer.predictions[0];
  if (response.status === 404 && (await isLoading(signal))) {
    throw new RequestError("The model is still loading; try again in a moment.");
  }
  const reason = answer.error ?? (response.statusText || "no reason given");
  throw new RequestError(refusal(response.status, reason));
}

// Whether the server has the model, but is not ready to answer with it yet.
async function isLoading(signal) {
  try {
    const status = await (await fetch(modelUrl(), { signal })).json();
    return status.model_version_status.some(({ state }) => ["START", "LOADING"].includes(state));
  } catch (error) {
    if (error.name === "AbortError") throw error;
    return false;
  }
}

function refusal(status, reason) {
  if (status === 503 || status === 429) {
    return `The server is busy at the moment; try again. (${status}: ${reason})`;
  }
  if (status === 404) return `The server has no model “${modelName()}”. (${reason})`;
  if (status === 413) return `The picture is too large for the server. (${reason})`;
  return `The server refused the picture. (${status}: ${reason})`;
}

function parse(outputs) {
  const missing = ["detection_boxes", "detection_masks", "image_size"].find((k) => !outputs[k]);
  if (missing) throw new RequestError(`The model has no output ${missing}: it was not made by maskx_tf.`);
  const [height, width] = outputs.image_size;
  const windows = outputs.detection_mask_windows ?? outputs.detection_boxes;
  const objects = Array.from({ length: outputs.num_detections }, (_, i) => ({
    className: outputs.detection_class_names[i],
    classId: outputs.detection_classes[i],
    score: Math.fround(outputs.detection_scores[i]),
    box: outputs.detection_boxes[i].map(Math.fround),
    maskWindow: windows[i].map(Math.fround),
    maskSeen: outputs.detection_mask_seen[i],
    mask: outputs.detection_masks[i],
    imageSize: [height, width],
  }));
  return { height, width, objects };
}

function toBase64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new RequestError("The file cannot be read."));
    reader.readAsDataURL(blob);
  });
}

// For formats that browsers read and the model does not, such as WebP.
async function toPng(bitmap) {
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}
