// Draws where each word looked, in the browser, from maps that were sent once: pointing needs no
// kernel. `widget.py` says what the model's traits hold.

const BARS = 24; // words that have a bar at the same time
const FLAT = 2e-5; // contrast that may be mere rounding, as in overlay.py
const FINE = 256; // pixels of a map's longer side; the browser scales it to the picture

export default { render };

function render({ model, el }) {
  const get = (name) => model.get(name);
  const set = (name, value) => (model.set(name, value), model.save_changes());
  const pictures = get("pictures").map(placed);
  const words = get("words");
  const prompt = get("prompt");
  const answer = words.map((_, index) => index).slice(prompt);
  const whole = prompt ? "whole answer" : `all ${get("title")}`;
  const lookups = new Map();
  let panels = decode();
  let pointed = null; // the word under the pointer, as a list of one
  let patch = null; // or the patch under it: {panel, row, column}
  let timer = null;

  // ---- What is shown

  const urls = pictures.map((p) => URL.createObjectURL(new Blob([bytesOf(p.data)], { type: p.type })));
  const parts = {};
  const root = make("div", { class: "rx", "data-lm-suppress-shortcuts": "true" });
  const stages = panels.map(stage);
  const bars = words.map(() => make("i", { class: "rx-bar" }));
  let barred = []; // the words that have one now
  const chips = words.map(chip);
  root.append(
    make("div", { class: panels.length > 1 ? "rx-main rx-wide" : "rx-main" },
      make("div", { class: "rx-stages" }, ...stages.map((s) => s.figure)),
      make("div", { class: "rx-side" }, ...sides())),
    ...(pictures.length > 1 ? film() : []),
    (parts.readout = make("p", { class: "rx-readout", role: "status" })),
    controls(),
    (parts.status = make("p", { class: "rx-status", role: "status" })),
  );
  el.replaceChildren(root);

  const redraw = (...names) => names.forEach((name) => model.on(`change:${name}`, refresh));
  redraw("selected", "combine", "colours", "power", "blur", "opacity", "hidden", "picture", "together");
  model.on("change:codes", renew);
  model.on("change:busy", showBusy);
  model.on("change:status", showBusy);
  refresh();
  showBusy();
  model.send({ ask: "kernel" });

  return () => {
    clearInterval(timer);
    urls.forEach((url) => URL.revokeObjectURL(url));
    model.off(null, refresh);
    model.off(null, renew);
    model.off(null, showBusy);
  };

  // ---- Maps

  /** Where a picture's cells begin in a row of relevance, and where they lie on the picture. */
  function placed(picture, index, all) {
    const cells = (p) => p.grid[0] * p.grid[1];
    const start = all.slice(0, index).reduce((sum, p) => sum + cells(p), 0);
    const scale = Math.max(1, Math.min(8, Math.floor(FINE / Math.max(...picture.grid))));
    return { ...picture, start, end: start + cells(picture), scale };
  }

  function decode() {
    const codes = new Uint16Array(bytesOf(get("codes")).buffer);
    const width = pictures.at(-1).end + words.length;
    let start = 0;
    return get("panels").map((panel) => ({
      ...panel,
      sheets: panel.sheets.map((sheet) => {
        const rows = sheet.peaks.map((_, row) => codes.subarray(start + row * width, start + (row + 1) * width));
        start += rows.length * width;
        return { ...sheet, rows };
      }),
    }));
  }

  /** The words whose maps are shown: the one under the pointer, else the pinned, else the answer's. */
  function chosen() {
    if (pointed) return pointed;
    return get("selected").length ? get("selected") : answer;
  }

  /** One row of relevance, over the cells of all pictures and then over the words. */
  function relevance(sheet, which) {
    if (sheet.kept?.which === which) return sheet.kept.row;
    const members = sheet.rows.length === 1 ? [0] : which;
    const result = new Float32Array(sheet.rows[0].length);
    const greatest = get("combine") === "max";
    const share = greatest ? 1 : 1 / members.length;
    for (const word of members) {
      const row = sheet.rows[word];
      const unit = (sheet.peaks[word] / 65535) * share;
      for (let i = 0; i < row.length; i++) {
        const value = row[i] * unit;
        result[i] = greatest ? Math.max(result[i], value) : result[i] + value;
      }
    }
    sheet.kept = { which, row: result };
    return result;
  }

  /** Weights that resample one axis of cells into pixels, under a Gaussian around each pixel. */
  function weights(cells, scale, sigma) {
    const key = `${cells} ${scale} ${sigma}`;
    if (!lookups.has(key)) lookups.set(key, gaussian(cells, scale, sigma));
    return lookups.get(key);
  }

  function lookup(name, power) {
    const key = `${name} ${power}`;
    if (!lookups.has(key)) {
      const palette = new Uint32Array(bytesOf(get("palettes")[name]).buffer);
      lookups.set(key, Uint32Array.from({ length: 1024 }, (_, i) => palette[Math.round(255 * (i / 1023) ** power)]));
    }
    return lookups.get(key);
  }

  function paint(canvas, row, picture, sheet, scale, sigma) {
    const [rows, columns] = picture.grid;
    const grid = row.subarray(picture.start, picture.end);
    const down = weights(rows, scale, sigma);
    const across = weights(columns, scale, sigma);
    const fine = resample(grid, columns, down, across);
    const [low, high] = get("together") ? extent(row.subarray(0, pictures.at(-1).end)) : seenExtent(fine, picture, scale);
    const colours = lookup(sheet.colours || get("colours"), get("power"));
    const context = canvas.getContext("2d");
    if (canvas.width !== columns * scale) canvas.width = columns * scale;
    if (canvas.height !== rows * scale) canvas.height = rows * scale;
    const image = context.createImageData(canvas.width, canvas.height);
    const pixels = new Uint32Array(image.data.buffer);
    const unit = high - low > FLAT * high ? 1023 / (high - low) : 0;
    if (high <= 0) return context.putImageData(image, 0, 0); // nothing to show: the bare picture
    for (let i = 0; i < fine.length; i++) {
      pixels[i] = colours[Math.max(0, Math.min(1023, Math.round((fine[i] - low) * unit)))];
    }
    context.putImageData(image, 0, 0);
  }

  /** Lowest and highest value on the part of the map that lies on the picture. */
  function seenExtent(fine, picture, scale) {
    const [left, top, right, bottom] = picture.box;
    const [height, width] = picture.grid.map((n) => n * scale);
    const inside = (from, to, n) => [Math.max(0, Math.floor((-from / (to - from)) * n)), Math.min(n, Math.ceil(((1 - from) / (to - from)) * n))];
    const [x0, x1] = inside(left, right, width);
    const [y0, y1] = inside(top, bottom, height);
    let low = Infinity, high = -Infinity;
    for (let y = y0; y < y1; y++) {
      const [a, b] = extent(fine.subarray(y * width + x0, y * width + x1));
      low = Math.min(low, a);
      high = Math.max(high, b);
    }
    return [low, high];
  }

  // ---- Drawing

  /** What is shown of the pictures, and where: everything that pointing at a word does not change. */
  function arrange() {
    const now = get("picture");
    const { box: [left, top, right, bottom], width, height } = pictures[now];
    const placing = `left:${left * 100}%;top:${top * 100}%;width:${(right - left) * 100}%;height:${(bottom - top) * 100}%`;
    stages.forEach((stage, p) => {
      if (stage.image.src !== urls[now]) stage.image.src = urls[now];
      stage.frame.style.aspectRatio = `${width} / ${height}`;
      panels[p].sheets.forEach((sheet, s) => {
        const display = get("hidden").includes(sheet.name) ? "display:none" : "";
        const look = `opacity:${get("opacity")};image-rendering:${get("blur") ? "auto" : "pixelated"}`;
        if (sheet.point) stage.layers[s].style.display = display && "none";
        else stage.layers[s].style.cssText = `${placing};${look};${display}`;
      });
    });
  }

  function draw() {
    const which = chosen();
    const picture = pictures[get("picture")];
    stages.forEach((stage, p) => {
      panels[p].sheets.forEach((sheet, s) => {
        if (sheet.point || get("hidden").includes(sheet.name)) return;
        paint(stage.layers[s], relevance(sheet, which), picture, sheet, picture.scale, get("blur"));
      });
      if (patch?.panel !== p) stage.cursor.style.display = "none";
    });
    if (parts.strip) drawFilm(which);
    if (patch) {
      drawCursor();
      shadeByPatch();
    } else {
      shadeByWords(which);
    }
  }

  function refresh() {
    panels.forEach((panel) => panel.sheets.forEach((sheet) => (sheet.kept = null)));
    const pinned = new Set(get("selected"));
    chips.forEach((chip, index) => chip.setAttribute("aria-pressed", pinned.has(index)));
    parts.clear.disabled = pinned.size === 0;
    if (parts.matrix) drawMatrix();
    for (const update of parts.updates) update();
    arrange();
    draw();
  }

  function renew() {
    panels = decode();
    chips.forEach((chip, index) => chip.setAttribute("aria-label", describe(index)));
    refresh();
  }

  function showBusy() {
    root.setAttribute("aria-busy", get("busy"));
    parts.status.textContent = get("status");
  }

  /** The sheet that tells words apart: the first one shown that has a row for each word. */
  function lead(panel) {
    const able = panel.sheets.filter((sheet) => sheet.rows.length === words.length);
    return able.find((sheet) => !get("hidden").includes(sheet.name)) ?? able[0];
  }

  function shadeByWords(which) {
    const sheet = lead(panels[0]);
    if (!sheet) return;
    const row = relevance(sheet, which);
    shade(row.subarray(pictures.at(-1).end));
    parts.readout.textContent = `${which === answer ? whole : which.map(quote).join(" + ")}: ${told(row)}`;
  }

  function shadeByPatch() {
    const sheet = lead(panels[patch.panel]);
    if (!sheet) return;
    const { start, grid } = pictures[get("picture")];
    const cell = start + patch.row * grid[1] + patch.column;
    const drawn = Float32Array.from(sheet.rows, (row, word) => (row[cell] * sheet.peaks[word]) / 65535);
    shade(drawn);
    const most = topOf(drawn, 3).map((word) => `${quote(word)} ${percent(drawn[word])}`);
    parts.readout.textContent = `patch in row ${patch.row + 1} of ${grid[0]}, column ${patch.column + 1} of ${grid[1]}, drawn on by ${most.join(", ") || "no word"}`;
  }

  /** The bars of the words with the highest values, in proportion to the highest. */
  function shade(values) {
    const best = topOf(values, BARS);
    for (const index of barred) if (!best.includes(index)) bars[index].style.transform = "scaleX(0)";
    for (const index of best) bars[index].style.transform = `scaleX(${(values[index] / values[best[0]]).toFixed(3)})`;
    barred = best;
  }

  /** A row of relevance in words, for those who cannot see the map. */
  function told(row) {
    const end = pictures.at(-1).end;
    const cells = row.subarray(0, end);
    const total = cells.reduce((sum, value) => sum + value, 0);
    if (!(total > 0)) return "nothing from the picture, which comes later";
    const best = topOf(cells, 1)[0];
    const where = pictures.findIndex((picture) => best < picture.end);
    const { grid, start, label } = pictures[where];
    const place = `row ${Math.floor((best - start) / grid[1]) + 1} of ${grid[0]}, column ${((best - start) % grid[1]) + 1} of ${grid[1]}`;
    const drawn = topOf(row.subarray(end), 2).map((word) => `${percent(row[end + word])} from ${quote(word)}`);
    return [`${percent(total)} from the picture${pictures.length > 1 ? "s" : ""}, most at ${pictures.length > 1 ? `${label}, ` : ""}${place}`, ...drawn].join("; ");
  }

  function describe(word) {
    const sheet = lead(panels[0]);
    const kind = prompt ? (word < prompt ? "word of the prompt" : "word of the answer") : "";
    const said = sheet ? told(relevance(sheet, [word])) : "";
    return [quote(word), kind, said].filter(Boolean).join(", ");
  }

  function quote(word) {
    return `“${words[word]}”`;
  }

  // ---- Words

  function chip(text, index) {
    const shown = text.trim() || text.replaceAll("\n", "⏎").replaceAll(" ", "␣") || "∅";
    const button = make("button", { type: "button", class: "rx-chip", "aria-pressed": "false", tabindex: index === prompt ? "0" : "-1", "data-word": index }, shown, bars[index]);
    button.setAttribute("aria-label", describe(index));
    return button;
  }

  function sides() {
    const groups = prompt ? [["prompt", chips.slice(0, prompt)], ["answer", chips.slice(prompt)]] : [[get("title"), chips]];
    const sections = groups.map(([name, some]) => {
      const list = make("div", { class: "rx-chips", role: "toolbar", "aria-label": `${name}: arrow keys move, Enter pins, Escape unpins all` }, ...some);
      list.addEventListener("pointerover", (event) => point(event.target.dataset.word));
      list.addEventListener("pointerleave", () => point());
      list.addEventListener("focusin", (event) => point(event.target.dataset.word));
      list.addEventListener("focusout", () => point());
      list.addEventListener("click", (event) => {
        pin(event.target.dataset.word);
        if (event.pointerType === "touch") point(); // the finger is gone; only the focus stayed
      });
      list.addEventListener("keydown", walk);
      return make("section", {}, make("h4", {}, name), list);
    });
    // Maps with scales of their own are not shares of one whole; a matrix can show nothing else.
    return words.length > 1 && pictures.length > 1 && get("together") ? [...sections, matrix()] : sections;
  }

  function point(word) {
    pointed = word === undefined ? null : [Number(word)];
    if (pointed) patch = null;
    draw();
  }

  function pin(word) {
    if (word === undefined) return;
    const index = Number(word);
    const pinned = get("selected");
    set("selected", pinned.includes(index) ? pinned.filter((other) => other !== index) : [...pinned, index].sort((a, b) => a - b));
  }

  function walk(event) {
    const at = Number(event.target.dataset.word);
    const steps = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: words.length - 1 };
    if (event.key === "Escape") return set("selected", []);
    if (!(event.key in steps)) return;
    event.preventDefault();
    const next = chips[Math.max(0, Math.min(words.length - 1, steps[event.key]))];
    chips.forEach((chip) => (chip.tabIndex = chip === next ? 0 : -1));
    next.focus();
  }

  // ---- Pictures

  function stage(panel, index) {
    const image = make("img", { alt: "", draggable: "false" });
    const layers = panel.sheets.map((sheet) => (sheet.point ? crosshair(sheet.point) : make("canvas", { "aria-hidden": "true" })));
    const cursor = make("div", { class: "rx-cursor" });
    const frame = make("div", { class: "rx-picture", tabindex: "0", role: "application", "aria-label": `${panel.name || "picture"}: arrow keys move over its patches and say which words drew on them`}, image, ...layers, cursor);
    frame.addEventListener("pointermove", (event) => touch(index, frame, event));
    frame.addEventListener("pointerdown", (event) => touch(index, frame, event));
    frame.addEventListener("pointerleave", (event) => event.pointerType === "touch" || leave());
    frame.addEventListener("blur", leave);
    frame.addEventListener("keydown", (event) => step(index, event));
    const caption = panel.name ? [make("figcaption", {}, panel.name)] : [];
    return { figure: make("figure", {}, ...caption, frame), frame, image, layers, cursor };
  }

  function touch(panel, frame, event) {
    const bounds = frame.getBoundingClientRect();
    const { box, grid } = pictures[get("picture")];
    const x = (event.clientX - bounds.left) / bounds.width;
    const y = (event.clientY - bounds.top) / bounds.height;
    visit(panel, Math.floor(((y - box[1]) / (box[3] - box[1])) * grid[0]), Math.floor(((x - box[0]) / (box[2] - box[0])) * grid[1]));
  }

  function step(panel, event) {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (event.key === "Escape") return leave();
    if (!(event.key in moves)) return;
    event.preventDefault();
    const { grid } = pictures[get("picture")];
    const from = patch ?? { row: grid[0] >> 1, column: grid[1] >> 1 };
    const [down, right] = patch ? moves[event.key] : [0, 0];
    visit(panel, Math.max(0, Math.min(grid[0] - 1, from.row + down)), Math.max(0, Math.min(grid[1] - 1, from.column + right)));
  }

  function visit(panel, row, column) {
    const { grid } = pictures[get("picture")];
    if (row < 0 || column < 0 || row >= grid[0] || column >= grid[1]) return leave();
    if (patch?.panel === panel && patch.row === row && patch.column === column) return;
    patch = { panel, row, column };
    drawCursor();
    shadeByPatch();
  }

  function leave() {
    if (!patch) return;
    stages[patch.panel].cursor.style.display = "none";
    patch = null;
    shadeByWords(chosen());
  }

  function drawCursor() {
    const { box, grid } = pictures[get("picture")];
    const [width, height] = [(box[2] - box[0]) / grid[1], (box[3] - box[1]) / grid[0]];
    stages.forEach((stage, index) => {
      stage.cursor.style.cssText = index === patch.panel
        ? `display:block;left:${(box[0] + patch.column * width) * 100}%;top:${(box[1] + patch.row * height) * 100}%;width:${width * 100}%;height:${height * 100}%`
        : "display:none";
    });
  }

  // ---- Several pictures: time

  function film() {
    const last = pictures.length - 1;
    parts.time = make("input", { type: "range", min: 0, max: last, step: 1, "aria-label": "time" });
    parts.time.addEventListener("input", () => set("picture", Number(parts.time.value)));
    parts.play = make("button", { type: "button", class: "rx-play", "aria-label": "play" }, "▶");
    parts.play.addEventListener("click", () => play(timer === null));
    parts.when = make("output", {});
    parts.strip = pictures.map((picture, index) => {
      const canvas = make("canvas", { "aria-hidden": "true" });
      const thumb = make("button", { type: "button", class: "rx-thumb", title: picture.label },
        make("span", { class: "rx-still", style: `aspect-ratio:${picture.width}/${picture.height}` }, make("img", { src: urls[index], alt: "" }), canvas),
        make("span", { class: "rx-share" }));
      thumb.canvas = canvas;
      thumb.addEventListener("click", () => set("picture", index));
      return thumb;
    });
    const rows = [make("div", { class: "rx-time" }, parts.play, parts.time, parts.when), make("div", { class: "rx-strip" }, ...parts.strip)];
    return rows;
  }

  function play(on) {
    clearInterval(timer);
    timer = on ? setInterval(() => set("picture", (get("picture") + 1) % pictures.length), 300) : null;
    parts.play.textContent = on ? "❚❚" : "▶";
    parts.play.setAttribute("aria-label", on ? "pause" : "play");
  }

  function drawFilm(which) {
    const sheet = lead(panels[0]);
    const now = get("picture");
    const row = sheet && relevance(sheet, which);
    const shares = row ? sharesOf(row) : pictures.map(() => 0);
    const [, high] = extent(shares);
    parts.strip.forEach((thumb, index) => {
      thumb.setAttribute("aria-current", index === now);
      thumb.setAttribute("aria-label", `${pictures[index].label}: ${percent(shares[index])}`);
      thumb.style.setProperty("--share", `${high > 0 ? (shares[index] / high) * 100 : 0}%`);
      const [left, top, right, bottom] = pictures[index].box;
      thumb.canvas.style.cssText = `left:${left * 100}%;top:${top * 100}%;width:${(right - left) * 100}%;height:${(bottom - top) * 100}%;opacity:${get("opacity")}`;
      if (row) paint(thumb.canvas, row, pictures[index], sheet, 1, 0);
    });
    parts.time.value = now;
    parts.when.textContent = `${pictures[now].label}: ${percent(shares[now])}`;
    parts.marker && parts.marker.setAttribute("style", which.length === 1 ? `top:${(which[0] / words.length) * 100}%;height:${100 / words.length}%` : "display:none");
  }

  function sharesOf(row) {
    return Float32Array.from(pictures, (p) => row.subarray(p.start, p.end).reduce((sum, value) => sum + value, 0));
  }

  /** Which picture each word drew on: a row for each word; pointing at a row chooses its word. */
  function matrix() {
    parts.matrix = make("canvas", { role: "img", "aria-label": `${get("title") || "words"} by picture: the numbers are those of the film strip` });
    parts.marker = make("div", { class: "rx-marker" });
    const frame = make("div", { class: "rx-matrix", style: `aspect-ratio:${pictures.length}/${words.length}` }, parts.matrix, parts.marker);
    const at = (event) => {
      const bounds = frame.getBoundingClientRect();
      const place = (position, length, n) => Math.max(0, Math.min(n - 1, Math.floor((position / length) * n)));
      return [place(event.clientY - bounds.top, bounds.height, words.length), place(event.clientX - bounds.left, bounds.width, pictures.length)];
    };
    frame.addEventListener("pointermove", (event) => pointed?.[0] === at(event)[0] || point(at(event)[0]));
    frame.addEventListener("pointerleave", () => point());
    frame.addEventListener("click", (event) => {
      set("picture", at(event)[1]);
      pin(at(event)[0]);
    });
    drawMatrix();
    return make("figure", { class: "rx-when" }, make("figcaption", {}, "what each drew on: one row each, pictures from left to right"), frame);
  }

  function drawMatrix() {
    const sheet = lead(panels[0]);
    if (!sheet) return;
    const [width, height] = [pictures.length, words.length];
    Object.assign(parts.matrix, { width, height });
    const context = parts.matrix.getContext("2d");
    const image = context.createImageData(width, height);
    const colours = lookup(sheet.colours || get("colours"), 1);
    words.forEach((_, word) => {
      const shares = sharesOf(relevance(sheet, [word]));
      const [low, high] = extent(shares);
      shares.forEach((share, x) => {
        const index = high > low ? Math.round(((share - low) / (high - low)) * 1023) : 0;
        new Uint32Array(image.data.buffer)[word * width + x] = colours[index];
      });
    });
    context.putImageData(image, 0, 0);
  }

  // ---- Controls that need no kernel

  function controls() {
    parts.updates = [];
    const sheets = panels.flatMap((panel) => panel.sheets);
    const names = [...new Set(sheets.map((sheet) => sheet.name))];
    const fields = [
      choice("pinned words", "combine", ["mean", "max"]),
      slider("power", "power", 0.25, 4, 0.25),
      slider("blur, in patches", "blur", 0, 3, 0.25),
      slider("opacity", "opacity", 0, 1, 0.05),
    ];
    if (sheets.some((sheet) => !sheet.colours && !sheet.point)) fields.push(choice("colours", "colours", Object.keys(get("palettes"))));
    if (pictures.length > 1) fields.push(box("one scale for all pictures", () => get("together"), (on) => set("together", on)));
    if (names.length > 1) {
      for (const name of names) {
        fields.push(box(name, () => !get("hidden").includes(name), (on) => set("hidden", on ? get("hidden").filter((other) => other !== name) : [...get("hidden"), name])));
      }
    }
    parts.clear = make("button", { type: "button", class: "rx-clear" }, "unpin all");
    parts.clear.addEventListener("click", () => set("selected", []));
    return make("div", { class: "rx-controls", role: "group", "aria-label": "how the map is drawn" }, ...fields, parts.clear);
  }

  function choice(label, name, options) {
    const select = make("select", {}, ...options.map((option) => make("option", { value: option }, option)));
    select.addEventListener("change", () => set(name, select.value));
    parts.updates.push(() => (select.value = get(name)));
    return make("label", {}, `${label} `, select);
  }

  function slider(label, name, min, max, step) {
    const range = make("input", { type: "range", min, max, step });
    const value = make("output", {});
    range.addEventListener("input", () => model.set(name, Number(range.value)));
    range.addEventListener("change", () => model.save_changes());
    parts.updates.push(() => (value.textContent = range.value = get(name)));
    return make("label", {}, `${label} `, range, value);
  }

  function box(label, read, write) {
    const input = make("input", { type: "checkbox" });
    input.addEventListener("change", () => write(input.checked));
    parts.updates.push(() => (input.checked = read()));
    return make("label", {}, input, ` ${label}`);
  }
}

