// A sound, if there is one: its spectrogram is the picture, and it is played from where a word
// listened. The picture's cells are moments.

import { make } from "./dom.js";
import { lead, relevance } from "./maps.js";
import { seconds } from "./moments.js";
import { bytesOf, topOf } from "./numbers.js";
import { chosen } from "./words.js";

const BEFORE = 0.15; // seconds that are played before the moment, to hear how the word begins

export function player(view) {
  const { get, parts, stages } = view;
  parts.audio = make("audio", { controls: "", "aria-label": "the sound" });
  view.urls.push(parts.audio.src = URL.createObjectURL(new Blob([bytesOf(get("sound"))]))); // WAV, or FLAC on a page
  parts.from = make("button", { type: "button", class: "rx-from" }, "play from where it listened");
  parts.from.addEventListener("click", () => playFrom(view, moment(view)));
  view.chips.forEach((chip) => chip.addEventListener("keydown", (event) => event.key.toLowerCase() === "p" && playFrom(view, moment(view))));
  stages.forEach(({ frame }) => {
    const needle = make("div", { class: "rx-needle", "aria-hidden": "true" });
    frame.append(needle);
    frame.addEventListener("click", () => view.patch && playFrom(view, seconds(view, view.patch.column)));
    parts.audio.addEventListener("timeupdate", () => (needle.style.left = `${(100 * parts.audio.currentTime) / get("seconds")}%`));
  });
  return [make("div", { class: "rx-sound" }, parts.audio, parts.from, make("span", { class: "rx-hint" }, "P on a word, or a click on the spectrogram, plays from there"))];
}

/** The second at which the words that are shown listened most. */
function moment(view) {
  const sheet = lead(view, view.panels[0]);
  const { end } = view.pictures[0];
  return seconds(view, topOf(relevance(view, sheet, chosen(view)).subarray(0, end), 1)[0] ?? 0);
}

function playFrom({ parts }, from) {
  parts.audio.currentTime = Math.max(0, from - BEFORE);
  parts.audio.play().catch(() => {}); // a browser may refuse to make a noise unasked
}
