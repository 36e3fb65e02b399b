// The panel in which polygons are drawn: labels to download, and a map of the scene from them.

import { get, post, Superseded } from "./api.js";
import { $, alertUser, colourBar, el, formatNumber, palette, percent, press } from "./dom.js";
import { hectares, sceneLayers, sceneViewer } from "./map.js";
import { encode } from "./search.js";
import { crosshair } from "./viewer.js";

const MOST = { classes: 12, polygons: 256, points: 1500, ring: 512 };
const NEAR = 9; // pixels on the screen within which a point is the same
const state = {
  classes: [{ name: "class 1", colour: "#888888" }, { name: "class 2", colour: "#bbbbbb" }],
  polygons: [], // {label: index of its class, ring: [[x, y], …] in Web-Mercator metres}
  ring: [], cursor: null, chosen: 0, map: null, picture: "map", ready: false,
};
let viewer = null;
let kept = "";

// What was drawn survives a reload of the page, in this tab.
function keep(act) {
  try { return act(sessionStorage); } catch { return null; }
}

function restore() {
  try {
    const { classes, polygons } = JSON.parse(keep((s) => s.getItem(kept)));
    if (classes.length) Object.assign(state, { classes, polygons });
  } catch { /* nothing was kept */ }
}

const nameOf = (index) => state.classes[index].name.trim() || `class ${index + 1}`;
const request = () => state.polygons.map(({ label, ring }) => ({ label: nameOf(label), ring: ring.map((p) => p.map((v) => Math.round(v * 100) / 100)) }));

/** Anything was drawn, named or removed: the lists, the marks and the map follow. */
function changed() {
  keep((s) => s.setItem(kept, JSON.stringify({ classes: state.classes, polygons: state.polygons })));
  list();
  fit();
  viewer.draw();
}

async function colours() {
  try {
    const found = await post("/api/labels/colors", { names: state.classes.map((_, i) => nameOf(i)), palette: palette() }, "class colours");
    state.classes.forEach((c, i) => { c.colour = found[i] ?? c.colour; });
  } catch (error) {
    if (!(error instanceof Superseded)) alertUser(error.message);
    return;
  }
  paintSwatches();
  viewer.draw();
}

function paintSwatches() {
  for (const swatch of document.querySelectorAll("#label-classes .swatch")) swatch.style.background = state.classes[swatch.dataset.index].colour;
}

// Classes --------------------------------------------------------------------------------------

function classRow({ name }, index) {
  const radio = el("input", { type: "radio", name: "label-class", checked: index === state.chosen, onchange: () => choose(index) });
  radio.setAttribute("aria-label", `Draw ${nameOf(index)}`);
  const swatch = el("i", { className: "swatch" });
  swatch.dataset.index = index;
  const text = el("input", { type: "text", value: name, maxLength: 64, list: "label-names", oninput: (e) => rename(index, e.target.value) });
  text.setAttribute("aria-label", `Name of class ${index + 1}`);
  const remove = el("button", { className: "quiet small", disabled: state.classes.length < 2, onclick: () => removeClass(index) }, "×");
  remove.setAttribute("aria-label", `Remove ${nameOf(index)} and its polygons`);
  return el("div", { className: "class-row" }, radio, swatch, text, remove);
}

function choose(index) {
  state.chosen = index;
  choices();
  help();
  viewer.draw();
}

/** The class to draw, above the map and in the list. */
function choices() {
  $("label-chosen").replaceChildren(...state.classes.map((_, i) => el("option", { value: i, selected: i === state.chosen }, nameOf(i))));
  [...document.querySelectorAll("#label-classes input[type=radio]")].forEach((radio, i) => { radio.checked = i === state.chosen; });
}

function classes() {
  $("label-classes").replaceChildren(...state.classes.map(classRow));
  choices();
  $("label-add").disabled = state.classes.length >= MOST.classes;
  paintSwatches();
}

let typing = 0;
function rename(index, name) {
  state.classes[index].name = name;
  clearTimeout(typing);
  typing = setTimeout(() => { colours(); choices(); changed(); help(); }, 250);
}

function removeClass(index) {
  state.polygons = state.polygons.filter((p) => p.label !== index).map((p) => ({ ...p, label: p.label - (p.label > index) }));
  state.classes.splice(index, 1);
  state.chosen = Math.min(state.chosen, state.classes.length - 1);
  classes();
  colours();
  changed();
  help();
}

// Polygons -------------------------------------------------------------------------------------

/** Of a ring in Web-Mercator metres, on the sphere at its middle's latitude: a guide while drawing. */
function area(ring) {
  const middle = ring.reduce((s, p) => s + p[1], 0) / ring.length;
  const shrink = 1 / Math.cosh(middle / 6378137) ** 2;
  const twice = ring.reduce((s, [x, y], i) => {
    const [u, v] = ring[(i + 1) % ring.length];
    return s + x * v - u * y;
  }, 0);
  return (Math.abs(twice) / 2) * shrink;
}

