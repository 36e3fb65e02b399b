// The panel in which patches and modalities are masked and reconstructed.

import { get, post, Superseded } from "./api.js";
import { ModalityView } from "./chip.js";
import { $, alertUser, el, locationPicture, palette, percent, press, formatNumber } from "./dom.js";
import { plot, plotKey } from "./plots.js";

const state = { location: null, views: [], tokens: 0, seed: 1, painted: false, point: null, given: null };
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

/** Requests a reconstruction after a delay; changes in between become one request. */
function soon(delay = 120) {
  clearTimeout(waiting);
  waiting = setTimeout(reconstruct, delay);
}

const alpha = () => 10 ** Number($("alpha").value);

async function reconstruct() {
  const inputs = state.views.filter((v) => v.given && v.info.observed).map((v) => v.name);
  if (!inputs.length) return alertUser("At least one modality has to be visible.");
  const location = state.location;
  const request = { location, inputs, seed: state.seed, alpha: alpha(), samples: 4, palette: palette() };
  if (state.painted) {
    request.masks = Object.fromEntries(state.views.filter((v) => v.info.observed).map((v) => [v.name, v.digits]));
    const shown = state.views.some((v) => v.given && v.info.observed && v.mask.includes(0));
    if (!shown) return alertUser("Everything is masked: unmask at least one patch.");
  } else request.visible = Math.max(1, Math.round((state.tokens * Number($("visible").value)) / 100));
  const begun = performance.now();
  $("rows").classList.add("busy");
  try {
    const result = await post("/api/reconstruct", request, "reconstruct");
    if (result.location !== state.location) return;
    alertUser("");
    show(result, performance.now() - begun);
  } catch (error) {
    if (!(error instanceof Superseded)) alertUser(error.message);
    else return;
  }
  $("rows").classList.remove("busy");
}

function show(result, milliseconds) {
  for (const view of state.views) {
    if (!state.painted && view.info.observed) view.setMask(result.masks[view.name]);
    if (result.modalities[view.name]) view.show(result.modalities[view.name], $("filled").checked);
    view.setScore(result.scores[view.name]);
    const mask = result.masks[view.name];
    view.count.textContent = view.info.observed ? `${mask.length - mask.replaceAll("0", "").length} of ${mask.length}` : "not in the data";
  }
  $("shown").textContent = `${result.visible} of ${result.tokens} patches`;
  $("shown").dataset.visible = result.visible;
  if (state.painted) $("visible").value = Math.round((100 * result.visible) / result.tokens);
  $("scores").replaceChildren(...Object.entries(result.scores).map(([name, score]) => scoreLine(name, score)));
  if (!Object.keys(result.scores).length) $("scores").textContent = "Nothing is masked.";
  $("took").textContent = `Bars: skill, 1 − error / baseline error. Computed in ${Math.round(milliseconds)} ms.`;
  $("took").dataset.ms = Math.round(milliseconds);
  inspect();
}

function scoreLine(name, score) {
  const classes = score.kind === "categorical";
  const baseline = score.baseline.accuracy;
  const skill = classes ? (baseline < 1 ? (score.accuracy - baseline) / (1 - baseline) : 0) : score.r2;
  const bar = el("i");
  bar.style.width = `${100 * Math.min(Math.max(skill ?? 0, 0), 1)}%`;
  const text = classes ? percent(score.accuracy) : `R² ${formatNumber(score.r2)}`;
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
        rows.push([`${info.name} ${info.bands.length > 1 ? band.name : ""}`, formatNumber(band.observed), formatNumber(band.predicted), unit]);
        if (band.um) bands.push({ ...band, unit: info.unit });
      }
    }
  }
  const body = rows.map((r) => el("tr", {}, ...r.map((c, i) => el(i ? "td" : "th", i ? {} : { scope: "row" }, c))));
  $("values").replaceChildren(el("table", {}, el("thead", {}, el("tr", {}, ...["", "observed", "predicted", ""].map((h, i) => el("th", { scope: "col" }, h)))), el("tbody", {}, ...body)));
  bands.sort((a, b) => a.um - b.um);
  const curve = (role) => {
    const present = bands.filter((b) => b[role] !== null);
    return { role, x: present.map((b) => b.um), y: present.map((b) => b[role]), dots: true };
  };
  $("spectrum").replaceChildren(
    plot([curve("observed"), curve("predicted")], { width: 400, height: 230, x: "wavelength, µm", y: bands[0]?.unit ?? "", label: "Spectrum at the cursor: observed and reconstructed" }),
    plotKey(["observed", "predicted"]),
  );
}

