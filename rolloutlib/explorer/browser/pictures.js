// Pictures with what lies over them, and pointing at their patches.

import { crosshair, make, placing, tell } from "./dom.js";
import { lead, lookup, outline, paint, relevance } from "./maps.js";
import { chosen, point, shadeByPatch, shadeByWords } from "./words.js";

export function stage(view, panel, index) {
  const image = make("img", { alt: "", draggable: "false" });
  const layers = panel.sheets.map((sheet) => (sheet.point ? crosshair(sheet.point) : make("canvas", { "aria-hidden": "true" })));
  const cursor = make("div", { class: "rx-cursor" });
  const over = make("div", { class: "rx-over" }, ...layers.filter((layer) => layer instanceof HTMLCanvasElement));
  const frame = make("div", { class: "rx-picture", tabindex: "0", role: "application", "aria-label": `${panel.name || "picture"}: arrow keys move over its patches and say for which words they are relevant` }, image, over, ...layers.filter((layer) => layer.parentNode !== over), cursor);
  for (const name of ["pointermove", "pointerdown"]) frame.addEventListener(name, (event) => touch(view, index, frame, event));
  frame.addEventListener("pointerleave", (event) => event.pointerType === "touch" || leave(view));
  frame.addEventListener("blur", () => leave(view));
  frame.addEventListener("keydown", (event) => step(view, index, event));
  const plain = make("img", { alt: "the picture without a map", draggable: "false", class: "rx-plain" });
  const split = make("input", { type: "range", min: 0, max: 1, step: 0.01, class: "rx-split", "aria-label": "where the map begins, from the left" });
  split.addEventListener("input", () => view.set("split", Number(split.value)));
  const scale = { low: make("span", {}), bar: make("canvas", { width: 256, height: 1, "aria-hidden": "true" }), high: make("span", {}), said: make("span", { class: "rx-said" }) };
  const name = [view.get("name"), panel.name].filter(Boolean).join(": ");
  const caption = name ? [make("figcaption", {}, name)] : [];
  const figure = make("figure", {}, ...caption, plain, frame, split, make("div", { class: "rx-scale" }, ...Object.values(scale)));
  return { figure, frame, image, plain, over, split, layers, cursor, scale };
}

// ---- Drawing

/** What is shown of the pictures, and where: everything that pointing at a word does not change. */
export function arrange({ get, pictures, panels, stages, urls }) {
  const now = get("picture");
  const { box, width, height } = pictures[now];
  stages.forEach((stage, p) => {
    for (const image of [stage.image, stage.plain]) if (image.src !== urls[now]) image.src = urls[now];
    stage.plain.hidden = get("display") !== "beside";
    stage.split.hidden = get("display") !== "slider";
    stage.split.value = get("split");
    stage.over.classList.toggle("rx-slid", !stage.split.hidden);
    stage.over.style.setProperty("--split", `${get("split") * 100}%`);
    stage.frame.style.aspectRatio = `${width} / ${height}`;
    panels[p].sheets.forEach((sheet, s) => {
      const display = get("hidden").includes(sheet.name) ? "display:none" : "";
      const lines = get("display") === "outline";
      const look = `opacity:${lines ? 1 : get("opacity")};image-rendering:${lines || get("blur") ? "auto" : "pixelated"}`;
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
      const draw = get("display") === "outline" ? outline : paint;
      const range = draw(view, stage.layers[s], relevance(view, sheet, which), picture, sheet, picture.scale, get("blur"));
      if (sheet === lead(view, panels[p])) drawScale(view, stage.scale, sheet, range);
    });
    if (patch?.panel !== p) stage.cursor.style.display = "none";
  });
}

/** The colours from low to high with their numbers: the share of one patch. */
function drawScale(view, { low, bar, high, said }, sheet, range) {
  const { get, pictures } = view;
  const exact = (share) => `${sheet.signed && share > 0 ? "+" : ""}${Number((100 * share).toPrecision(2))} %`;
  [low.textContent, high.textContent] = range.map((share) => exact(Number.isFinite(share) ? share : 0));
  const context = bar.getContext("2d");
  const image = context.createImageData(256, 1);
  const colours = lookup(view, sheet, get("power"), false);
  new Uint32Array(image.data.buffer).forEach((_, x, pixels) => (pixels[x] = colours[x * 4 + 3] | 0xff000000));
  context.putImageData(image, 0, 0);
  const pages = pictures.length > 1 && get("together") ? " and pictures" : "";
  const fades = ["flat", "outline"].includes(get("display")) ? "" : "; a quarter of the way up the map is half as opaque";
  const [left, top, right, bottom] = pictures[get("picture")].box;
  const cut = Math.max(left, top, 1 - right, 1 - bottom) > 0.02 ? "; the model saw only the part under the map" : "";
  said.textContent = `a patch; ${get("shared") ? "one scale for all words and pictures" : `each word${pages ? ", over all pictures," : ""} has its own scale`}${fades}${cut}`;
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
  visitAt(view, panel, [(event.clientX - bounds.left) / bounds.width, (event.clientY - bounds.top) / bounds.height]);
}

/** The patch at a place, in shares of the picture's width and height. */
function visitAt(view, panel, [x, y]) {
  const { box, grid } = view.pictures[view.get("picture")];
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
  const { box, grid } = view.pictures[view.get("picture")];
  if (row < 0 || column < 0 || row >= grid[0] || column >= grid[1]) return leave(view);
  if (patch?.panel === panel && patch.row === row && patch.column === column) return;
  view.patch = { panel, row, column };
  drawCursor(view);
  shadeByPatch(view);
  tell(view, { place: [box[0] + ((column + 0.5) / grid[1]) * (box[2] - box[0]), box[1] + ((row + 0.5) / grid[0]) * (box[3] - box[1])] });
}

function leave(view) {
  if (!view.patch) return;
  view.stages[view.patch.panel].cursor.style.display = "none";
  view.patch = null;
  shadeByWords(view, chosen(view));
  tell(view, {});
}

/** Point at what another explorer of the group points at; returns how to stop. */
export function follow(view) {
  const heard = ({ detail }) => {
    if (detail.view === view || detail.group !== view.get("group")) return;
    const { place, word } = detail;
    view.quiet = true; // or it would tell in turn
    if (place) visitAt(view, 0, place);
    else leave(view);
    const asked = ({ words, prompt }) => words.slice(0, prompt).join("");
    const paired = view.words[word] === detail.view.words[word] || asked(view) === asked(detail.view);
    point(view, paired && word < view.words.length ? word : undefined);
    view.quiet = false;
  };
  window.addEventListener("rx-pointed", heard);
  return () => window.removeEventListener("rx-pointed", heard);
}
