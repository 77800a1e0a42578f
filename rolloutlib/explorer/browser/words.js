// Words: chips to point at and to pin, by pointer and keyboard, and what is relevant for a word, said.

import { make, percent, tell } from "./dom.js";
import { lead, relevance } from "./maps.js";
import { placeOf } from "./moments.js";
import { topOf } from "./numbers.js";

const FOLD = 40; // words of a prompt; of a longer one, the first and last 15 are shown
const EDGE = 15;
const BARS = 24; // words that have a bar at the same time

/** The words whose maps are shown: the one under the pointer, else the pinned, else the answer's. */
export function chosen({ get, pointed, answer }) {
  if (pointed) return pointed;
  return get("selected").length ? get("selected") : answer;
}

// ---- What they say

export function shadeByWords(view, which) {
  const { pictures, panels, parts, answer, whole } = view;
  const sheet = lead(view, panels[0]);
  if (!sheet) return;
  const row = relevance(view, sheet, which);
  shade(view, row.subarray(pictures.at(-1).end).map(Math.abs));
  const names = which === answer ? whole : which.map((word) => quote(view, word)).join(" + ");
  parts.readout.textContent = `${names}: ${told(view, row, sheet)}`;
}

export function shadeByPatch(view) {
  const { get, pictures, panels, parts, patch } = view;
  const sheet = lead(view, panels[patch.panel]);
  if (!sheet) return;
  const { start, grid } = pictures[get("picture")];
  const cell = start + patch.row * grid[1] + patch.column;
  const drawn = Float32Array.from(sheet.rows, (row, word) => row[cell] * sheet.units[word]);
  const size = drawn.map(Math.abs);
  shade(view, size);
  const most = topOf(size, 3).map((word) => `${quote(view, word)} ${sheet.signed ? signed(drawn[word]) : percent(drawn[word])}`);
  const how = sheet.signed ? "different for" : "relevant for";
  parts.readout.textContent = `${get("seconds") ? "" : "patch in "}${placeOf(view, pictures[get("picture")], cell - start)}, ${how} ${most.join(", ") || "no word"}`;
}

/** The bars of the words with the highest values, in proportion to the highest. */
function shade(view, values) {
  const { bars, barred } = view;
  const best = topOf(values, BARS);
  for (const index of barred) if (!best.includes(index)) bars[index].style.transform = "scaleX(0)";
  for (const index of best) bars[index].style.transform = `scaleX(${(values[index] / values[best[0]]).toFixed(3)})`;
  view.barred = best;
}

/** A row of relevance in words, for those who cannot see the map. */
function told(view, row, sheet) {
  const { pictures } = view;
  if (sheet.signed) return toldDifference(view, row.subarray(0, pictures.at(-1).end));
  const { end } = pictures.at(-1);
  const cells = row.subarray(0, end);
  const total = cells.reduce((sum, value) => sum + value, 0);
  if (!(total > 0)) return "nothing from the picture, which comes later";
  const best = topOf(cells, 1)[0];
  const drawn = topOf(row.subarray(end), 2).map((word) => `${percent(row[end + word])} from ${quote(view, word)}`);
  const most = `most, without blur, at ${whereIs(view, best)} (${percent(row[best] / total)} of what is from the picture${pictures.length > 1 ? "s" : ""})`;
  if (view.get("note") || !drawn.length) return most;
  return `${percent(total)} of the whole is from the picture${pictures.length > 1 ? "s" : ""}, ${most}; ${percent(Math.max(0, 1 - total))} is from words: ${drawn.join(", ")}`;
}

function toldDifference(view, cells) {
  const total = cells.reduce((sum, value) => sum + value, 0);
  const ends = [["more", cells], ["less", cells.map((value) => -value)]].flatMap(([name, some]) =>
    topOf(some, 1).map((cell) => `most ${name} at ${whereIs(view, cell)} (${signed(cells[cell])})`));
  return ends.length ? `${signed(total)} of the whole is from the picture; ${ends.join(", ")}` : "no difference on the picture";
}

/** Where a cell is, counted over all pictures. */
function whereIs(view, cell) {
  const { pictures } = view;
  const picture = pictures.find(({ end }) => cell < end);
  return `${pictures.length > 1 ? `${picture.label}, ` : ""}${placeOf(view, picture, cell - picture.start)}`;
}

function signed(share) {
  return `${share < 0 ? "−" : "+"}${percent(Math.abs(share))}`;
}

