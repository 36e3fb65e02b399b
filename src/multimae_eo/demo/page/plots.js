// Small line plots as SVG.

import { el, formatNumber } from "./dom.js";

const NS = "http://www.w3.org/2000/svg";

function svg(name, attributes, text) {
  const node = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

/** About `count` round numbers between low and high. */
function ticks(low, high, count) {
  const span = high - low || Math.abs(high) || 1;
  const rough = span / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= rough);
  const values = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-6; v += step) values.push(Math.abs(v) < step * 1e-9 ? 0 : v);
  return values;
}

/**
 * curves: [{role, x, y, dots}]; options: {x: label, y: label, width, height, zero}.
 * Colours come from the style sheet by role.
 */
export function plot(curves, options = {}) {
  const { width = 360, height = 190, x: xLabel = "", y: yLabel = "", label = "plot" } = options;
  const root = svg("svg", { class: "plot", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  const xs = curves.flatMap((c) => c.x);
  const ys = curves.flatMap((c) => c.y).filter(Number.isFinite);
  if (!xs.length || !ys.length) {
    root.append(svg("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "nothing recorded"));
    return root;
  }
  let [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  if (options.zero) y0 = Math.min(0, y0);
  const pad = (y1 - y0 || Math.abs(y1) || 1) * 0.06;
  if (!(options.zero && y0 === 0)) y0 -= pad;
  y1 += pad;
  if (x0 === x1) { x0 -= 0.5; x1 += 0.5; }
  const box = { left: 46, right: width - 12, top: yLabel ? 20 : 8, bottom: height - (xLabel ? 38 : 24) };
  const px = (v) => box.left + ((v - x0) / (x1 - x0)) * (box.right - box.left);
  const py = (v) => box.bottom - ((v - y0) / (y1 - y0)) * (box.bottom - box.top);
  for (const t of ticks(y0, y1, 4)) {
    root.append(svg("line", { class: "grid", x1: box.left, x2: box.right, y1: py(t), y2: py(t) }));
    root.append(svg("text", { x: box.left - 6, y: py(t) + 4, "text-anchor": "end" }, formatNumber(t)));
  }
  for (const t of ticks(x0, x1, 5)) root.append(svg("text", { x: px(t), y: box.bottom + 15, "text-anchor": "middle" }, formatNumber(t)));
  if (xLabel) root.append(svg("text", { x: (box.left + box.right) / 2, y: height - 6, "text-anchor": "middle" }, xLabel));
  if (yLabel) root.append(svg("text", { x: 4, y: 11 }, yLabel));
  for (const curve of curves) {
    const points = curve.x.map((v, i) => [px(v), py(curve.y[i])]).filter((p) => p.every(Number.isFinite));
    if (points.length > 1) root.append(svg("polyline", { class: `c-${curve.role}`, fill: "none", "stroke-width": 1.8, "stroke-linejoin": "round", points: points.map((p) => p.map((v) => v.toFixed(1)).join(",")).join(" ") }));
    if (curve.dots || points.length === 1) for (const [cx, cy] of points) root.append(svg("circle", { class: `d-${curve.role}`, cx: cx.toFixed(1), cy: cy.toFixed(1), r: 3 }));
  }
  return root;
}

/** A legend of the curves. */
export function plotKey(roles) {
  return el("div", { className: "key" }, ...roles.map((r) => el("span", {}, el("i", { className: `c-${r}` }), r)));
}
