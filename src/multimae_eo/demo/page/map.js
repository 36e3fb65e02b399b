// The panel of the scene on a map, with the model's maps over it.

import { get, post, Superseded, untilDone } from "./api.js";
import { $, alertUser, el, legendOf, palette, percent, formatNumber } from "./dom.js";
import { openLocation } from "./reconstruct.js";
import { crosshair, outline, Viewer } from "./viewer.js";

let viewer = null;
let map = null;
let overlay = null;
let rectangle = null;
let picked = null;

function arrange() {
  const swipe = Number($("swipe").value) / 100;
  viewer.layers = [{ id: $("layer").value }];
  if (overlay) viewer.layers.push({ id: overlay, opacity: Number($("opacity").value) / 100, from: 0, to: swipe });
  viewer.setHandle(overlay && swipe < 1 ? swipe : null);
  $("opacity-value").textContent = `${$("opacity").value} %`;
  viewer.draw();
}

async function legend(id, box) {
  try {
    box.replaceChildren(...legendOf(await get(`/api/layers/${id}/legend?palette=${palette()}`)));
  } catch (error) {
    alertUser(error.message);
  }
}

async function chooseOverlay(id) {
  overlay = null;
  $("overlay-tools").hidden = true;
  $("overlay-state").replaceChildren();
  $("overlay-accuracy").replaceChildren();
  if (!id) return arrange();
  const chosen = map.overlays.find((o) => o.id === id);
  const bar = el("progress", { max: 1, value: 0 });
  bar.setAttribute("aria-label", "making the map");
  $("overlay-state").replaceChildren(el("p", { className: "small dim" }, chosen.description), bar);
  try {
    await untilDone(`/api/layers/${id}/state`, (job) => { bar.value = job.share; }, () => post(`/api/layers/${id}/make`));
  } catch (error) {
    $("overlay-state").replaceChildren();
    return alertUser(error.message);
  }
  if ($("overlay").value !== id) return;
  bar.remove();
  overlay = id;
  $("overlay-tools").hidden = false;
  $("download").href = `/api/layers/${id}/map.tif`;
  legend(id, $("overlay-legend"));
  $("overlay-accuracy").replaceChildren(...(chosen.accuracy ? accuracyTable(chosen.accuracy) : []));
  arrange();
  if (rectangle) area(rectangle);
}

/** The estimated areas and accuracies of a map, each with its 95 % interval. */
function accuracyTable({ overall, by, classes }) {
  const between = (e, text) => (e.value === null ? "–" : `${text(e.value)} (${text(e.low)} – ${text(e.high)})`);
  const facts = (c) => [
    ["area", between(c.area_ha, hectares)], ["mapped", hectares(c.mapped_ha)],
    ["user’s", between(c.users, percent)], ["producer’s", between(c.producers, percent)],
  ];
  return [
    el("p", {}, el("b", {}, "Accuracy"), ` ${between(overall, percent)}`),
    el("p", { className: "dim" }, `${by}; in brackets 95 % intervals`),
    ...classes.flatMap((c) => [el("p", {}, el("b", {}, c.name)), tableOf(facts(c))]),
  ];
}

/** A table of rows, each a name and its values. */
const tableOf = (rows) => el("table", {}, el("tbody", {}, ...rows.map(([name, ...values]) => el("tr", {}, el("th", { scope: "row" }, name), ...values.map((v) => el("td", {}, v))))));

async function area(bounds) {
  rectangle = bounds;
  const [west, south, east, north] = bounds;
  const ids = [$("layer").value, ...(overlay ? [overlay] : [])];
  try {
    const statistics = await Promise.all(ids.map((layer) => post("/api/area", { layer, west, south, east, north }, `area ${layer}`)));
    const title = (id) => [...map.layers, ...map.overlays].find((l) => l.id === id).title;
    $("area").replaceChildren(...statistics.flatMap((s, i) => areaTable(title(ids[i]), s)));
  } catch (error) {
    if (!(error instanceof Superseded)) alertUser(error.message);
  }
}

/** An area in words. */
export const hectares = (value) => (value >= 1000 ? `${formatNumber(value / 100)} km²` : `${formatNumber(value)} ha`);