export function describe(view, word) {
  const { panels, prompt } = view;
  const sheet = lead(view, panels[0]);
  const kind = prompt ? (word < prompt ? "word of the prompt" : "word of the answer") : "";
  const said = sheet ? told(view, relevance(view, sheet, [word]), sheet) : "";
  return [quote(view, word), kind, said].filter(Boolean).join(", ");
}

function quote({ words }, word) {
  return `“${words[word]}”`;
}

// ---- Chips

export function chip(view, index) {
  const { get, words, prompt, bars } = view;
  const text = words[index];
  const shown = text.trim() || text.replaceAll("\n", "⏎").replaceAll(" ", "␣") || "∅";
  const tokens = get("tokens")[index] ?? [];
  const whole = tokens.length > 1 && tokens.join("").trim() === shown;
  const inside = whole ? tokens.map((token) => make("span", { class: "rx-token" }, token.trim())) : [shown];
  const title = tokens.length > 1 ? { title: `${tokens.length} tokens: ${tokens.join(" · ")}` } : {};
  return make("button", { type: "button", class: "rx-chip", "aria-pressed": "false", tabindex: index === prompt ? "0" : "-1", "data-word": index, "aria-label": describe(view, index), ...title }, ...inside, bars[index]);
}

/** Hide special tokens and the middle of a long prompt, unless asked for or pinned. */
export function fold(view) {
  const { get, chips, prompt, asked } = view;
  const [special, pinned] = [new Set(get("special")), new Set(get("selected"))];
  const plain = chips.map((_, index) => index).filter((index) => asked.special || !special.has(index));
  const inPrompt = plain.filter((index) => index < prompt);
  const shown = new Set(inPrompt.length > FOLD && !asked.whole ? [...inPrompt.slice(0, EDGE), ...inPrompt.slice(-EDGE), ...plain.slice(inPrompt.length)] : plain);
  chips.forEach((chip, index) => (chip.hidden = !shown.has(index) && !pinned.has(index)));
}

/** Buttons that show what is folded away. */
function unfolders(view) {
  const { get, prompt, asked } = view;
  const toggle = (name, text) => {
    const button = make("button", { type: "button", class: "rx-fold", "aria-pressed": "false" }, text);
    button.addEventListener("click", () => {
      asked[name] = !asked[name];
      button.setAttribute("aria-pressed", asked[name]);
      fold(view);
    });
    return button;
  };
  const special = get("special").length ? [toggle("special", "special tokens")] : [];
  return prompt - get("special").filter((index) => index < prompt).length > FOLD ? [toggle("whole", "whole prompt"), ...special] : special;
}

/** The chips in their groups, each with its name. */
export function toolbars(view) {
  const { get, chips, prompt } = view;
  const groups = prompt ? [["prompt", chips.slice(0, prompt)], ["answer", chips.slice(prompt)]] : [[get("title"), chips]];
  return groups.map(([name, some], place) => {
    const list = make("div", { class: "rx-chips", role: "toolbar", "aria-label": `${name}: arrow keys move, Enter pins, Escape unpins all` }, ...some);
    for (const name of ["pointerover", "focusin"]) list.addEventListener(name, (event) => point(view, event.target.dataset.word));
    for (const name of ["pointerleave", "focusout"]) list.addEventListener(name, () => point(view));
    list.addEventListener("click", (event) => {
      pin(view, event.target.dataset.word);
      if (event.pointerType === "touch") point(view); // the finger is gone; only the focus stayed
    });
    list.addEventListener("keydown", (event) => walk(view, event));
    return make("section", {}, make("p", { class: "rx-name" }, name, ...(place ? [] : unfolders(view))), list);
  });
}

export function point(view, word) {
  view.pointed = word === undefined ? null : [Number(word)];
  if (view.pointed) view.patch = null;
  view.draw();
  if (view.pointed || !view.patch) tell(view, { word });
}

export function pin({ get, set }, word) {
  if (word === undefined) return;
  const index = Number(word);
  const pinned = get("selected");
  set("selected", pinned.includes(index) ? pinned.filter((other) => other !== index) : [...pinned, index].sort((a, b) => a - b));
}

function walk({ set, words, chips }, event) {
  const at = Number(event.target.dataset.word);
  const steps = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: words.length - 1 };
  if (event.key === "Escape") return set("selected", []);
  if (!(event.key in steps)) return;
  event.preventDefault();
  const way = ["ArrowLeft", "ArrowUp", "End"].includes(event.key) ? -1 : 1;
  let place = Math.max(0, Math.min(words.length - 1, steps[event.key]));
  while (chips[place]?.hidden) place += way;
  const next = chips[place] ?? event.target;
  chips.forEach((chip) => (chip.tabIndex = chip === next ? 0 : -1));
  next.focus();
}
