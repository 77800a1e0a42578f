// What is written in an element with less than 4.5:1 of contrast to what lies under it, by WCAG 2.2;
// large text may have 3:1. Unlike axe-core's, disabled controls count.
(root) => {
  const context = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
  const read = (colour) => { // red, green, blue and opacity of what CSS computed
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    const [red, green, blue, alpha] = context.getImageData(0, 0, 1, 1).data;
    return [red, green, blue, alpha / 255];
  };
  const over = ([...top], share, under) => under.map((value, i) => top[i] * share + value * (1 - share));
  const luminance = (colour) => {
    const linear = colour.map((value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  /** What is under the text of the last element, and the text itself, each as red, green, blue. */
  const layers = ([element, ...inner], under) => {
    const { backgroundColor, color, opacity } = getComputedStyle(element);
    const back = read(backgroundColor), front = read(color);
    const own = over(back, back[3], under);
    const pair = inner.length ? layers(inner, own) : [own, over(front, front[3], own)];
    return pair.map((one) => over(one, Number(opacity), under));
  };
  const path = (element) => element.parentElement ? [...path(element.parentElement), element] : [element];
  const paper = matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18] : [255, 255, 255];
  const written = [root, ...root.querySelectorAll("*")].filter((element) => element.matches("select, input:not([type=range], [type=checkbox])")
    || [...element.childNodes].some((child) => child.nodeType === Node.TEXT_NODE && child.data.trim()));
  return written.flatMap((element) => {
    if (element.closest("script, style, svg, math, .unseen") || !element.checkVisibility({ opacityProperty: true, visibilityProperty: true })) return [];
    const [dark, light] = layers(path(element), paper).map(luminance).sort((a, b) => a - b);
    const ratio = (light + 0.05) / (dark + 0.05);
    const { fontSize, fontWeight } = getComputedStyle(element);
    const large = parseFloat(fontSize) >= (Number(fontWeight) >= 700 ? 18.66 : 24);
    return ratio < (large ? 3 : 4.5) ? [`${ratio.toFixed(2)}: ${element.tagName} ${element.className} ${element.textContent.trim().slice(0, 40)}`] : [];
  });
}
