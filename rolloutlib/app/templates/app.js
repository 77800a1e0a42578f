
// The page itself: what is picked, asked and shown. Nothing of it is stored anywhere else.

const part = (id) => document.getElementById(id);
const form = part("form");
const largest = Number(form.dataset.largest);
const most = Number(form.dataset.most);
// Traits that a check and a saved file depend on.
const [madeOf, look] = [form.dataset.madeOf, form.dataset.look].map((names) => names.split(" "));
// What is asked, by its name and by the field that holds it.
const FIELDS = { model: "model", adapter: "adapter", device: "device", question: "question", head_fusion: "heads", residual: "residual", longest: "longest" };
let picked = []; // the pictures, as files
const waiting = new Set(); // what ends each request that is being answered
let current = null; // what is shown
let stopShowing = () => {};

function say(text) {
  part("status").textContent = text;
}

/** Take away the answer that is shown: it does not belong to what is asked now. The history has it. */
function clear() {
  stopShowing();
  stopShowing = () => {};
  current = null;
  part("shown").replaceChildren();
  part("take").hidden = true;
}

function choose(files) {
  clear();
  const pictures = [...files].filter((file) => file.type.startsWith("image/"));
  const problem = refusal(pictures);
  if (!problem) {
    picked = pictures;
    const shown = pictures.map((file) => Object.assign(document.createElement("img"), { src: URL.createObjectURL(file), alt: file.name }));
    part("preview").replaceChildren(...shown);
  }
  const held = new DataTransfer(); // so that the field names them, wherever they came from
  picked.forEach((file) => held.items.add(file));
  part("picture").files = held.files;
  say(problem || `${pictures.map((file) => file.name).join(", ")} ${pictures.length > 1 ? "are" : "is"} here. Now ask.`);
}

/** Why these pictures can't be asked about; "" if they can. */
function refusal(pictures) {
  const heavy = pictures.find((file) => file.size > largest);
  if (!pictures.length) return "This is not a picture.";
  if (pictures.length > most) return `These are too many pictures: expected at most ${most}, got ${pictures.length}.`;
  return heavy ? `${heavy.name} is too large: expected at most ${largest / 2 ** 20} MB, got ${(heavy.size / 2 ** 20).toFixed(1)} MB.` : "";
}

async function ask() {
  clear();
  if (!picked.length || !part("question").value.trim()) return say(`The ${picked.length ? "question" : "picture"} is missing.`);
  const fields = Object.entries(FIELDS).map(([name, field]) => [name, part(field).value]);
  const pictures = picked.map((file) => [file.name, file.size]);
  const said = { ...Object.fromEntries(fields), beyond_even: part("beyond").checked, pictures };
  const files = picked;
  part("ask").disabled = true;
  say("Sending …");
  await request("/ask", said, files, (line) => hearAnswer(line, said, files));
  part("ask").disabled = false;
}

/** Does the answer depend on the place where its map, as it is shown, is highest? */
async function check(entry, shown) {
  const of = lookOf(shown, madeOf);
  shown.set("trust", { said: "Sending …" });
  await request("/check", { ...askedOf(entry), look: of }, entry.files, (line) => {
    if (line.trust) entry.state.trust = line.trust;
    shown.set("trust", line.trust ?? (line.problem ? { of, problem: line.problem } : { said: progress(line) }));
  });
}

/** A file of what is shown, of a kind that the explorer names. */
async function save(entry, shown, kind) {
  await request("/save", { ...askedOf(entry), look: lookOf(shown, [...look, "trust"]), kind }, entry.files, (line) => {
    if (line.saved) shown.hear({ saved: line.saved }, [Uint8Array.from(atob(line.data), (letter) => letter.charCodeAt(0))]);
    shown.set("status", line.saved ? `Saved as ${line.saved}.` : line.problem || progress(line));
  });
}

function lookOf(shown, names) {
  return Object.fromEntries(names.map((name) => [name, shown.get(name)]));
}

/** What was asked and answered, without what is large. */
function askedOf({ state, buffers, files, ...asked }) {
  return asked;
}

