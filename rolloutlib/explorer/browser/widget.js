// Draws where each word looked, in the browser, from maps that were sent once: pointing needs no
// kernel. `widget.py` says what the model's traits hold.
// All parts share one view of the model: what is shown, what is pointed at, and the elements.

import { controls } from "./controls.js";
import { make } from "./dom.js";
import { drawFilm, drawMatrix, film, matrix } from "./film.js";
import { decode, placed } from "./maps.js";
import { bytesOf } from "./numbers.js";
import { arrange, drawCursor, drawStages, follow, stage } from "./pictures.js";
import { hear, savers } from "./saving.js";
import { player } from "./sound.js";
import { checker, drawTrust, enable, hearTrust } from "./trust.js";
import { chip, chosen, describe, fold, shadeByPatch, shadeByWords, toolbars } from "./words.js";

const UNTOLD = { display: "fading", name: "", split: 0.5, tokens: [], special: [], weights: [], note: "", made: "", checks: "", trust: {} }; // by older notebooks

export default { render };

function render({ model, el }) {
  const view = viewOf(model);
  el.replaceChildren(assemble(view));

  const refreshed = () => refresh(view);
  const renewed = () => renew(view);
  const busy = () => showBusy(view);
  const trusted = () => hearTrust(view);
  const look = ["selected", "combine", "colours", "power", "blur", "opacity", "hidden", "picture", "together", "display", "split", "shared"];
  for (const name of look) model.on(`change:${name}`, refreshed);
  model.on("change:codes", renewed);
  model.on("change:trust", trusted);
  for (const name of ["busy", "status", "note", "made"]) model.on(`change:${name}`, busy);
  refresh(view);
  showBusy(view);
  const answered = (content, buffers) => {
    hear(view, content, buffers);
    if (content.kernel) enable(view);
  };
  model.on("msg:custom", answered);
  model.send({ ask: "kernel" });
  const unfollow = follow(view);

  return () => {
    unfollow();
    clearInterval(view.timer);
    view.parts.audio?.pause();
    view.urls.forEach((url) => URL.revokeObjectURL(url));
    for (const callback of [refreshed, renewed, busy, trusted, answered]) model.off(null, callback);
  };
}

/** What all parts share, before there are elements. */
function viewOf(model) {
  const get = (name) => model.get(name) ?? UNTOLD[name];
  const pictures = get("pictures").map(placed);
  const [words, prompt] = [get("words"), get("prompt")];
  const view = {
    model,
    get,
    set: (name, value) => (model.set(name, value), model.save_changes()),
    draw: () => draw(view),
    pictures,
    urls: pictures.map((p) => URL.createObjectURL(new Blob([bytesOf(p.data)], { type: p.type }))),
    words,
    prompt,
    answer: words.map((_, index) => index).slice(prompt),
    whole: prompt ? "whole answer" : `all ${get("title")}`,
    lookups: new Map(), // palettes and weights, once made
    pointed: null, // the word under the pointer, as a list of one
    patch: null, // or the patch under it: {panel, row, column}
    timer: null,
    asked: { special: false, whole: false }, // of what is folded away
    waiting: false, // for the kernel to check
    quiet: false, // while it follows another explorer
    barred: [], // the words that have a bar now
    parts: {}, // elements that are there once
  };
  view.panels = decode(view);
  return view;
}

/** Make all elements and return the one that holds them. */
function assemble(view) {
  const { get, pictures, words, panels, parts } = view;
  view.stages = panels.map((panel, index) => stage(view, panel, index));
  checker(view);
  view.bars = words.map(() => make("i", { class: "rx-bar" }));
  view.chips = words.map((_, index) => chip(view, index));
  // Maps with scales of their own are not shares of one whole; a matrix can show nothing else.
  const compared = words.length > 1 && pictures.length > 1 && get("together");
  parts.root = make("div", { class: "rx", "data-lm-suppress-shortcuts": "true" },
    make("div", { class: panels.length > 1 ? "rx-main rx-wide" : "rx-main" },
      make("div", { class: "rx-stages" }, ...view.stages.map((s) => s.figure)),
      make("div", { class: "rx-side" }, ...toolbars(view), ...(compared ? [matrix(view)] : []))),
    ...(pictures.length > 1 ? film(view) : []),
    ...(get("seconds") ? player(view) : []),
    (parts.readout = make("p", { class: "rx-readout", role: "status" })),
    controls(view),
    savers(view),
    (parts.status = make("p", { class: "rx-status", role: "status" })),
  );
  return parts.root;
}

function draw(view) {
  const which = chosen(view);
  drawStages(view, which);
  drawTrust(view);
  if (view.parts.strip) drawFilm(view, which);
  if (view.patch) {
    drawCursor(view);
    shadeByPatch(view);
  } else {
    shadeByWords(view, which);
  }
}

function refresh(view) {
  const { get, panels, chips, parts } = view;
  panels.forEach((panel) => panel.sheets.forEach((sheet) => (sheet.kept = null)));
  const pinned = new Set(get("selected"));
  chips.forEach((chip, index) => chip.setAttribute("aria-pressed", pinned.has(index)));
  fold(view);
  parts.clear.disabled = pinned.size === 0;
  if (parts.matrix) drawMatrix(view);
  for (const update of parts.updates) update();
  arrange(view);
  draw(view);
}

function renew(view) {
  view.panels = decode(view);
  view.chips.forEach((chip, index) => chip.setAttribute("aria-label", describe(view, index)));
  refresh(view);
}

function showBusy({ get, parts }) {
  parts.root.setAttribute("aria-busy", get("busy"));
  parts.status.textContent = [get("made"), get("note"), get("status")].filter(Boolean).join(" ");
}
