// Whether the answer depends on the place where the map is highest: checked on request.

import { make, placing } from "./dom.js";

const SIGNS = { depends: ["✓", "rx-yes"], "does not depend": ["✗", "rx-no"], "can't tell": ["?", "rx-open"] };
const IDLE = "Does the whole answer depend on the place where this map is highest? The model is asked again without it.";
const NEEDS = "Checking whether the answer depends on the highest place needs the notebook with its kernel running.";
const FOUND = "The number is the probability that the whole answer depends on what the frame shows, at the peak of the blurred map.";
const ASKED = "Waiting for the kernel …";

/** The button and what is known, below the first picture, if the answer can be checked. */
export function checker(view) {
  const { get, parts, stages } = view;
  if (!get("checks")) return;
  parts.check = make("button", { type: "button", class: "rx-save" }, "Check this place");
  parts.check.disabled = true; // until there is a kernel
  parts.check.addEventListener("click", () => begin(view));
  parts.trust = make("p", { class: "rx-trust", role: "status" });
  parts.place = make("div", {});
  stages[0].frame.append(parts.place);
  stages[0].figure.append(make("div", { class: "rx-checks" }, parts.check, parts.trust));
}

/** There is a kernel that can check. */
export function enable(view) {
  if (!view.parts.check) return;
  view.parts.check.disabled = false;
  drawTrust(view);
}

function begin(view) {
  if (view.parts.check.getAttribute("aria-disabled") === "true") return; // so it keeps the focus
  view.waiting = true;
  drawTrust(view);
  view.model.send({ check: true });
}

/** The kernel has something to say: how far it is, or what it found. */
export function hearTrust(view) {
  view.waiting = false;
  drawTrust(view);
}

/** What is known about the map that is shown; what was found about another is not. */
export function drawTrust(view) {
  const { get, parts, pointed, waiting } = view;
  if (!parts.check) return;
  const { said, of = {}, problem, verdict, sentence, box } = get("trust");
  const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
  const running = !parts.check.disabled && (waiting || Boolean(said));
  const current = !running && Object.entries(of).every(([name, value]) => same(get(name), value));
  const other = pointed && !same(pointed, get("selected")); // for a moment
  const found = current && verdict;
  parts.check.setAttribute("aria-disabled", running);
  parts.place.className = found ? `rx-place ${SIGNS[verdict][1]}` : "";
  parts.place.style.cssText = found && !other ? placing(box) : "display:none";
  parts.trust.style.visibility = found && other ? "hidden" : "";
  const idle = parts.check.disabled ? NEEDS : IDLE;
  announce(view, running ? said || ASKED : found ? `${SIGNS[verdict][0]} ${sentence}` : (current && problem) || idle, found);
}

/** Only what is new, or a screen reader would say it again. */
function announce({ parts }, text, verdict) {
  if (parts.trust.dataset.text === text) return;
  parts.trust.dataset.text = text;
  parts.trust.replaceChildren(...(verdict ? [make("strong", { class: SIGNS[verdict][1] }, text), ` ${FOUND}`] : [text]));
}
