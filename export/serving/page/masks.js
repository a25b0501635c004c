// Masks over boxes into masks of images, and COCO's run-length code: as maskx_tf/ops/masks.py, in
// the same arithmetic, so that both give the same pixels.

const THRESHOLD = 0.5;

// Where the pixels that touch [low, high) lie among a mask's cells: the first pixel, and for each
// the lower cell and the float32 weights of that and the next one.
function weights(low, high, cells, limit) {
  if (!(high > low)) return { first: 0, count: 0 };
  const first = Math.min(Math.max(Math.floor(low), 0), limit);
  const count = Math.min(Math.max(Math.ceil(high), first), limit) - first;
  const cell = new Int32Array(count);
  const lower = new Float32Array(count);
  const upper = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    const position = ((first + i + 0.5 - low) / (high - low)) * cells - 0.5;
    cell[i] = Math.floor(position);
    lower[i] = cell[i] >= 0 ? Math.max(0, 1 - Math.abs(position - cell[i])) : 0;
    upper[i] = cell[i] + 1 < cells ? Math.max(0, 1 - Math.abs(position - cell[i] - 1)) : 0;
  }
  return { first, count, cell, lower, upper };
}

// a · u + b · v as a processor's float32 multiply-and-add makes it: the second product is not
// rounded before it is added.
function blend(a, u, b, v) {
  return Math.fround(Math.fround(a * u) + b * v);
}

// The pixels of a mask inside an image.
//   mask: m rows of n values 0 to 255; box: [y1, x1, y2, x2] in pixels.
//   Returns {data: Uint8Array of 0 and 1, row by row, width, height, top, left}.
export function pasteRegion(mask, box, imageHeight, imageWidth) {
  const [y1, x1, y2, x2] = box;
  const m = mask.length;
  const n = m ? mask[0].length : 0;
  const rows = weights(y1, y2, m, imageHeight);
  const columns = weights(x1, x2, n, imageWidth);
  const [height, width] = [rows.count, columns.count];
  const data = new Uint8Array(height * width);
  const at = (r, c) => (c >= 0 && c < n ? Math.fround(mask[r][c] / 255) : 0);
  const along = new Float32Array(m + 2); // a column of the image in the mask's rows, with margins
  for (let x = 0; x < width; x++) {
    const [c, u, v] = [columns.cell[x], columns.lower[x], columns.upper[x]];
    for (let r = 0; r < m; r++) along[r + 1] = blend(u, at(r, c), v, at(r, c + 1));
    for (let y = 0; y < height; y++) {
      const r = rows.cell[y] + 1;
      const value = blend(rows.lower[y], along[r], rows.upper[y], along[r + 1]);
      if (value >= THRESHOLD) data[y * width + x] = 1;
    }
  }
  return { data, width, height, top: rows.first, left: columns.first };
}

// Lengths of the runs of 0, 1, 0, … down the columns of the image that the region lies in.
export function runLengths(region, imageHeight, imageWidth) {
  const counts = [];
  let end = 0; // of the last run of ones
  for (let x = 0; x < region.width; x++) {
    const column = (region.left + x) * imageHeight + region.top;
    for (let y = 0; y < region.height; y++) {
      if (!region.data[y * region.width + x]) continue;
      const position = column + y;
      if (counts.length && position === end) counts[counts.length - 1]++;
      else counts.push(position - end, 1);
      end = position + 1;
    }
  }
  const rest = imageHeight * imageWidth - end;
  if (rest || !counts.length) counts.push(rest);
  return counts;
}

// COCO's text of run lengths: differences to the last but one, five bits a character.
function compress(counts) {
  let text = "";
  counts.forEach((count, i) => {
    let value = i > 2 ? count - counts[i - 2] : count;
    let more = true;
    while (more) {
      let bits = value & 31;
      value >>= 5;
      more = bits & 16 ? value !== -1 : value !== 0;
      if (more) bits |= 32;
      text += String.fromCharCode(bits + 48);
    }
  });
  return text;
}

// COCO's compressed run-length code of a region in its image.
export function toRle(region, imageHeight, imageWidth) {
  const counts = compress(runLengths(region, imageHeight, imageWidth));
  return { size: [imageHeight, imageWidth], counts };
}
