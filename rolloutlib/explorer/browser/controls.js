// Controls that need no kernel: how the map is drawn.

import { make } from "./dom.js";

export function controls(view) {
  const { get, set, pictures, panels, parts, words } = view;
  parts.updates = [];
  const sheets = panels.flatMap((panel) => panel.sheets);
  const names = [...new Set(sheets.map((sheet) => sheet.name))];
  const fields = [
    choice(view, "pinned words", "combine", { mean: "mean", max: "max" }),
    slider(view, "power", "power", 0.25, 4, 0.25),
    slider(view, "blur, in patches", "blur", 0, 3, 0.25),
    slider(view, "opacity", "opacity", 0, 1, 0.05),
  ];
  fields.unshift(choice(view, "map", "display", { fading: "fading where it is low", flat: "flat", outline: "outlines", beside: "beside the picture", slider: "behind a slider" }));
  if (words.length > 1) fields.push(box(view, "one scale for all words", () => get("shared"), (on) => set("shared", on)));
  if (sheets.some((sheet) => !sheet.colours && !sheet.point)) fields.push(choice(view, "colours", "colours", Object.fromEntries(Object.keys(get("palettes")).map((name) => [name, name]))));
  if (pictures.length > 1) fields.push(box(view, "one scale for all pictures", () => get("together"), (on) => set("together", on)));
  if (names.length > 1) {
    for (const name of names) {
      fields.push(box(view, name, () => !get("hidden").includes(name), (on) => set("hidden", on ? get("hidden").filter((other) => other !== name) : [...get("hidden"), name])));
    }
  }
  parts.clear = make("button", { type: "button", class: "rx-clear" }, "unpin all");
  parts.clear.addEventListener("click", () => set("selected", []));
  return make("div", { class: "rx-controls", role: "group", "aria-label": "how the map is drawn" }, ...fields, parts.clear);
}

function choice({ get, set, parts }, label, name, options) {
  const select = make("select", {}, ...Object.entries(options).map(([value, text]) => make("option", { value }, text)));
  select.addEventListener("change", () => set(name, select.value));
  parts.updates.push(() => (select.value = get(name)));
  return make("label", {}, `${label} `, select);
}

function slider({ get, model, parts }, label, name, min, max, step) {
  const range = make("input", { type: "range", min, max, step });
  const value = make("output", {});
  range.addEventListener("input", () => model.set(name, Number(range.value)));
  range.addEventListener("change", () => model.save_changes());
  parts.updates.push(() => (value.textContent = range.value = get(name)));
  return make("label", {}, `${label} `, range, value);
}

function box({ parts }, label, read, write) {
  const input = make("input", { type: "checkbox" });
  input.addEventListener("change", () => write(input.checked));
  parts.updates.push(() => (input.checked = read()));
  return make("label", {}, input, ` ${label}`);
}
