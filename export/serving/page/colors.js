// A shade per object: greens for classes trained with masks, reds for the others, neighbours apart.

const HUES = { a: [104, 158], b: [-18, 18] };
const GOLDEN = 0.618034;

// Objects in the server's order -> "hsl(…)" each; the order keeps a shade with its object.
export function shades(objects) {
  const seen = { a: 0, b: 0 };
  return objects.map(({ maskSeen }) => {
    const set = maskSeen ? "a" : "b";
    const place = (0.5 + seen[set]++ * GOLDEN) % 1;
    const [low, high] = HUES[set];
    return [low + (high - low) * place, set === "a" ? 0.62 : 0.76, 0.42 + 0.1 * place];
  });
}

export function css([hue, saturation, lightness], lift = 0) {
  return `hsl(${hue} ${saturation * 100}% ${Math.min(1, lightness + lift) * 100}%)`;
}

// [red, green, blue], 0 to 255.
export function rgb([hue, saturation, lightness]) {
  const k = (n) => (n + hue / 30 + 12) % 12;
  const chroma = saturation * Math.min(lightness, 1 - lightness);
  return [0, 8, 4].map((n) =>
    Math.round(255 * (lightness - chroma * Math.max(-1, Math.min(k(n) - 3, 9 - k(n), 1)))),
  );
}
