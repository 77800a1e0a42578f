// Maps: from the bytes of the kernel to rows of relevance, and from there to pixels.

import { bytesOf, extent, gaussian, resample } from "./numbers.js";

const FLAT = 2e-5; // contrast that may be mere rounding, as in overlay.py
const LEVELS = [0.25, 0.5, 0.75]; // of the highest value, where outlines run, as in overlay.py
const FADING = 0.5; // power of the opacity of a fading map, as in overlay.py
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
  const { buffer } = bytesOf(get("codes"));
  const [codes, signedCodes] = [new Uint16Array(buffer), new Int16Array(buffer)];
  const width = pictures.at(-1).end + words.length;
  let start = 0;
  return get("panels").map((panel) => ({
    ...panel,
    sheets: panel.sheets.map((sheet) => {
      const kind = sheet.signed ? signedCodes : codes;
      const rows = sheet.peaks.map((_, row) => kind.subarray(start + row * width, start + (row + 1) * width));
      start += rows.length * width;
      return { ...sheet, rows, units: sheet.peaks.map((peak) => peak / (sheet.signed ? 32767 : 65535)) };
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
  const weight = (word) => get("weights")[word] ?? 1; // how many tokens it has
  const total = members.reduce((sum, word) => sum + weight(word), 0);
  for (const word of members) {
    const row = sheet.rows[word];
    const unit = sheet.units[word] * (greatest ? 1 : weight(word) / total);
    for (let i = 0; i < row.length; i++) {
      const value = row[i] * unit;
      result[i] = greatest && word !== members[0] ? Math.max(result[i], value) : result[i] + value;
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

/** 1024 colours of a sheet, from low to high; fading ones are the clearer the lower they are, or if
 * the sheet is signed, the nearer to the middle. */
export function lookup(view, sheet, power, fading) {
  const name = sheet.colours || view.get("colours");
  return once(view, `${name} ${power} ${fading} ${sheet.signed}`, () => {
    const palette = new Uint32Array(bytesOf(view.get("palettes")[name]).buffer);
    const opaque = palette[0] >>> 24 === 255; // others fade by themselves
    return Uint32Array.from({ length: 1024 }, (_, i) => {
      const share = sheet.signed ? (2 * i) / 1023 - 1 : i / 1023;
      const size = Math.abs(share) ** power;
      const colour = palette[Math.round(255 * (sheet.signed ? (Math.sign(share) * size + 1) / 2 : size))];
      return fading && opaque ? (colour & 0xffffff) | (Math.round(255 * size ** FADING) << 24) : colour;
    });
  });
}

/** The ends of a scale: of a signed sheet, as far below 0 as above. */
export function ends(sheet, [low, high]) {
  const far = Math.max(-low, high);
  return sheet.signed ? [-far, far] : [low, high];
}

/** A picture's part of a row, blurred, with the lowest and highest value of its scale. */
function smooth(view, row, picture, sheet, scale, sigma) {
  const { get, pictures } = view;
  const [rows, columns] = picture.grid;
  const grid = row.subarray(picture.start, picture.end);
  const weights = (cells) => once(view, `${cells} ${scale} ${sigma}`, () => gaussian(cells, scale, sigma));
  const fine = resample(grid, columns, weights(rows), weights(columns));
  const end = pictures.at(-1).end;
  const [low, high] = ends(sheet, get("shared") ? allExtent(view, sheet, end)
    : get("together") ? extent(row.subarray(0, end)) : seenExtent(fine, picture, scale));
  return { fine, width: columns * scale, height: rows * scale, low, high, unit: high - low > FLAT * high ? 1 / (high - low) : 0 };
}

function sized(canvas, width, height) {
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
  return canvas.getContext("2d");
}

/** Colour a picture's part of a row; returns the lowest and highest value of the scale. */
export function paint(view, canvas, row, picture, sheet, scale, sigma) {
  const { get } = view;
  const { fine, width, height, low, high, unit } = smooth(view, row, picture, sheet, scale, sigma);
  const colours = lookup(view, sheet, get("power"), get("display") !== "flat");
  const context = sized(canvas, width, height);
  const image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; high > 0 && i < fine.length; i++) { // else nothing to show: the bare picture
    pixels[i] = colours[Math.max(0, Math.min(1023, Math.round((fine[i] - low) * unit * 1023)))];
  }
  context.putImageData(image, 0, 0);
  return [low, high];
}

/** Draw lines where a picture's part of a row crosses each level; returns as `paint` does. */
export function outline(view, canvas, row, picture, sheet, scale, sigma) {
  const { get } = view;
  const { fine, width, height, low, high, unit } = smooth(view, row, picture, sheet, scale, sigma);
  const colours = lookup(view, sheet, 1, false);
  const context = sized(canvas, 4 * width, 4 * height);
  context.clearRect(0, 0, canvas.width, canvas.height);
  for (const level of sheet.signed ? LEVELS.flatMap((level) => [level, -level]) : LEVELS) {
    const size = Math.abs(level) ** (1 / get("power"));
    const at = sheet.signed ? high * size * Math.sign(level) : low + size * (high - low);
    const line = contour(fine, width, height, at, 4);
    const [red, green, blue] = new Uint8Array(colours.slice(Math.round(1023 * (sheet.signed ? (level + 1) / 2 : level))).buffer);
    for (const [thick, colour] of [[110, "#fff"], [220, `rgb(${red} ${green} ${blue})`]]) {
      Object.assign(context, { lineWidth: canvas.width / thick, strokeStyle: colour, lineCap: "round" });
      if (unit) context.stroke(line);
    }
  }
  return [low, high];
}

/** Where values cross a level, between the middles of pixels, as a path `zoom` times as large. */
function contour(values, width, height, level, zoom) {
  const path = new Path2D();
  const corners = [[0, 0], [1, 0], [1, 1], [0, 1]];
  for (let y = 0; y < height - 1; y++) {
    for (let x = 0; x < width - 1; x++) {
      const at = corners.map(([dx, dy]) => values[(y + dy) * width + x + dx]);
      let begun = false;
      for (let k = 0; k < 4; k++) {
        const next = (k + 1) % 4;
        if (at[k] < level === at[next] < level) continue;
        const way = (level - at[k]) / (at[next] - at[k]);
        const [px, py] = [0, 1].map((axis) => corners[k][axis] + way * (corners[next][axis] - corners[k][axis]));
        const spot = [(x + px + 0.5) * zoom, (y + py + 0.5) * zoom];
        if (begun) path.lineTo(...spot);
        else path.moveTo(...spot);
        begun = !begun;
      }
    }
  }
  return path;
}

/** Lowest and highest value of all words on all pictures. */
function allExtent(view, sheet, end) {
  return once(view, sheet, () => {
    const each = sheet.rows.map((row, word) => extent(row.subarray(0, end)).map((code) => code * sheet.units[word]));
    return [Math.min(...each.map(([low]) => low)), Math.max(...each.map(([, high]) => high))];
  });
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
