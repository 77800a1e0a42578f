// A button that hands one picture to the kernel; one that is too large is not even read.

export default { render };

function render({ model, el }) {
  const label = document.createElement("label");
  const input = document.createElement("input");
  Object.assign(input, { type: "file", accept: model.get("accept") });
  input.addEventListener("change", () => read(model, input));
  label.append(`picture (up to ${model.get("largest") / 2 ** 20} MB) `, input);
  el.append(label);
}

async function read(model, input) {
  const [file] = input.files;
  if (!file) return;
  const fits = file.size <= model.get("largest");
  model.set("content", new DataView(fits ? await file.arrayBuffer() : new ArrayBuffer(0)));
  model.set("size", file.size);
  model.set("name", file.name);
  model.set("chosen", model.get("chosen") + 1);
  model.save_changes();
}