function areaTable(title, statistics) {
  const about = statistics.estimated ? "about " : "";
  const head = el("p", {}, el("b", {}, title), ` · ${about}${hectares(statistics.hectares)}`);
  if (!statistics.pixels) return [el("p", {}, el("b", {}, title), ": nothing is observed here.")];
  const classes = [...statistics.classes].sort((a, b) => b.share - a.share);
  const rows = classes.length
    ? classes.map((c) => [c.name, hectares(c.hectares), percent(c.share)])
    : statistics.bands.map((b) => [b.name, `${formatNumber(b.mean)} ± ${formatNumber(b.std)}`, `${formatNumber(b.least)} … ${formatNumber(b.greatest)}`]);
  return [head, tableOf(rows)];
}

let pointing = 0;
function point(x, y) {
  clearTimeout(pointing);
  pointing = setTimeout(async () => {
    const ids = [$("layer").value, ...(overlay ? [overlay] : [])];
    try {
      const values = await Promise.all(ids.map((id) => get(`/api/layers/${id}/value?x=${x}&y=${y}`, `value ${id}`)));
      const unit = (id) => map.layers.find((l) => l.id === id)?.unit ?? "";
      const text = values.map((bands, i) => bands.map((b) => b.text ?? `${b.name} ${formatNumber(b.value)}`).join(" · ") + (bands.length && !bands[0].text && unit(ids[i]).length < 5 ? ` ${unit(ids[i])}` : ""));
      viewer.showReadout(text.filter(Boolean).join("   |   "));
    } catch (error) {
      if (!(error instanceof Superseded)) viewer.showReadout("");
    }
  }, 60);
}

/** A viewer of the scene in a container. */
export async function sceneViewer(container, help) {
  map ??= await get("/api/map");
  return new Viewer(container, { bounds: map.bounds, pixel: map.pixel, label: `Map of ${map.name}`, help });
}

export const sceneLayers = () => map.layers;

async function pick(x, y, show) {
  try {
    const match = await get(`/api/location-at?x=${x}&y=${y}`, "location-at");
    picked = match.bounds;
    $("picked").textContent = "The square that Reconstruct would show.";
    $("open-location").disabled = false;
    $("open-location").onclick = () => { openLocation(match.location); show("reconstruct"); };
    viewer.draw();
  } catch (error) {
    if (!(error instanceof Superseded)) alertUser(error.message);
  }
}

export async function start(about, show) {
  if (!about.scene) {
    $("panel-map").replaceChildren(el("div", { className: "card" }, el("h2", {}, "No scene"), el("p", { className: "dim" }, "These data are chips. Start the demo with --scene for a map of a scene.")));
    return;
  }
  viewer = await sceneViewer($("map-viewer"), "");
  viewer.marks = (context, toScreen) => {
    if (picked) outline(context, toScreen, picked, "#ffd54a");
    crosshair(context, viewer);
  };
  viewer.on.click = (x, y) => pick(x, y, show);
  viewer.on.point = point;
  viewer.on.rectangle = (bounds) => { $("draw").click(); area(bounds); };
  $("layer").replaceChildren(...map.layers.map((l) => el("option", { value: l.id }, `${l.title}: ${l.description}`)));
  $("overlay").replaceChildren(el("option", { value: "" }, "none"), ...map.overlays.map((o) => el("option", { value: o.id }, o.title)));
  $("layer").addEventListener("change", () => { legend($("layer").value, $("layer-legend")); arrange(); if (rectangle) area(rectangle); });
  $("overlay").addEventListener("change", () => chooseOverlay($("overlay").value));
  document.addEventListener("palettechange", () => {
    legend($("layer").value, $("layer-legend"));
    if (overlay) legend(overlay, $("overlay-legend"));
  });
  for (const id of ["opacity", "swipe"]) $(id).addEventListener("input", arrange);
  $("draw").addEventListener("click", () => {
    const on = $("draw").getAttribute("aria-pressed") !== "true";
    $("draw").setAttribute("aria-pressed", String(on));
    viewer.setDrawing(on);
  });
  $("area-view").addEventListener("click", () => { viewer.rectangle = viewer.view; viewer.draw(); area(viewer.view); });
  legend($("layer").value, $("layer-legend"));
  arrange();
  const first = map.overlays.find((o) => o.job.state === "done") ?? map.overlays[0];
  if (first) {
    $("overlay").value = first.id;
    chooseOverlay(first.id);
  }
}
