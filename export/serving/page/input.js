// The ways a picture comes in: chosen, dropped or pasted.

// Calls take(file) for each picture, refuse(message) for anything else.
export function wireInput(input, take, refuse) {
  const offer = (files) => {
    if (!files.length) return;
    const file = [...files].find((one) => one.type.startsWith("image/"));
    if (file) take(file);
    else refuse(`“${files[0].name}” is not a picture.`);
  };
  input.addEventListener("change", () => {
    offer(input.files);
    input.value = ""; // so that the same file can be chosen again
  });
  document.addEventListener("paste", (event) => offer(event.clipboardData.files));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.toggle("dropping", event.dataTransfer.types.includes("Files"));
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    offer(event.dataTransfer.files);
  });
}

// The picture as the server counts its pixels: `size` is its {height, width}, if known. Browsers
// turn photographs upright; a model that does not gives the size of the picture lying.
export async function readPicture(file, size = null) {
  const upright = await createImageBitmap(file);
  if (!size || (upright.width === size.width && upright.height === size.height)) return upright;
  const stored = await createImageBitmap(file, { imageOrientation: "none" });
  return stored.width === size.width && stored.height === size.height ? stored : upright;
}
