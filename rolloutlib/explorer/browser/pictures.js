// Pictures with what lies over them, and pointing at their patches.

import { crosshair, make, placing } from "./dom.js";
import { paint, relevance } from "./maps.js";
import { chosen, shadeByPatch, shadeByWords } from "./words.js";

export function stage(view, panel, index) {
  const image = make("img", { alt: "", draggable: "false" });
  const layers = panel.sheets.map((sheet) => (sheet.point ? crosshair(sheet.point) : make("canvas", { "aria-hidden": "true" })));
  const cursor = make("div", { class: "rx-cursor" });
  const frame = make("div", { class: "rx-picture", tabindex: "0", role: "application", "aria-label": `${panel.name || "picture"}: arrow keys move over its patches and say which words drew on them` }, image, ...layers, cursor);
  for (const name of ["pointermove", "pointerdown"]) frame.addEventListener(name, (event) => touch(view, index, frame, event));
  frame.addEventListener("pointerleave", (event) => event.pointerType === "touch" || leave(view));
  frame.addEventListener("blur", () => leave(view));
  frame.addEventListener("keydown", (event) => step(view, index, event));
  const caption = panel.name ? [make("figcaption", {}, panel.name)] : [];
  return { figure: make("figure", {}, ...caption, frame), frame, image, layers, cursor };
}

// ---- Drawing

/** What is shown of the pictures, and where: everything that pointing at a word does not change. */
export function arrange({ get, pictures, panels, stages, urls }) {
  const now = get("picture");
  const { box, width, height } = pictures[now];
  stages.forEach((stage, p) => {
    if (stage.image.src !== urls[now]) stage.image.src = urls[now];
    stage.frame.style.aspectRatio = `${width} / ${height}`;
    panels[p].sheets.forEach((sheet, s) => {
      const display = get("hidden").includes(sheet.name) ? "display:none" : "";
      const look = `opacity:${get("opacity")};image-rendering:${get("blur") ? "auto" : "pixelated"}`;
      if (sheet.point) stage.layers[s].style.display = display && "none";
      else stage.layers[s].style.cssText = `${placing(box)};${look};${display}`;
    });
  });
}

/** The maps of these words on the picture that is shown. */
export function drawStages(view, which) {
  const { get, pictures, panels, stages, patch } = view;
  const picture = pictures[get("picture")];
  stages.forEach((stage, p) => {
    panels[p].sheets.forEach((sheet, s) => {
      if (sheet.point || get("hidden").includes(sheet.name)) return;
      paint(view, stage.layers[s], relevance(view, sheet, which), picture, sheet, picture.scale, get("blur"));
    });
    if (patch?.panel !== p) stage.cursor.style.display = "none";
  });
}

export function drawCursor({ get, pictures, stages, patch }) {
  const { box, grid } = pictures[get("picture")];
  const [width, height] = [(box[2] - box[0]) / grid[1], (box[3] - box[1]) / grid[0]];
  stages.forEach((stage, index) => {
    stage.cursor.style.cssText = index === patch.panel
      ? `display:block;left:${(box[0] + patch.column * width) * 100}%;top:${(box[1] + patch.row * height) * 100}%;width:${width * 100}%;height:${height * 100}%`
      : "display:none";
  });
}

// ---- Pointing

function touch(view, panel, frame, event) {
  const bounds = frame.getBoundingClientRect();
  const { box, grid } = view.pictures[view.get("picture")];
  const x = (event.clientX - bounds.left) / bounds.width;
  const y = (event.clientY - bounds.top) / bounds.height;
  visit(view, panel, Math.floor(((y - box[1]) / (box[3] - box[1])) * grid[0]), Math.floor(((x - box[0]) / (box[2] - box[0])) * grid[1]));
}

function step(view, panel, event) {
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  if (event.key === "Escape") return leave(view);
  if (!(event.key in moves)) return;
  event.preventDefault();
  const { patch } = view;
  const { grid } = view.pictures[view.get("picture")];
  const from = patch ?? { row: grid[0] >> 1, column: grid[1] >> 1 };
  const [down, right] = patch ? moves[event.key] : [0, 0];
  visit(view, panel, Math.max(0, Math.min(grid[0] - 1, from.row + down)), Math.max(0, Math.min(grid[1] - 1, from.column + right)));
}

function visit(view, panel, row, column) {
  const { patch } = view;
  const { grid } = view.pictures[view.get("picture")];
  if (row < 0 || column < 0 || row >= grid[0] || column >= grid[1]) return leave(view);
  if (patch?.panel === panel && patch.row === row && patch.column === column) return;
  view.patch = { panel, row, column };
  drawCursor(view);
  shadeByPatch(view);
}

function leave(view) {
  if (!view.patch) return;
  view.stages[view.patch.panel].cursor.style.display = "none";
  view.patch = null;
  shadeByWords(view, chosen(view));
}
