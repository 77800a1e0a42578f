// Brings the explorers of an exported page to life, without Jupyter: `explorer`, which stands above
// on the page, runs on a model that keeps what the kernel last told it. What the page has of it, a
// still picture, stays where it cannot be shown.

const saved = JSON.parse(document.getElementById("widget-state").textContent);
for (const place of document.querySelectorAll(".widget")) show(place);

function show(place) {
  const stages = [];
  try {
    for (const id of place.dataset.models.split(" ")) {
      stages.push(document.createElement("div"));
      explorer.render({ model: model(saved[id].state, saved[id].buffers), el: stages.at(-1) });
    }
    place.replaceChildren(...stages);
  } catch (problem) {
    console.error(problem);
  }
}

function model(values, buffers) {
  for (const { path, data } of buffers) {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const holder = path.slice(0, -1).reduce((inner, step) => inner[step], values);
    holder[path.at(-1)] = new DataView(bytes.buffer);
  }
  const listeners = [];
  const tell = (name, ...said) => listeners.filter((l) => l.name === name).forEach((l) => l.call(...said));
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
    hear: (content, buffers) => tell("msg:custom", content, buffers), // from whoever stands for one
  };
}
