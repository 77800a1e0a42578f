// Several pictures: time, a strip of them all, and which are relevant for which word.

import { make, percent, placing } from "./dom.js";
import { ends, lead, lookup, paint, relevance } from "./maps.js";
import { extent } from "./numbers.js";
import { pin, point } from "./words.js";

export function film(view) {
  const { set, pictures, urls, parts } = view;
  const last = pictures.length - 1;
  parts.time = make("input", { type: "range", min: 0, max: last, step: 1, "aria-label": "time" });
  parts.time.addEventListener("input", () => set("picture", Number(parts.time.value)));
  parts.play = make("button", { type: "button", class: "rx-play", "aria-label": "play" }, "▶");
  parts.play.addEventListener("click", () => play(view, view.timer === null));
  parts.when = make("output", {});
  parts.strip = pictures.map((picture, index) => {
    const canvas = make("canvas", { "aria-hidden": "true" });
    const still = make("span", { class: "rx-still", style: `aspect-ratio:${picture.width}/${picture.height}` }, make("img", { src: urls[index], alt: "" }), canvas);
    const thumb = make("button", { type: "button", class: "rx-thumb", title: picture.label }, still, make("span", { class: "rx-share" }));
    thumb.canvas = canvas;
    thumb.addEventListener("click", () => set("picture", index));
    return thumb;
  });
  return [make("div", { class: "rx-time" }, parts.play, parts.time, parts.when), make("div", { class: "rx-strip" }, ...parts.strip)];
}

function play(view, on) {
  const { get, set, pictures, parts } = view;
  clearInterval(view.timer);
  view.timer = on ? setInterval(() => set("picture", (get("picture") + 1) % pictures.length), 300) : null;
  parts.play.textContent = on ? "❚❚" : "▶";
  parts.play.setAttribute("aria-label", on ? "pause" : "play");
}

export function drawFilm(view, which) {
  const { get, pictures, words, panels, parts } = view;
  const sheet = lead(view, panels[0]);
  const now = get("picture");
  const row = sheet && relevance(view, sheet, which);
  const shares = row ? sharesOf(view, row) : pictures.map(() => 0);
  const [, high] = extent(shares);
  parts.strip.forEach((thumb, index) => {
    thumb.setAttribute("aria-current", index === now);
    thumb.setAttribute("aria-label", `${pictures[index].label}: ${percent(shares[index])}`);
    thumb.style.setProperty("--share", `${high > 0 ? (shares[index] / high) * 100 : 0}%`);
    thumb.canvas.style.cssText = `${placing(pictures[index].box)};opacity:${get("opacity")}`;
    if (row) paint(view, thumb.canvas, row, pictures[index], sheet, 1, 0);
  });
  parts.time.value = now;
  parts.when.textContent = `${pictures[now].label}: ${percent(shares[now])}`;
  parts.marker && parts.marker.setAttribute("style", which.length === 1 ? `top:${(which[0] / words.length) * 100}%;height:${100 / words.length}%` : "display:none");
}

function sharesOf({ pictures }, row) {
  return Float32Array.from(pictures, (p) => row.subarray(p.start, p.end).reduce((sum, value) => sum + value, 0));
}

/** How relevant each picture is for each word: a row for each word; pointing at a row chooses its word. */
export function matrix(view) {
  const { get, set, pictures, words, parts } = view;
  parts.matrix = make("canvas", { role: "img", "aria-label": `${get("title") || "words"} by picture: the numbers are those of the film strip` });
  parts.marker = make("div", { class: "rx-marker" });
  const frame = make("div", { class: "rx-matrix", style: `aspect-ratio:${pictures.length}/${words.length}` }, parts.matrix, parts.marker);
  const at = (event) => {
    const bounds = frame.getBoundingClientRect();
    const place = (position, length, n) => Math.max(0, Math.min(n - 1, Math.floor((position / length) * n)));
    return [place(event.clientY - bounds.top, bounds.height, words.length), place(event.clientX - bounds.left, bounds.width, pictures.length)];
  };
  frame.addEventListener("pointermove", (event) => view.pointed?.[0] === at(event)[0] || point(view, at(event)[0]));
  frame.addEventListener("pointerleave", () => point(view));
  frame.addEventListener("click", (event) => {
    set("picture", at(event)[1]);
    pin(view, at(event)[0]);
  });
  return make("figure", { class: "rx-when" }, make("figcaption", {}, "what is relevant for each: one row each, pictures from left to right"), frame);
}

export function drawMatrix(view) {
  const { get, pictures, words, panels, parts } = view;
  const sheet = lead(view, panels[0]);
  if (!sheet) return;
  const [width, height] = [pictures.length, words.length];
  Object.assign(parts.matrix, { width, height });
  const context = parts.matrix.getContext("2d");
  const image = context.createImageData(width, height);
  const colours = lookup(view, sheet, 1, false);
  words.forEach((_, word) => {
    const shares = sharesOf(view, relevance(view, sheet, [word]));
    const [low, high] = ends(sheet, extent(shares));
    shares.forEach((share, x) => {
      const index = high > low ? Math.round(((share - low) / (high - low)) * 1023) : 0;
      new Uint32Array(image.data.buffer)[word * width + x] = colours[index];
    });
  });
  context.putImageData(image, 0, 0);
}