// ---- Without state

/** Bytes as a kernel sends them, or decoded from the base64 in which a page stores them. */
function bytesOf(value) {
  if (typeof value === "string") return Uint8Array.from(atob(value), (letter) => letter.charCodeAt(0));
  const view = ArrayBuffer.isView(value) ? value : new DataView(value);
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength).slice();
}

/** For each pixel, its first cell and the weights of the cells from there on; sigma in cells. */
function gaussian(cells, scale, sigma) {
  const samples = 8;
  return Array.from({ length: cells * scale }, (_, pixel) => {
    const centre = (pixel + 0.5) / scale;
    if (!sigma) return { first: Math.floor(centre), shares: [1] };
    const first = Math.max(0, Math.floor(centre - 4 * sigma));
    const last = Math.min(cells - 1, Math.floor(centre + 4 * sigma));
    const shares = [];
    for (let cell = first; cell <= last; cell++) {
      let share = 0;
      for (let s = 0; s < samples; s++) share += Math.exp(-(((cell + (s + 0.5) / samples - centre) / sigma) ** 2) / 2);
      shares.push(share);
    }
    const total = shares.reduce((sum, share) => sum + share, 0);
    return { first, shares: shares.map((share) => share / total) };
  });
}

/** A grid resampled to the pixels of `down` and `across`, one axis after the other. */
function resample(grid, columns, down, across) {
  const rows = grid.length / columns;
  const wide = new Float32Array(rows * across.length);
  for (let y = 0; y < rows; y++) {
    for (let x = 0; x < across.length; x++) {
      const { first, shares } = across[x];
      let sum = 0;
      for (let i = 0; i < shares.length; i++) sum += shares[i] * grid[y * columns + first + i];
      wide[y * across.length + x] = sum;
    }
  }
  const fine = new Float32Array(down.length * across.length);
  for (let y = 0; y < down.length; y++) {
    const { first, shares } = down[y];
    for (let i = 0; i < shares.length; i++) {
      const from = (first + i) * across.length;
      for (let x = 0; x < across.length; x++) fine[y * across.length + x] += shares[i] * wide[from + x];
    }
  }
  return fine;
}