function crosses([a, b], [c, d]) {
  const side = (p, q, r) => Math.sign((q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0]));
  return side(a, b, c) !== side(a, b, d) && side(c, d, a) !== side(c, d, b);
}

function simple(ring) {
  const edges = ring.map((p, i) => [p, ring[(i + 1) % ring.length]]);
  return edges.every((e, i) => edges.every((f, j) => j <= i + 1 || (i === 0 && j === edges.length - 1) || !crosses(e, f)));
}

function polygonRow({ label, ring }, index) {
  const choose = el("select", { onchange: (e) => { state.polygons[index].label = Number(e.target.value); changed(); } }, ...state.classes.map((_, i) => el("option", { value: i, selected: i === label }, nameOf(i))));
  choose.setAttribute("aria-label", `Class of polygon ${index + 1}`);
  const remove = el("button", { className: "quiet small", onclick: () => { state.polygons.splice(index, 1); changed(); } }, "×");
  remove.setAttribute("aria-label", `Delete polygon ${index + 1}`);
  return el("div", { className: "class-row" }, el("span", { className: "num" }, String(index + 1)), choose, el("span", { className: "num dim" }, hectares(area(ring) / 1e4)), remove);
}

function list() {
  const none = !state.polygons.length;
  $("label-polygons").replaceChildren(...(none ? [el("p", { className: "dim small" }, "None yet.")] : state.polygons.map(polygonRow)));
  $("label-save").disabled = none;
  $("label-polygons").dataset.count = state.polygons.length;
}

function help() {
  const name = nameOf(state.chosen);
  const points = state.ring.length;
  $("label-help").textContent = points
    ? `${name}: ${points} point${points > 1 ? "s" : ""}. ${points < 3 ? "Click the next corner." : "Click the first point, or Finish, to close it."}`
    : `Click the corners of a polygon of ${name}.`;
  $("label-finish").disabled = points < 3;
  $("label-undo").disabled = !points && !state.polygons.length;
}

function near([x, y], point) {
  return Math.hypot(x - point[0], y - point[1]) / viewer.step < NEAR;
}

function click(x, y) {
  const { ring } = state;
  const point = [x, y];
  if (ring.length > 2 && (near(point, ring[0]) || near(point, ring.at(-1)))) return finish();
  if (ring.length && near(point, ring.at(-1))) return;
  const points = state.polygons.reduce((s, p) => s + p.ring.length, ring.length);
  if (state.polygons.length >= MOST.polygons || points >= MOST.points || ring.length >= MOST.ring) return alertUser(`At most ${MOST.polygons} polygons and ${MOST.points} points: download these first.`);
  ring.push(point);
  help();
  viewer.draw();
}

function finish() {
  if (state.ring.length < 3) return;
  if (!simple(state.ring)) return alertUser("The outline crosses itself: undo points until it does not.");
  state.polygons.push({ label: state.chosen, ring: state.ring });
  state.ring = [];
  help();
  changed();
  $("label-status").textContent = `Polygon ${state.polygons.length}, ${nameOf(state.chosen)}, was added.`;
}

/** Takes back the last point, else the last polygon. */
function undo() {
  if (state.ring.length) state.ring.pop();
  else state.polygons.pop();
  help();
  changed();
}

function keys(event) {
  if (event.key === "Backspace" || event.key === "Delete") undo();
  else if (event.key === "Escape" && state.ring.length) { state.ring = []; help(); viewer.draw(); }
  else if (event.key === "f" || event.key === "F") finish();
  else return;
  event.preventDefault();
}

function marks(context, toScreen) {
  const path = (ring, closed) => {
    context.beginPath();
    ring.forEach((p, i) => context[i ? "lineTo" : "moveTo"](...toScreen(...p)));
    if (closed) context.closePath();
  };
  const stroke = (colour) => {
    for (const [ink, width] of [["#000000cc", 5], ["#ffffff", 3], [colour, 2]]) {
      context.strokeStyle = ink;
      context.lineWidth = width;
      context.stroke();
    }
  };
  context.lineJoin = "round";
  for (const { label, ring } of state.polygons) {
    const { colour } = state.classes[label];
    path(ring, true);
    context.globalAlpha = state.map ? 0.15 : 0.4;
    context.fillStyle = colour;
    context.fill();
    context.globalAlpha = 1;
    stroke(colour);
  }
  if (state.ring.length) {
    const { colour } = state.classes[state.chosen];
    const keyboard = viewer.canvas.matches(":focus-visible");
    const next = keyboard ? [viewer.x, viewer.y] : state.cursor;
    path(next ? [...state.ring, next] : state.ring, false);
    stroke(colour);
    state.ring.forEach((p, i) => dot(context, ...toScreen(...p), colour, i ? 3.5 : 5.5));
  }
  crosshair(context, viewer);
}

function dot(context, x, y, colour, radius) {
  context.beginPath();
  context.arc(x, y, radius, 0, 7);
  context.fillStyle = colour;
  context.fill();
  context.strokeStyle = "#ffffff";
  context.lineWidth = 2;
  context.stroke();
}

// Files and the map ----------------------------------------------------------------------------