/** Send pictures and what is asked about them; each line of the reply is heard. */
async function request(path, said, files, hear) {
  const stop = new AbortController();
  waiting.add(stop);
  part("stop").disabled = false;
  try {
    const reply = await fetch(path, { method: "POST", body: new Blob(files), headers: { "X-Ask": encodeURIComponent(JSON.stringify(said)) }, signal: stop.signal });
    if (!reply.ok) throw new Error((await reply.text()) || reply.statusText);
    await hearLines(reply, hear);
  } catch (problem) {
    hear({ problem: problem.name === "AbortError" ? "Stopped." : `This could not be answered: ${problem.message}` });
  } finally {
    waiting.delete(stop);
    part("stop").disabled = !waiting.size;
  }
}

/** Read the reply line by line: where the work is, and at last the answer. */
async function hearLines(reply, hear) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (let { done, value } = await reader.read(); ; { done, value } = await reader.read()) {
    const lines = (text + (value ?? "")).split("\n");
    text = done ? "" : lines.pop();
    for (const line of lines.filter(Boolean)) hear(JSON.parse(line));
    if (done) return;
  }
}

function progress(line) {
  return line.before ? `Waiting: ${line.before} before you.` : `The model: ${line.said} …`;
}

function hearAnswer(line, said, files) {
  if (line.problem) {
    clear();
    return say(line.problem);
  }
  if (!line.state) return say(progress(line));
  const entry = { ...line, ...said, files, names: said.pictures.map(([name]) => name) };
  remember(entry);
  present(entry);
}

function present(entry) {
  clear();
  current = entry;
  const place = document.createElement("div");
  part("shown").replaceChildren(place);
  const shown = model(structuredClone(entry.state), entry.buffers);
  shown.send = (content) => { // as a kernel hears it
    if (content.ask) shown.hear({ kernel: true });
    if (content.check) check(entry, shown);
    if (content.save) save(entry, shown, content.save);
  };
  stopShowing = explorer.render({ model: shown, el: place });
  part("about").textContent = entry.about;
  part("take").hidden = false;
  say(`${entry.question} — The model says: ${entry.answer}`);
  part("status").scrollIntoView(); // the answer may be below what is seen
}

function remember(entry) {
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: `${entry.question} — ${entry.answer} (${entry.about.split(":")[0]})` });
  button.addEventListener("click", () => {
    choose(entry.files);
    for (const [name, field] of Object.entries(FIELDS)) part(field).value = entry[name];
    part("beyond").checked = entry.beyond_even;
    present(entry);
  });
  const item = document.createElement("li");
  item.append(button);
  part("history").prepend(item);
  part("past").hidden = false;
}

async function take(kind) {
  const reply = await fetch(`/${kind}`, { method: "POST", body: JSON.stringify(current) });
  if (!reply.ok) return say(`This could not be made: ${await reply.text()}`);
  download(await reply.blob(), kind === "page" ? "answer.html" : "question.ipynb");
}

for (const button of document.querySelectorAll("[data-example]")) {
  button.addEventListener("click", async () => {
    const picture = await (await fetch(`/example/${button.dataset.example}`)).blob();
    choose([new File([picture], button.dataset.name, { type: picture.type })]);
    part("question").value = button.dataset.question;
    if (!part("ask").disabled) ask();
  });
}
for (const button of document.querySelectorAll("[data-kind]")) button.addEventListener("click", () => take(button.dataset.kind));
form.addEventListener("submit", (event) => (event.preventDefault(), ask()));
part("stop").addEventListener("click", () => waiting.forEach((stop) => stop.abort()));
part("picture").addEventListener("change", () => part("picture").files.length && choose(part("picture").files));
document.addEventListener("paste", (event) => event.clipboardData.files.length && choose(event.clipboardData.files));
for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  document.addEventListener(name, (event) => { // beside the box a browser would leave the page
    event.preventDefault();
    part("drop").classList.toggle("over", over);
    if (name === "drop") choose(event.dataTransfer.files);
  });
}