function extent(values) {
  let low = Infinity, high = -Infinity;
  for (let i = 0; i < values.length; i++) {
    if (values[i] < low) low = values[i];
    if (values[i] > high) high = values[i];
  }
  return [low, high];
}

/** Positions of the highest values above zero, highest first. */
function topOf(values, count) {
  const best = [];
  for (let i = 0; i < values.length; i++) {
    if (!(values[i] > (best.length < count ? 0 : values[best[count - 1]]))) continue;
    let place = Math.min(best.length, count - 1);
    for (; place > 0 && values[best[place - 1]] < values[i]; place--) best[place] = best[place - 1];
    best[place] = i;
  }
  return best;
}

function percent(share) {
  return `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
}

function make(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function crosshair([x, y]) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  for (const [name, value] of [["class", "rx-cross"], ["width", 1], ["height", 1]]) svg.setAttribute(name, value);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `click at ${percent(x)} from the left, ${percent(y)} from the top`);
  const hair = (colour, width) => `<g fill="none" stroke="${colour}" stroke-width="${width}"><circle r="11"/><path d="M5 0H18M-5 0H-18M0 5V18M0 -5V-18"/></g>`;
  svg.innerHTML = `${hair("#1e3a5f", 4)}${hair("#00c800", 2)}<circle r="4" fill="#1e3a5f"/>`;
  svg.style.cssText = `left:${x * 100}%;top:${y * 100}%`;
  return svg;
}
