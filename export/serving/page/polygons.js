// The exact outline of a mask as COCO polygons: as maskx_tf/ops/polygons.py, which explains it.

// Polygons [x1, y1, x2, y2, …] of a region as of pasteRegion, in pixels of its image.
export function outline(region) {
  const { pixels, stride } = padded(region);
  const { rings, ringOf } = trace(pixels, stride);
  const joined = new Map();
  rings.forEach((ring, i) => doubledArea(ring) > 0 && joined.set(i, i));
  const outer = [...joined.keys()];
  const holes = rings
    .map((ring, i) => ({ i, corner: ring.reduce((best, c) => (before(c, best) ? c : best)) }))
    .filter(({ i }) => !joined.has(i))
    .sort((a, b) => (before(a.corner, b.corner) ? -1 : 1));
  for (const { i, corner } of holes) {
    let edge = corner[1]; // up to the first pixel below the gap above the hole
    while (pixels[edge * stride + corner[0] + 1]) edge--;
    const owner = joined.get(ringOf.get((edge + 1) * stride + corner[0] + 1));
    joined.set(i, owner);
    rings[owner] = join(rings[owner], rings[i], corner, edge);
  }
  return outer.map((i) => rings[i].flatMap(([x, y]) => [x + region.left, y + region.top]));
}

function before([x, y], [u, v]) {
  return y < v || (y === v && x < u);
}

// The region with a margin of one.
function padded({ data, width, height }) {
  const stride = width + 2;
  const pixels = new Uint8Array(stride * (height + 2));
  for (let y = 0; y < height; y++) {
    pixels.set(data.subarray(y * width, (y + 1) * width), (y + 1) * stride + 1);
  }
  return { pixels, stride };
}

// All rings [[x, y], …], the mask to the right of the way; and by the index of a pixel in `pixels`
// the number of the ring that its upper edge belongs to.
function trace(pixels, stride) {
  const steps = [1, stride, -1, -stride]; // east, south, west, north
  const aheadRight = [0, -1, -stride - 1, -stride];
  const aheadLeft = [-stride, 0, -1, -stride - 1];
  const rings = [];
  const ringOf = new Map();
  for (let start = stride; start < pixels.length; start++) {
    if (!pixels[start] || pixels[start - stride] || ringOf.has(start)) continue;
    const ring = [];
    let at = start;
    let heading = 0;
    while (heading || !ringOf.has(at)) {
      if (heading === 0) ringOf.set(at, rings.length);
      at += steps[heading];
      let turn = 0;
      if (!pixels[at + aheadRight[heading]]) turn = 1;
      else if (pixels[at + aheadLeft[heading]]) turn = 3;
      if (turn) ring.push([(at % stride) - 1, Math.floor(at / stride) - 1]);
      heading = (heading + turn) % 4;
    }
    rings.push([ring.at(-1), ...ring.slice(0, -1)]);
  }
  return { rings, ringOf };
}

function doubledArea(ring) {
  return ring.reduce((sum, [x, y], i) => {
    const [u, v] = ring[(i + 1) % ring.length];
    return sum + x * v - u * y;
  }, 0);
}

// The ring with a cut from its edge at y = `edge` down to the corner of the hole.
function join(ring, hole, corner, edge) {
  const first = hole.findIndex(([x, y]) => x === corner[0] && y === corner[1]);
  const there = [corner[0], edge];
  const i = ring.findIndex(([x, y], k) => {
    const [u, v] = ring[(k + 1) % ring.length];
    return y === edge && v === edge && x <= corner[0] && corner[0] < u;
  });
  const head = ring.slice(0, i + 1);
  if (ring[i][0] !== there[0]) head.push(there);
  const around = [...hole.slice(first), ...hole.slice(0, first), corner];
  return [...head, ...around, there, ...ring.slice(i + 1)];
}
