// Starts the page: tabs, theme, and each panel when it is first opened.

import { get } from "./api.js";
import { $, alertUser, palette } from "./dom.js";
import * as label from "./label.js";
import * as map from "./map.js";
import * as reconstruct from "./reconstruct.js";
import * as runs from "./runs.js";
import * as search from "./search.js";

const panels = { reconstruct, map, search, label, runs };
const started = new Set();
let about = null;

function theme(chosen) {
  document.documentElement.dataset.theme = chosen;
  document.dispatchEvent(new Event("themechange"));
}

/** Opens a panel by name. */
export function show(name) {
  for (const other of Object.keys(panels)) {
    const tab = $(`tab-${other}`);
    tab.setAttribute("aria-selected", String(other === name));
    tab.tabIndex = other === name ? 0 : -1;
    $(`panel-${other}`).hidden = other !== name;
  }
  if (location.hash.slice(1) !== name) history.replaceState(null, "", `#${name}`);
  if (!started.has(name)) {
    started.add(name);
    panels[name].start(about, show);
  } else panels[name].shown?.();
}

function tabs() {
  const all = [...document.querySelectorAll('[role="tab"]')];
  all.forEach((tab, i) => {
    tab.addEventListener("click", () => show(tab.id.slice(4)));
    tab.addEventListener("keydown", (event) => {
      const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: all.length - 1 }[event.key];
      if (to === undefined) return;
      const next = all[(to + all.length) % all.length];
      next.focus();
      show(next.id.slice(4));
      event.preventDefault();
    });
  });
}

/** The choice is kept where the browser keeps anything. */
function choosePalette() {
  const kept = (act) => { try { return act(localStorage); } catch { return null; } };
  $("safe").checked = kept((s) => s.getItem("colours")) === "safe";
  $("safe").addEventListener("change", () => {
    kept((s) => s.setItem("colours", palette()));
    for (const image of document.querySelectorAll("img[data-location]")) image.src = image.src.replace(/palette=\w+/, `palette=${palette()}`);
    document.dispatchEvent(new Event("palettechange"));
  });
}

const dark = matchMedia("(prefers-color-scheme: dark)");
theme(dark.matches ? "dark" : "light");
dark.addEventListener("change", () => theme(dark.matches ? "dark" : "light"));
$("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
tabs();
choosePalette();

try {
  about = await get("/api/about");
  $("about").textContent = `${about.data} · ${(about.parameters / 1e6).toFixed(1)} M parameters`;
  const panel = location.hash.slice(1);
  show(panel in panels ? panel : "reconstruct");
  addEventListener("hashchange", () => location.hash.slice(1) in panels && show(location.hash.slice(1)));
} catch (error) {
  alertUser(error.message);
}
