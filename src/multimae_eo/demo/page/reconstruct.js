// The panel on which patches and modalities are hidden.

import { get, post, Superseded } from "./api.js";
import { ModalityView } from "./chip.js";
import { $, alertUser, el, percent, press, told } from "./dom.js";
import { plot, plotKey } from "./plots.js";

const state = { place: null, views: [], tokens: 0, seed: 1, painted: false, point: null, given: null };
let waiting = 0;

const host = {
  hides: () => $("hide").getAttribute("aria-pressed") === "true",
  painted() { state.painted = true; soon(60); },
  give(view) { setGiven(view, true, "1"); },
  pointed(view, u, v) { state.point = [view, u, v]; inspect(); },
  left() {},
};

function setGiven(view, given, fill) {
  view.given = given;
  view.node.classList.toggle("off", !given);
  view.switch.checked = given;
  if (fill) view.mask.fill(Number(fill));
  state.given = state.views.filter((v) => v.given && v.info.observed).map((v) => v.name);
  view.draw();
}

/** Asks for a reconstruction in a moment; what comes in between is one request. */
function soon(delay = 120) {
  clearTimeout(waiting);
  waiting = setTimeout(reconstruct, delay);
}

const alpha = () => 10 ** Number($("alpha").value);

async function reconstruct() {
  const inputs = state.views.filter((v) => v.given && v.info.observed).map((v) => v.name);
  if (!inputs.length) return alertUser("Give the model at least one modality.");
  const place = state.place;
  const request = { place, inputs, seed: state.seed, alpha: alpha(), draws: 4 };
  if (state.painted) {
    request.masks = Object.fromEntries(state.views.filter((v) => v.info.observed).map((v) => [v.name, v.digits]));
    const shown = state.views.some((v) => v.given && v.info.observed && v.mask.includes(0));
    if (!shown) return alertUser("Everything is hidden: reveal at least one patch.");
  } else request.visible = Math.max(1, Math.round((state.tokens * Number($("visible").value)) / 100));
  const begun = performance.now();
  $("rows").classList.add("busy");
  try {
    const said = await post("/api/reconstruct", request, "reconstruct");
    if (said.place !== state.place) return;
    alertUser("");
    show(said, performance.now() - begun);
  } catch (error) {
    if (!(error instanceof Superseded)) alertUser(error.message);
    else return;
  }
  $("rows").classList.remove("busy");
}

function show(said, milliseconds) {
  for (const view of state.views) {
    if (!state.painted && view.info.observed) view.setMask(said.masks[view.name]);
    if (said.modalities[view.name]) view.show(said.modalities[view.name], $("filled").checked);
    view.setScore(said.scores[view.name]);
    const hidden = said.masks[view.name];
    view.count.textContent = view.info.observed ? `${hidden.length - hidden.replaceAll("0", "").length} of ${hidden.length}` : "not in the data";
  }
  $("shown").textContent = `${said.visible} of ${said.tokens} patches`;
  $("shown").dataset.visible = said.visible;
  if (state.painted) $("visible").value = Math.round((100 * said.visible) / said.tokens);
  $("scores").replaceChildren(...Object.entries(said.scores).map(([name, score]) => scoreLine(name, score)));
  if (!Object.keys(said.scores).length) $("scores").textContent = "Nothing is hidden.";
  $("took").textContent = `Bars: share of the error of guessing that is gone. Answered in ${Math.round(milliseconds)} ms.`;
  $("took").dataset.ms = Math.round(milliseconds);
  inspect();
}

function scoreLine(name, score) {
  const classes = score.kind === "categorical";
  const guess = score.baseline.accuracy;
  const skill = classes ? (guess < 1 ? (score.accuracy - guess) / (1 - guess) : 0) : score.r2;
  const bar = el("i");
  bar.style.width = `${100 * Math.min(Math.max(skill ?? 0, 0), 1)}%`;
  const text = classes ? percent(score.accuracy) : `R² ${told(score.r2)}`;
  const node = el("div", {}, el("div", { className: "score-line" }, el("span", {}, name), el("span", {}, text)), el("div", { className: "meter" }, bar));
  node.dataset.score = name;
  return node;
}

