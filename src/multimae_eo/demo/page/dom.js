// Small helpers for the page's elements.

export const $ = (id) => document.getElementById(id);

/** An element with attributes, listeners (onclick: …) and children. */
export function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key in node && key !== "list") node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children.filter((c) => c !== null && c !== undefined));
  return node;
}

/** A number with three digits and a typographic minus. */
export function formatNumber(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  let text;
  if (size < 1e-3 || size >= 1e6) text = value.toExponential(1);
  else if (size >= 100) text = value.toFixed(0);
  else if (size >= 10) text = value.toFixed(1);
  else text = value.toFixed(size >= 1 ? 2 : 3);
  return text.replace("-", "−");
}

export const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;

let alertTimer = 0;
/** Shows a problem in one line above the panel. */
export function alertUser(message) {
  const box = $("alert");
  box.textContent = message;
  box.hidden = !message;
  clearTimeout(alertTimer);
  if (message) alertTimer = setTimeout(() => (box.hidden = true), 8000);
}

/** A colour bar as a canvas row: low, gradient, high. */
export function colourBar({ colours, low, high }) {
  const canvas = el("canvas", { width: 128, height: 1 });
  canvas.setAttribute("aria-hidden", "true");
  const context = canvas.getContext("2d");
  if (colours.length === 2) {
    colours.forEach((c, i) => { context.fillStyle = c; context.fillRect(64 * i, 0, 64, 1); });
  } else {
    const gradient = context.createLinearGradient(0, 0, 128, 0);
    colours.forEach((c, i) => gradient.addColorStop(i / (colours.length - 1), c));
    context.fillStyle = gradient;
    context.fillRect(0, 0, 128, 1);
  }
  return el("div", { className: "bar" }, el("span", {}, low), canvas, el("span", {}, high));
}

export function classList(classes) {
  return el("div", { className: "classes" }, ...classes.map((c) => {
    const swatch = el("i", { className: "swatch" });
    swatch.style.background = c.color;
    return el("span", {}, swatch, c.name);
  }));
}

/** The palette of classes: their class map's own colours, or colour-blind safe ones. */
export const palette = () => ($("safe").checked ? "safe" : "official");

/** A location's first modality; its classes follow the palette. */
export function locationPicture(location, attributes) {
  const address = () => `/api/locations/${location}/picture.png?palette=${palette()}`;
  const image = el("img", { ...attributes, src: address() });
  image.dataset.location = location;
  return image;
}

/** The legend of a layer. */
export function legendOf({ description, classes, ramp, low, high, unit }) {
  if (classes.length) return [classList(classes)];
  if (ramp.length) return [colourBar({ colours: ramp, low: formatNumber(low), high: `${formatNumber(high)} ${unit}` })];
  return [description];
}

/** One button of a group is pressed. */
export function press(buttons, chosen) {
  for (const button of buttons) button.setAttribute("aria-pressed", String(button === chosen));
}
