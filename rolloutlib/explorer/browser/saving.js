// Files to keep: the picture is drawn here; the others come from the kernel, where there is one.

import { make } from "./dom.js";

const KINDS = { png: "PNG", svg: "SVG", pdf: "PDF", npy: "NumPy", json: "COCO boxes" };

export function savers(view) {
  const { model, parts } = view;
  parts.savers = Object.entries(KINDS).map(([kind, name]) => {
    const button = make("button", { type: "button", class: "rx-save" }, name);
    button.disabled = kind !== "png";
    button.title = button.disabled ? "needs the notebook with its kernel running" : "the picture with its map, as it is shown";
    button.addEventListener("click", () => (kind === "png" ? savePicture(view) : model.send({ save: kind })));
    return button;
  });
  return make("div", { class: "rx-controls", role: "group", "aria-label": "save what is shown" }, "save as", ...parts.savers);
}

/** What the kernel says: that it is there, or a file. */
export function hear({ parts }, content, buffers) {
  for (const button of content.kernel ? parts.savers : []) {
    button.disabled = false;
    button.title = "";
  }
  if (content.saved) download(new Blob([buffers[0]]), content.saved);
}

/** The picture with its maps, as large as the browser has it. */
function savePicture({ stages, pictures, get }) {
  const { width, height } = pictures[get("picture")];
  const canvas = make("canvas", { width: width * stages.length, height });
  const context = canvas.getContext("2d");
  stages.forEach(({ image, layers }, index) => {
    context.drawImage(image, index * width, 0, width, height);
    const hidden = get("display") === "slider" ? get("split") * width : 0;
    context.save();
    context.beginPath();
    context.rect(index * width + hidden, 0, width - hidden, height);
    context.clip();
    for (const layer of layers.filter((one) => one instanceof HTMLCanvasElement && one.style.display !== "none")) {
      const { left, top, width: wide, height: high, opacity } = layer.style;
      const [x, y, w, h] = [left, top, wide, high].map((share) => parseFloat(share) / 100);
      context.globalAlpha = Number(opacity);
      context.drawImage(layer, (index + x) * width, y * height, w * width, h * height);
    }
    context.restore();
  });
  canvas.toBlob((blob) => download(blob, "map.png"));
}

function download(blob, name) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
