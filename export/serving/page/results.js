// Objects as COCO results, as `python -m export.client` writes them.

import { pasteRegion, toRle } from "./masks.js";
import { outline } from "./polygons.js";

// As Python rounds: halves, which binary numbers can be, go to the even neighbour.
function round(value, digits) {
  const scaled = value * 10 ** digits;
  const below = Math.floor(scaled);
  if (scaled - below !== 0.5) return Number(value.toFixed(digits));
  return (below % 2 ? below + 1 : below) / 10 ** digits;
}

function segmentation(object, format) {
  const [height, width] = object.imageSize;
  const region = pasteRegion(object.mask, object.maskWindow, height, width);
  return format === "polygon" ? outline(region) : toRle(region, height, width);
}

// format: "rle" or "polygon".
export function toCoco(objects, imageId, fileName, format) {
  return objects.map((object) => {
    const [y1, x1, y2, x2] = object.box;
    return {
      image_id: imageId,
      file_name: fileName,
      category_id: object.classId,
      category_name: object.className,
      bbox: [x1, y1, x2 - x1, y2 - y1].map((value) => round(value, 3)),
      score: round(object.score, 6),
      segmentation: segmentation(object, format),
      mask_seen: object.maskSeen,
    };
  });
}

// One result a line.
export function toText(results) {
  return `[\n${results.map((result) => JSON.stringify(result)).join(",\n")}\n]\n`;
}
