// Elements, and numbers as they are written on them.

export function make(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export function crosshair([x, y]) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const said = `click at ${percent(x)} from the left, ${percent(y)} from the top`;
  const attributes = { class: "rx-cross", width: 1, height: 1, role: "img", "aria-label": said };
  for (const [name, value] of Object.entries(attributes)) svg.setAttribute(name, value);
  const hair = (colour, width) => `<g fill="none" stroke="${colour}" stroke-width="${width}"><circle r="11"/><path d="M5 0H18M-5 0H-18M0 5V18M0 -5V-18"/></g>`;
  svg.innerHTML = `${hair("#1e3a5f", 4)}${hair("#00c800", 2)}<circle r="4" fill="#1e3a5f"/>`;
  svg.style.cssText = `left:${x * 100}%;top:${y * 100}%`;
  return svg;
}

/** Where a box of shares of a picture lies on it, as CSS. */
export function placing([left, top, right, bottom]) {
  return `left:${left * 100}%;top:${top * 100}%;width:${(right - left) * 100}%;height:${(bottom - top) * 100}%`;
}

/** Tell the other explorers of the same group, if there is one, what is pointed at here. */
export function tell(view, what) {
  const group = view.get("group");
  if (group && !view.quiet) window.dispatchEvent(new CustomEvent("rx-pointed", { detail: { group, view, ...what } }));
}

export function percent(share) {
  if (share > 1e-8 && share < 0.0005) return `${Number((100 * share).toPrecision(1))} %`; // not 0.0
  return `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
}
