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
  const fits = ({ width, height }) => !size || (width === size.width && height === size.height);
  if (fits(upright)) return upright;
  const stored = await createImageBitmap(await withoutExif(file));
  return fits(stored) ? stored : upright;
}

// A JPEG file without its EXIF data, where the orientation stands; other files as they are.
async function withoutExif(file) {
  const view = new DataView(await file.arrayBuffer());
  const [exif, scan] = [0xffe1, 0xffda];
  if (view.byteLength < 4 || view.getUint16(0) !== 0xffd8) return file;
  const kept = [file.slice(0, 2)];
  let at = 2;
  while (at + 4 <= view.byteLength && view.getUint16(at) !== scan) {
    const end = at + 2 + view.getUint16(at + 2);
    if (view.getUint16(at) !== exif) kept.push(file.slice(at, end));
    at = end;
  }
  return new Blob([...kept, file.slice(at)], { type: file.type });
}
