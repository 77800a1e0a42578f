
// The page itself: what is picked, asked and shown. Nothing of it is stored anywhere else.

const part = (id) => document.getElementById(id);
const form = part("form");
const largest = Number(form.dataset.largest);
const most = Number(form.dataset.most);
let picked = []; // the pictures, as files
let waiting = null; // ends the question that is being answered
let current = null; // what is shown
let stopShowing = () => {};

function say(text) {
  part("status").textContent = text;
}

function choose(files) {
  const pictures = [...files].filter((file) => file.type.startsWith("image/"));
  const heavy = pictures.find((file) => file.size > largest);
  if (!pictures.length) return say("This is not a picture.");
  if (pictures.length > most) return say(`These are too many pictures: expected at most ${most}, got ${pictures.length}.`);
  if (heavy) return say(`${heavy.name} is too large: expected at most ${largest / 2 ** 20} MB, got ${(heavy.size / 2 ** 20).toFixed(1)} MB.`);
  picked = pictures;
  const shown = pictures.map((file) => Object.assign(document.createElement("img"), { src: URL.createObjectURL(file), alt: file.name }));
  part("preview").replaceChildren(...shown);
  say(`${pictures.map((file) => file.name).join(", ")} ${pictures.length > 1 ? "are" : "is"} here. Now ask.`);
}

async function ask() {
  if (!picked.length || !part("question").value.trim()) return say(`The ${picked.length ? "question" : "picture"} is missing.`);
  const said = {
    model: part("model").value,
    adapter: part("adapter").value,
    device: part("device").value,
    question: part("question").value,
    head_fusion: part("heads").value,
    residual: part("residual").value,
    longest: part("longest").value,
    pictures: picked.map((file) => [file.name, file.size]),
  };
  waiting = new AbortController();
  part("ask").disabled = true;
  part("stop").disabled = false;
  say("Sending …");
  try {
    const reply = await fetch("/ask", { method: "POST", body: new Blob(picked), headers: { "X-Ask": encodeURIComponent(JSON.stringify(said)) }, signal: waiting.signal });
    if (!reply.ok) throw new Error((await reply.text()) || reply.statusText);
    await hearAnswer(reply, said);
  } catch (problem) {
    say(problem.name === "AbortError" ? "Stopped." : `This could not be answered: ${problem.message}`);
  } finally {
    part("ask").disabled = false;
    part("stop").disabled = true;
  }
}

/** Read the reply line by line: where the work is, and at last the answer. */
async function hearAnswer(reply, said) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (let { done, value } = await reader.read(); ; { done, value } = await reader.read()) {
    const lines = (text + (value ?? "")).split("\n");
    text = done ? "" : lines.pop();
    for (const line of lines.filter(Boolean)) hearLine(JSON.parse(line), said);
    if (done) return;
  }
}

function hearLine(line, said) {
  if (line.problem) return say(line.problem);
  if (!line.state) return say(line.before ? `Waiting: ${line.before} before you.` : `The model: ${line.said} …`);
  const entry = { ...line, ...said, names: said.pictures.map(([name]) => name) };
  remember(entry);
  present(entry);
}

function present(entry) {
  stopShowing();
  current = entry;
  const place = document.createElement("div");
  part("shown").replaceChildren(place);
  stopShowing = explorer.render({ model: model(structuredClone(entry.state), entry.buffers), el: place });
  part("about").textContent = entry.about;
  part("take").hidden = false;
  say(`${entry.question} — The model says: ${entry.answer}`);
  part("status").scrollIntoView(); // the answer may be below what is seen
}

function remember(entry) {
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: `${entry.question} — ${entry.answer} (${entry.about.split(":")[0]})` });
  button.addEventListener("click", () => {
    for (const name of ["model", "adapter", "device", "question"]) part(name).value = entry[name];
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
    choose([new File([picture], `example${Number(button.dataset.example) + 1}.${picture.type.split("/")[1]}`, { type: picture.type })]);
    part("question").value = button.dataset.question;
    if (!waiting || part("stop").disabled) ask();
  });
}
for (const button of document.querySelectorAll("[data-kind]")) button.addEventListener("click", () => take(button.dataset.kind));
form.addEventListener("submit", (event) => (event.preventDefault(), ask()));
part("stop").addEventListener("click", () => waiting?.abort());
part("picture").addEventListener("change", () => part("picture").files.length && choose(part("picture").files));
document.addEventListener("paste", (event) => event.clipboardData.files.length && choose(event.clipboardData.files));
for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  document.addEventListener(name, (event) => { // beside the box a browser would leave the page
    event.preventDefault();
    part("drop").classList.toggle("over", over);
    if (name === "drop") choose(event.dataTransfer.files);
  });
}
