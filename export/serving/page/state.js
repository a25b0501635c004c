// What is known of the picture, and what of it is shown.

export const state = {
  file: null, // the picture, as File and as ImageBitmap
  bitmap: null,
  objects: [], // all the server found, best first, each with its `number` here and its `shade`
  hidden: new Set(), // names of classes
  minScore: 0.5,
  alone: null, // the object that is seen alone
  near: null, // the object under the pointer or the focus
};

// The objects that score and class let through, best first.
export function visible() {
  return state.objects.filter((o) => o.score >= state.minScore && !state.hidden.has(o.className));
}

// Those the picture shows, and downloads hold.
export function shown() {
  return state.alone ? [state.alone] : visible();
}

// Map of each class found to {count: its objects at this score, maskSeen}.
export function classCounts() {
  const counts = new Map();
  for (const { className, maskSeen, score } of state.objects) {
    const entry = counts.get(className) ?? { count: 0, maskSeen };
    if (score >= state.minScore) entry.count++;
    counts.set(className, entry);
  }
  return counts;
}

// The picture in words.
export function description() {
  const counts = new Map();
  for (const { className } of shown()) counts.set(className, (counts.get(className) ?? 0) + 1);
  const parts = [...counts].map(([name, count]) => `${count} ${name}`);
  return parts.length ? parts.join(", ") : "no objects shown";
}

// How much is shown, in a sentence.
export function summary() {
  const [all, now] = [state.objects.length, visible().length];
  if (state.alone) return `Only ${state.alone.className} ${state.alone.score.toFixed(2)} is shown.`;
  if (!all) return "No objects were found.";
  const objects = all === 1 ? "object is" : "objects are";
  if (!now) return `None of ${all} ${objects} shown: lower the score or choose classes.`;
  return `${now} of ${all} ${objects} shown.`;
}
