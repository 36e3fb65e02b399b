// The panel of training runs.

import { get } from "./api.js";
import { $, alertUser, el, formatNumber } from "./dom.js";
import { plot, plotKey } from "./plots.js";

let timer = 0;
let at = 0;

function fact(name, value) {
  return el("div", { className: "fact" }, el("span", { className: "dim small" }, name), el("b", {}, value));
}

function card(title, note, curves, options) {
  return el("div", { className: "card" }, el("h3", {}, title, el("span", { className: "num" }, note)), plot(curves, { label: title, x: "step", ...options }));
}

async function load() {
  try {
    const number = Number($("run").value);
    const run = await get(`/api/runs/${number}`, "run");
    const loss = run.losses[0]?.curves.find((c) => c.role === "validation");
    const facts = [
      fact("steps", run.steps.toLocaleString("en")),
      run.epoch === null ? null : fact("epochs", String(Math.round(run.epoch) + 1)),
      loss?.y.length ? fact("validation loss", formatNumber(loss.y.at(-1))) : null,
      run.samples_per_s === null ? null : fact("chips per second", formatNumber(run.samples_per_s)),
    ].filter(Boolean);
    const recorded = (c) => c.x.length > 0;
    const losses = run.losses.filter((l) => l.curves.some(recorded)).map((l) => card(l.title, l.skill === null ? "" : `skill ${formatNumber(l.skill)}`, l.curves.filter(recorded), { zero: true }));
    const speed = run.speed.map((s) => card(s.title, s.unit, s.curves, { zero: true }));
    $("run-body").replaceChildren(
      el("div", { className: "facts" }, ...facts),
      el("div", { className: "toolbar" }, plotKey(["training", "validation", "baseline"]), el("span", { className: "dim small" }, "Skill: 1 − loss / loss of the best constant guess.")),
      el("div", { className: "plots" }, ...losses, ...speed),
      pictures(number, run.pictures),
    );
  } catch (error) {
    alertUser(error.message);
  }
}

function pictures(run, names) {
  if (!names.length) return el("p", { className: "dim small" }, "This run kept no pictures (run.pictures_every).");
  at = Math.min(at || names.length - 1, names.length - 1);
  const image = el("img", { alt: "Reconstructions of validation chips beside the truth" });
  const title = el("span", {});
  const show = (n) => { at = n; image.src = `/api/runs/${run}/pictures/${n}.png`; title.textContent = names[n].replace(/_0*/, " "); };
  const slider = el("input", { type: "range", hidden: names.length < 2, min: 0, max: names.length - 1, value: at, oninput: (e) => show(Number(e.target.value)) });
  slider.setAttribute("aria-label", "Picture over time");
  show(at);
  return el("div", { className: "card pictures" }, el("h3", {}, "Reconstruction over time", title), slider, image);
}

export async function start(about) {
  if (!about.runs) {
    $("panel-runs").replaceChildren(el("div", { className: "card" }, el("h2", {}, "No runs"), el("p", { className: "dim" }, "Start the demo with --runs, a run folder or a folder of them, to see the curves of its training.")));
    return;
  }
  try {
    const runs = await get("/api/runs");
    $("run").replaceChildren(...runs.map((r) => el("option", { value: r.run }, r.name)));
  } catch (error) {
    return alertUser(error.message);
  }
  $("run").addEventListener("change", () => { at = 0; load(); });
  $("refresh").addEventListener("click", load);
  load();
  // A run in progress is followed while its panel is open.
  timer ||= setInterval(() => !$("panel-runs").hidden && !document.hidden && load(), 15000);
}