/** Other colours of classes: the same mask, drawn again. */
async function recolour() {
  const { location } = state;
  if (location === null) return;
  try {
    const info = await get(`/api/locations/${location}?palette=${palette()}`, "look");
    if (location !== state.location) return;
    for (const [i, view] of state.views.entries()) view.recolour(info.modalities[i]);
    soon(0);
  } catch (error) {
    if (!(error instanceof Superseded)) alertUser(error.message);
  }
}

/** Opens a location; keeps which modalities are visible. */
export async function openLocation(location) {
  state.location = location;
  for (const button of $("strip").children) button.setAttribute("aria-selected", String(Number(button.dataset.location) === location));
  let info;
  try {
    info = await get(`/api/locations/${location}?palette=${palette()}`, "look");
  } catch (error) {
    if (!(error instanceof Superseded)) alertUser(error.message);
    return;
  }
  if (location !== state.location) return;
  $("location-title").textContent = info.title;
  state.tokens = info.tokens;
  state.painted = false;
  state.point = null;
  state.views = info.modalities.map((m) => new ModalityView(m, host));
  $("rows").replaceChildren(...state.views.map((v) => v.node));
  $("switches").replaceChildren(...state.views.map(switchOf));
  for (const view of state.views) setGiven(view, state.given === null ? true : state.given.includes(view.name) && Boolean(view.info.observed), null);
  $("values").textContent = "Move the cursor over a picture.";
  $("spectrum").textContent = "Move the cursor over a picture.";
  await reconstruct();
}

function switchOf(view) {
  view.switch = el("input", { type: "checkbox", checked: true, disabled: !view.info.observed, onchange: (e) => {
    const keep = state.given;
    setGiven(view, e.target.checked);
    if (!state.given.length) {
      setGiven(view, true);
      state.given = keep;
      return alertUser("At least one modality has to be visible.");
    }
    if (e.target.checked && state.painted) view.mask.fill(0);
    view.draw();
    soon();
  } });
  view.switch.dataset.modality = view.name;
  view.count = el("span", { className: "dim" });
  return el("label", { className: "switch" }, view.switch, view.name, view.count);
}

function strip(locations) {
  const buttons = locations.map(({ location, title }) => el("button", { title, onclick: () => openLocation(location) }, locationPicture(location, { alt: title, loading: "lazy", width: 60, height: 60 })));
  buttons.forEach((b, i) => { b.setAttribute("role", "option"); b.dataset.location = locations[i].location; b.setAttribute("aria-selected", "false"); });
  $("strip").replaceChildren(...buttons);
}

function showAlpha() {
  $("alpha-value").textContent = `α ${formatNumber(alpha())}`;
}

export function start(about) {
  strip(about.strip);
  showAlpha();
  const redraw = () => { state.painted = false; soon(); };
  $("visible").addEventListener("input", redraw);
  $("alpha").addEventListener("input", () => { showAlpha(); redraw(); });
  $("reseed").addEventListener("click", () => { state.seed += 1; redraw(); });
  $("show-all").addEventListener("click", () => {
    state.painted = true;
    for (const view of state.views) { view.mask.fill(0); view.draw(); }
    soon(0);
  });
  for (const id of ["hide", "reveal"]) $(id).addEventListener("click", () => press([$("hide"), $("reveal")], $(id)));
  $("filled").addEventListener("change", () => state.views.forEach((v) => v.keep($("filled").checked)));
  document.addEventListener("palettechange", recolour);
  document.addEventListener("themechange", () => state.views.forEach((v) => v.draw()));
  if (about.strip.length) openLocation(about.strip[0].location);
}
