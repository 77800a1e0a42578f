// Maps: from the bytes of the kernel to rows of relevance, and from there to pixels.

import { bytesOf, extent, gaussian, resample } from "./numbers.js";

const FLAT = 2e-5; // contrast that may be mere rounding, as in overlay.py
const FINE = 256; // pixels of a map's longer side; the browser scales it to the picture

/** Where a picture's cells begin in a row of relevance, and where they lie on the picture. */
export function placed(picture, index, all) {
  const cells = (p) => p.grid[0] * p.grid[1];
  const start = all.slice(0, index).reduce((sum, p) => sum + cells(p), 0);
  const scale = Math.max(1, Math.min(8, Math.floor(FINE / Math.max(...picture.grid))));
  return { ...picture, start, end: start + cells(picture), scale };
}

/** The panels, each sheet with its rows of codes. */
export function decode({ get, pictures, words }) {
  const codes = new Uint16Array(bytesOf(get("codes")).buffer);
  const width = pictures.at(-1).end + words.length;
  let start = 0;
  return get("panels").map((panel) => ({
    ...panel,
    sheets: panel.sheets.map((sheet) => {
      const rows = sheet.peaks.map((_, row) => codes.subarray(start + row * width, start + (row + 1) * width));
      start += rows.length * width;
      return { ...sheet, rows };
    }),
  }));
}

/** The sheet that tells words apart: the first one shown that has a row for each word. */
export function lead({ get, words }, panel) {
  const able = panel.sheets.filter((sheet) => sheet.rows.length === words.length);
  return able.find((sheet) => !get("hidden").includes(sheet.name)) ?? able[0];
}

/** One row of relevance, over the cells of all pictures and then over the words. */
export function relevance({ get }, sheet, which) {
  if (sheet.kept?.which === which) return sheet.kept.row;
  const members = sheet.rows.length === 1 ? [0] : which;
  const result = new Float32Array(sheet.rows[0].length);
  const greatest = get("combine") === "max";
  const share = greatest ? 1 : 1 / members.length;
  for (const word of members) {
    const row = sheet.rows[word];
    const unit = (sheet.peaks[word] / 65535) * share;
    for (let i = 0; i < row.length; i++) {
      const value = row[i] * unit;
      result[i] = greatest ? Math.max(result[i], value) : result[i] + value;
    }
  }
  sheet.kept = { which, row: result };
  return result;
}

/** What was made under this key before, or is made now. */
function once({ lookups }, key, made) {
  if (!lookups.has(key)) lookups.set(key, made());
  return lookups.get(key);
}

/** 1024 colours of a palette, from low to high. */
export function lookup(view, name, power) {
  return once(view, `${name} ${power}`, () => {
    const palette = new Uint32Array(bytesOf(view.get("palettes")[name]).buffer);
    return Uint32Array.from({ length: 1024 }, (_, i) => palette[Math.round(255 * (i / 1023) ** power)]);
  });
}

export function paint(view, canvas, row, picture, sheet, scale, sigma) {
  const { get, pictures } = view;
  const [rows, columns] = picture.grid;
  const grid = row.subarray(picture.start, picture.end);
  const weights = (cells) => once(view, `${cells} ${scale} ${sigma}`, () => gaussian(cells, scale, sigma));
  const fine = resample(grid, columns, weights(rows), weights(columns));
  const [low, high] = get("together") ? extent(row.subarray(0, pictures.at(-1).end)) : seenExtent(fine, picture, scale);
  const colours = lookup(view, sheet.colours || get("colours"), get("power"));
  const context = canvas.getContext("2d");
  if (canvas.width !== columns * scale) canvas.width = columns * scale;
  if (canvas.height !== rows * scale) canvas.height = rows * scale;
  const image = context.createImageData(canvas.width, canvas.height);
  const pixels = new Uint32Array(image.data.buffer);
  const unit = high - low > FLAT * high ? 1023 / (high - low) : 0;
  for (let i = 0; high > 0 && i < fine.length; i++) { // else nothing to show: the bare picture
    pixels[i] = colours[Math.max(0, Math.min(1023, Math.round((fine[i] - low) * unit)))];
  }
  context.putImageData(image, 0, 0);
}

/** Lowest and highest value on the part of the map that lies on the picture. */
function seenExtent(fine, picture, scale) {
  const [left, top, right, bottom] = picture.box;
  const [height, width] = picture.grid.map((n) => n * scale);
  const inside = (from, to, n) => [Math.max(0, Math.floor((-from / (to - from)) * n)), Math.min(n, Math.ceil(((1 - from) / (to - from)) * n))];
  const [x0, x1] = inside(left, right, width);
  const [y0, y1] = inside(top, bottom, height);
  let low = Infinity, high = -Infinity;
  for (let y = y0; y < y1; y++) {
    const [a, b] = extent(fine.subarray(y * width + x0, y * width + x1));
    low = Math.min(low, a);
    high = Math.max(high, b);
  }
  return [low, high];
}