function inspect() {
  if (!state.point) return;
  const [, u, v] = state.point;
  for (const view of state.views) view.mark(u, v);
  const rows = [];
  const bands = [];
  for (const view of state.views) {
    const { info } = view;
    for (const band of view.at(u, v)) {
      if (info.categorical) {
        const name = (i) => (i === null ? "–" : info.classes[Math.round(i)]?.name ?? "–");
        rows.push([info.name, name(band.observed), name(band.predicted), ""]);
      } else {
        const unit = info.unit.length < 5 ? info.unit : "";
        rows.push([`${info.name} ${info.bands.length > 1 ? band.name : ""}`, told(band.observed), told(band.predicted), unit]);
        if (band.um) bands.push({ ...band, unit: info.unit });
      }
    }
  }
  const body = rows.map((r) => el("tr", {}, ...r.map((c, i) => el(i ? "td" : "th", i ? {} : { scope: "row" }, c))));
  $("values").replaceChildren(el("table", {}, el("thead", {}, el("tr", {}, ...["", "observed", "model", ""].map((h, i) => el("th", { scope: "col" }, h)))), el("tbody", {}, ...body)));
  bands.sort((a, b) => a.um - b.um);
  const curve = (role) => {
    const known = bands.filter((b) => b[role] !== null);
    return { role, x: known.map((b) => b.um), y: known.map((b) => b[role]), dots: true };
  };
  $("spectrum").replaceChildren(
    plot([curve("observed"), curve("predicted")], { width: 400, height: 230, x: "wavelength, µm", y: bands[0]?.unit ?? "", label: "Spectrum at the cursor: observed and reconstructed" }),
    plotKey(["observed", "predicted"]),
  );
}

/** Looks at a place; keeps which modalities are given. */
export async function openPlace(place) {
  state.place = place;
  for (const button of $("strip").children) button.setAttribute("aria-selected", String(Number(button.dataset.place) === place));
  let info;
  try {
    info = await get(`/api/places/${place}`, "look");
  } catch (error) {
    if (!(error instanceof Superseded)) alertUser(error.message);
    return;
  }
  if (place !== state.place) return;
  $("place-title").textContent = info.title;
  state.tokens = info.tokens;
  state.painted = false;
  state.point = null;
  state.views = info.modalities.map((m) => new ModalityView(m, host));
  $("rows").replaceChildren(...state.views.map((v) => v.node));
  $("switches").replaceChildren(...state.views.map(switchOf));
  for (const view of state.views) setGiven(view, state.given === null ? true : state.given.includes(view.name) && Boolean(view.info.observed), null);
  $("values").textContent = "Point at a picture.";
  $("spectrum").textContent = "Point at a picture.";
  await reconstruct();
}

function switchOf(view) {
  view.switch = el("input", { type: "checkbox", checked: true, disabled: !view.info.observed, onchange: (e) => {
    const keep = state.given;
    setGiven(view, e.target.checked);
    if (!state.given.length) {
      setGiven(view, true);
      state.given = keep;
      return alertUser("Give the model at least one modality.");
    }
    if (e.target.checked && state.painted) view.mask.fill(0);
    view.draw();
    soon();
  } });
  view.switch.dataset.modality = view.name;
  view.count = el("span", { className: "dim" });
  return el("label", { className: "switch" }, view.switch, view.name, view.count);
}

function strip(places) {
  const buttons = places.map(({ place, title }) => el("button", { title, onclick: () => openPlace(place) }, el("img", { src: `/api/places/${place}/picture.png`, alt: title, loading: "lazy", width: 60, height: 60 })));
  buttons.forEach((b, i) => { b.setAttribute("role", "option"); b.dataset.place = places[i].place; b.setAttribute("aria-selected", "false"); });
  $("strip").replaceChildren(...buttons);
}

function tellAlpha() {
  $("alpha-told").textContent = `α ${told(alpha())}`;
}

export function start(about) {
  strip(about.strip);
  tellAlpha();
  const redraw = () => { state.painted = false; soon(); };
  $("visible").addEventListener("input", redraw);
  $("alpha").addEventListener("input", () => { tellAlpha(); redraw(); });
  $("reseed").addEventListener("click", () => { state.seed += 1; redraw(); });
  $("show-all").addEventListener("click", () => {
    state.painted = true;
    for (const view of state.views) { view.mask.fill(0); view.draw(); }
    soon(0);
  });
  for (const id of ["hide", "reveal"]) $(id).addEventListener("click", () => press([$("hide"), $("reveal")], $(id)));
  $("filled").addEventListener("change", () => state.views.forEach((v) => v.keep($("filled").checked)));
  document.addEventListener("themechange", () => state.views.forEach((v) => v.draw()));
  if (about.strip.length) openPlace(about.strip[0].place);
}
