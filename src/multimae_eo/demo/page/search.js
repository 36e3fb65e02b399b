// The panel that finds similar locations, and fits maps to a few clicks.

import { get, post, Superseded, untilDone } from "./api.js";
import { $, alertUser, colourBar, el, locationPicture, percent, press, formatNumber } from "./dom.js";
import { sceneLayers, sceneViewer } from "./map.js";
import { openLocation } from "./reconstruct.js";
import { crosshair, outline } from "./viewer.js";

const HELP = {
  similar: "Click a location to find the most similar ones.",
  a: "Click examples of A, the class to map.",
  b: "Click examples of B, of other classes.",
};
const state = { tool: "similar", points: [], matches: [], few: null, layer: "probability", ready: false };
let viewer = null;
let showPanel = null;

/** Waits until the scene is encoded, which it is once; its progress is shown in a box. */
export async function encode(box) {
  const bar = el("progress", { max: 1, value: 0 });
  bar.setAttribute("aria-label", "encoding the scene");
  box.replaceChildren(bar);
  await untilDone("/api/features", (job) => { bar.value = job.share; }, () => post("/api/features"));
  box.replaceChildren();
}

async function features() {
  const begun = performance.now();
  await encode($("features-state"));
  $("features-state").replaceChildren(el("span", { className: "small" }, `Ready (${formatNumber((performance.now() - begun) / 1000)} s).`));
  $("features").dataset.ready = "true";
  state.ready = true;
}

async function similar(request) {
  try {
    const response = await post("/api/similar", { ...request, count: 16 }, "similar");
    state.matches = response.similar;
    $("results").replaceChildren(...response.similar.map(result));
    viewer?.draw();
  } catch (error) {
    if (!(error instanceof Superseded)) alertUser(error.message);
  }
}

function result(match, rank) {
  const image = locationPicture(match.location, { alt: "", loading: "lazy" });
  const text = rank ? `${rank} · ${formatNumber(match.similarity)}` : "query";
  const open = () => { openLocation(match.location); showPanel("reconstruct"); };
  return el("button", { title: `${match.title}: open in Reconstruct`, "aria-current": String(rank === 0), onclick: open }, image, el("span", { className: "what num" }, text));
}

async function fewShot() {
  const of = (set) => state.points.filter((p) => p.set === set).map(({ x, y }) => ({ x, y }));
  const [a, b] = [of("a"), of("b")];
  const wait = (text) => { $("few").textContent = text; state.few = null; $("few-legend").replaceChildren(); arrange(); };
  if (!a.length || !b.length) return wait(`${a.length} of A, ${b.length} of B: at least one of each is needed.`);
  const begun = performance.now();
  try {
    state.few = await post("/api/few-shot", { a, b }, "few-shot");
  } catch (error) {
    if (!(error instanceof Superseded)) alertUser(error.message);
    return;
  }
  const took = Math.round(performance.now() - begun);
  $("few").textContent = `From ${a.length} + ${b.length} clicks: ${percent(state.few.share)} of the scene is likelier A; mean entropy ${formatNumber(state.few.entropy_mean)} bit. ${took} ms.`;
  $("few").dataset.share = state.few.share;
  showFew();
}

function showFew() {
  if (!state.few) return arrange();
  const ends = state.layer === "probability" ? ["B", "A"] : ["certain", "uncertain"];
  $("few-legend").replaceChildren(colourBar({ colours: state.few.ramps[state.layer], low: ends[0], high: ends[1] }));
  const image = new Image();
  image.onload = () => viewer.draw();
  image.src = state.few[state.layer];
  state.image = image;
  arrange();
}

function arrange() {
  if (!viewer) return;
  viewer.layers = [{ id: sceneLayers()[0].id }];
  // Similar locations are shown without the map over them.
  viewer.pictures = state.few && state.tool !== "similar" ? [{ image: state.image, bounds: state.few.bounds, opacity: Number($("few-opacity").value) / 100 }] : [];
  viewer.draw();
}

function marks(context, toScreen) {
  context.font = "600 12px system-ui, sans-serif";
  context.textAlign = "center";
  context.textBaseline = "middle";
  state.matches.forEach(({ bounds }, rank) => {
    if (!bounds || state.tool !== "similar") return;
    const [x0, y0] = outline(context, toScreen, bounds, rank ? "#ffffff" : "#ffd54a");
    if (rank) badge(context, x0 + 11, y0 + 11, String(rank), "#16201f");
  });
  for (const { x, y, set } of state.points) badge(context, ...toScreen(x, y), set.toUpperCase(), set === "a" ? "#0072b2" : "#b8400a");
  crosshair(context, viewer);
}

function badge(context, x, y, text, colour) {
  context.beginPath();
  context.arc(x, y, 9, 0, 7);
  context.fillStyle = colour;
  context.fill();
  context.strokeStyle = "#ffffff";
  context.lineWidth = 1.5;
  context.stroke();
  context.fillStyle = "#ffffff";
  context.fillText(text, x, y + 0.5);
}

function click(x, y) {
  if (!state.ready) return alertUser("The features are still being computed.");
  if (state.tool === "similar") return similar({ point: { x, y } });
  if (state.points.length >= 64) return alertUser("At most 64 examples.");
  state.points.push({ x, y, set: state.tool });
  viewer.draw();
  fewShot();
}

function tools() {
  const buttons = { similar: $("tool-similar"), a: $("tool-a"), b: $("tool-b") };
  for (const [name, button] of Object.entries(buttons)) {
    button.addEventListener("click", () => {
      state.tool = name;
      press(Object.values(buttons), button);
      $("tool-help").textContent = HELP[name];
      arrange();
    });
  }
  $("tool-help").textContent = HELP.similar;
  for (const name of ["probability", "entropy"]) {
    $(`few-${name}`).addEventListener("click", () => {
      state.layer = name;
      press([$("few-probability"), $("few-entropy")], $(`few-${name}`));
      showFew();
    });
  }
  $("few-opacity").addEventListener("input", arrange);
  $("undo").addEventListener("click", () => { state.points.pop(); fewShot(); viewer?.draw(); });
  $("clear").addEventListener("click", () => { state.points = []; state.matches = []; fewShot(); viewer?.draw(); });
}

export async function start(about, show) {
  showPanel = show;
  tools();
  try {
    if (about.scene) {
      viewer = await sceneViewer($("search-viewer"), "Enter or space select the location in the middle.");
      viewer.marks = marks;
      viewer.on.click = click;
      arrange();
      fewShot();
    } else chips(about);
    await features();
    if (!about.scene) similar({ location: about.strip[0].location });
  } catch (error) {
    $("features-state").replaceChildren();
    alertUser(error.message);
  }
}

/** Without a scene: chips are selected from the strip. */
function chips(about) {
  $("few-card").hidden = true;
  $("tool-similar").parentElement.hidden = true;
  $("tool-help").textContent = "Select a chip to find the most similar ones. Maps from clicks need --scene.";
  const strip = el("div", { className: "strip" }, ...about.strip.map(({ location, title }) =>
    el("button", { title, onclick: () => state.ready && similar({ location }) }, locationPicture(location, { alt: title, width: 60, height: 60 }))));
  $("search-viewer").replaceWith(strip);
}
