// Brings the anywidgets of an exported page to life, without Jupyter: each widget's own module
// (https://anywidget.dev/en/afm) runs on a model that keeps what the kernel last told it. What the
// page has of a widget, a still picture, stays where the widget cannot be shown.

const { state: saved } = JSON.parse(document.getElementById("widget-state").textContent);
const models = new Map(Object.entries(saved).map(([id, { state, buffers }]) => [id, model(state, buffers)]));
for (const place of document.querySelectorAll(".widget")) show(place);

async function show(place) {
  const stages = [];
  try {
    for (const id of anywidgets(place.dataset.model)) {
      stages.push(document.createElement("div"));
      await render(models.get(id), stages.at(-1));
    }
    place.replaceChildren(...stages);
  } catch (problem) {
    console.error(problem);
  }
}

/** The anywidgets that a widget is, or that lie in it. Sliders and the like need a kernel. */
function anywidgets(id) {
  const found = models.get(id);
  if (found?.get("_esm")) return [id];
  const children = found?.get("children") ?? [];
  return children.flatMap((child) => anywidgets(child.replace("IPY_MODEL_", "")));
}

async function render(model, el) {
  const url = URL.createObjectURL(new Blob([model.get("_esm")], { type: "text/javascript" }));
  const { default: made } = await import(url);
  URL.revokeObjectURL(url);
  const widget = typeof made === "function" ? await made() : made;
  if (model.get("_css")) {
    const style = document.createElement("style");
    style.textContent = model.get("_css");
    document.head.append(style);
  }
  await widget.initialize?.({ model });
  await widget.render?.({ model, el });
}

function model(values, buffers = []) {
  for (const { path, data } of buffers) {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const holder = path.slice(0, -1).reduce((inner, step) => inner[step], values);
    holder[path.at(-1)] = new DataView(bytes.buffer);
  }
  const listeners = [];
  const tell = (name) => listeners.filter((l) => l.name === name).forEach((l) => l.call());
  return {
    get: (name) => values[name],
    set(name, value) {
      const changes = typeof name === "object" ? name : { [name]: value };
      for (const [key, next] of Object.entries(changes)) {
        if (values[key] === next) continue;
        values[key] = next;
        tell(`change:${key}`);
      }
      tell("change");
    },
    on: (names, call) => names.split(" ").forEach((name) => listeners.push({ name, call })),
    off(names, call) {
      const ended = (l) => (!names || names.split(" ").includes(l.name)) && (!call || l.call === call);
      listeners.splice(0, listeners.length, ...listeners.filter((l) => !ended(l)));
    },
    save_changes() {},
    send() {}, // there is no kernel that would hear it
  };
}