async function save() {
  try {
    const collection = await post("/api/labels/geojson", { polygons: request(), crs: $("label-crs").value }, "labels");
    const link = el("a", { href: URL.createObjectURL(new Blob([JSON.stringify(collection)], { type: "application/geo+json" })), download: "labels.geojson" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  } catch (error) {
    if (!(error instanceof Superseded)) alertUser(error.message);
  }
}

async function fit() {
  const drawn = new Set(state.polygons.map((p) => nameOf(p.label)));
  const wait = (text) => { state.map = null; $("label-map").textContent = text; $("label-tools").hidden = true; delete $("label-map").dataset.share; arrange(); };
  if (drawn.size < 2) return wait("Draw polygons of two classes or more: the map follows.");
  if (!state.ready) return wait("The scene is being encoded.");
  try {
    state.map = await post("/api/labels/map", { polygons: request(), palette: palette() }, "labelled map");
  } catch (error) {
    if (!(error instanceof Superseded)) wait(error.message);
    return;
  }
  const patches = state.map.classes.reduce((s, c) => s + c.patches, 0);
  $("label-map").textContent = `From ${state.polygons.length} polygons (${patches} patches). Mean entropy ${formatNumber(state.map.entropy_mean)} bit.`;
  $("label-map").dataset.share = state.map.classes[0].share;
  $("label-tools").hidden = false;
  showMap();
}

function showMap() {
  const { map } = state;
  if (!map) return;
  const rows = [...map.classes].sort((a, b) => b.share - a.share).map((c) => {
    const swatch = el("i", { className: "swatch" });
    swatch.style.background = c.color;
    return el("tr", {}, el("th", { scope: "row" }, swatch, ` ${c.name}`), el("td", {}, percent(c.share)));
  });
  const uncertain = colourBar({ colours: map.ramp, low: "certain", high: "uncertain" });
  $("label-legend").replaceChildren(state.picture === "map" ? el("table", {}, el("tbody", {}, ...rows)) : uncertain);
  state.image = new Image();
  state.image.onload = () => viewer.draw();
  state.image.src = map[state.picture];
  arrange();
}

function arrange() {
  viewer.layers = [{ id: $("label-layer").value }];
  viewer.pictures = state.map ? [{ image: state.image, bounds: state.map.bounds, opacity: Number($("label-opacity").value) / 100, smooth: state.picture !== "map" }] : [];
  viewer.draw();
}

/** The scene's own classes, to choose names from. */
async function suggestions() {
  const legends = await Promise.all(sceneLayers().map((l) => get(`/api/layers/${l.id}/legend`)));
  const names = new Set(legends.flatMap((l) => l.classes.map((c) => c.name)));
  $("label-names").replaceChildren(...[...names].map((value) => el("option", { value })));
}

function listen() {
  $("label-add").addEventListener("click", () => {
    state.classes.push({ name: `class ${state.classes.length + 1}`, colour: "#888888" });
    state.chosen = state.classes.length - 1;
    classes();
    colours();
    changed();
    help();
    $("label-classes").lastElementChild.querySelector("input[type=text]").select();
  });
  $("label-chosen").addEventListener("change", () => choose(Number($("label-chosen").value)));
  $("label-finish").addEventListener("click", finish);
  $("label-undo").addEventListener("click", undo);
  $("label-clear").addEventListener("click", () => { state.polygons = []; state.ring = []; help(); changed(); });
  $("label-save").addEventListener("click", save);
  for (const id of ["label-opacity", "label-layer"]) $(id).addEventListener("input", arrange);
  for (const name of ["map", "entropy"]) {
    $(`label-${name}-button`).addEventListener("click", () => {
      state.picture = name;
      press([$("label-map-button"), $("label-entropy-button")], $(`label-${name}-button`));
      showMap();
    });
  }
  viewer.canvas.addEventListener("keydown", keys);
  document.addEventListener("palettechange", () => { colours(); fit(); });
}

export async function start(about) {
  if (!about.scene) {
    $("panel-label").replaceChildren(el("div", { className: "card" }, el("h2", {}, "No scene"), el("p", { className: "dim" }, "These data are chips. Start the demo with --scene to draw polygons on a scene.")));
    return;
  }
  kept = `labels of ${about.data}`;
  restore();
  try {
    viewer = await sceneViewer($("label-viewer"), "Enter or space add a corner in the middle, F finishes a polygon, backspace takes back, escape drops it.");
    viewer.marks = marks;
    viewer.on.click = click;
    viewer.on.point = (x, y) => { state.cursor = [x, y]; if (state.ring.length) viewer.draw(); };
    $("label-layer").replaceChildren(...sceneLayers().map((l) => el("option", { value: l.id }, `${l.title}: ${l.description}`)));
    listen();
    classes();
    list();
    help();
    arrange();
    fit();
    await Promise.all([colours(), suggestions(), encode($("label-features"))]);
    state.ready = true;
    fit();
  } catch (error) {
    $("label-features").replaceChildren();
    alertUser(error.message);
  }
}
