// One modality of a location: the pictures, the mask that is painted, the values.

import { classList, colourBar, el, formatNumber } from "./dom.js";

/** Packed 16-bit steps → a function (band, row, column) → value or null. */
export function unpack(packed) {
  if (!packed) return null;
  const [, height, width] = packed.shape;
  const bytes = Uint8Array.from(atob(packed.data), (c) => c.charCodeAt(0));
  const steps = new Uint16Array(bytes.buffer);
  return {
    height, width,
    at(band, row, column) {
      const step = steps[(band * height + row) * width + column];
      if (step === 65535) return null;
      return packed.low[band] + (step * (packed.high[band] - packed.low[band])) / 65534;
    },
  };
}

function figure(title, frame) {
  const caption = el("figcaption", {}, title);
  const node = el("figure", { className: "cell" }, caption, frame);
  return { node, caption, frame, bar: null };
}

function setBar(cell, bar) {
  cell.bar?.remove();
  cell.bar = bar ? colourBar(bar) : null;
  if (cell.bar) cell.node.append(cell.bar);
}

/**
 * A row of pictures. `host` has the callbacks painted(view), pointed(view, u, v) with u, v in [0, 1), left().
 */
export class ModalityView {
  constructor(info, host) {
    this.info = info;
    this.host = host;
    this.name = info.name;
    [this.rows, this.columns] = info.grid;
    this.mask = new Uint8Array(this.rows * this.columns); // 1: masked
    this.given = true;
    this.truth = unpack(info.observed?.values);
    this.predicted = null;
    this.std = null;
    this.caret = 0;
    this._build();
  }

  _build() {
    const { info } = this;
    this.score = el("span", { className: "score dim" });
    const head = el("header", {}, el("span", { className: "name" }, info.name), el("span", { className: "dim small" }, info.description), this.score);
    this.canvas = el("canvas", { className: "paint", tabIndex: 0, width: 512, height: 512 });
    this.canvas.setAttribute("role", "application");
    this.canvas.setAttribute("aria-label", `${info.name}, observed. Arrow keys move over patches, space masks or unmasks one.`);
    const frame = el("div", { className: "frame" }, this.canvas);
    this.cells = [figure(info.observed ? "observed: paint to mask" : "observed", frame)];
    if (!info.observed) frame.append(el("div", { className: "none" }, "not in these data"));
    this.images = {};
    if (info.output) {
      const titles = { prediction: "reconstructed", std: info.categorical ? "entropy" : "predictive std", error: "error" };
      for (const kind of ["prediction", "std", "error"]) {
        const image = el("img", { alt: `${info.name}: ${titles[kind]}`, draggable: false });
        const cell = figure(titles[kind], el("div", { className: "frame" }, image));
        this.images[kind] = { image, cell };
        this.cells.push(cell);
        this._listenPointer(cell.frame);
      }
    }
    const cells = el("div", { className: "cells" }, ...this.cells.map((c) => c.node));
    this.legend = info.classes.length ? classList(info.classes) : null;
    this.node = el("article", { className: "modality" }, head, cells, this.legend);
    this.node.setAttribute("aria-label", info.name);
    for (const cell of this.cells) {
      cell.cross = el("canvas", { className: "cursor", width: 256, height: 256 });
      cell.cross.setAttribute("aria-hidden", "true");
      cell.frame.append(cell.cross);
    }
    if (info.observed) {
      setBar(this.cells[0], info.observed.bar);
      this.picture = new Image();
      this.picture.onload = () => this.draw();
      this.picture.src = info.observed.src;
      this._listenPaint();
      this._listenKeys();
    }
    this._listenPointer(frame);
  }

  _position(event, node) {
    const box = node.getBoundingClientRect();
    const clamp = (v) => Math.min(Math.max(v, 0), 0.99999);
    return [clamp((event.clientX - box.left) / box.width), clamp((event.clientY - box.top) / box.height)];
  }

  _patch(u, v) {
    return Math.floor(v * this.rows) * this.columns + Math.floor(u * this.columns);
  }

  _listenPointer(frame) {
    frame.addEventListener("pointermove", (e) => this.host.pointed(this, ...this._position(e, frame)));
    frame.addEventListener("pointerleave", () => this.host.left());
  }

  _listenPaint() {
    let last = -1;
    const paint = (event) => {
      const patch = this._patch(...this._position(event, this.canvas));
      if (patch === last) return;
      last = patch;
      this.caret = patch;
      this._set(patch, this.host.hides() ? 1 : 0);
    };
    this.canvas.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      this.canvas.setPointerCapture(event.pointerId);
      last = -1;
      paint(event);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (this.canvas.hasPointerCapture(event.pointerId)) paint(event);
    });
  }

  _listenKeys() {
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    this.canvas.addEventListener("keydown", (event) => {
      const move = moves[event.key];
      if (move) {
        const row = Math.min(Math.max(Math.floor(this.caret / this.columns) + move[0], 0), this.rows - 1);
        const column = Math.min(Math.max((this.caret % this.columns) + move[1], 0), this.columns - 1);
        this.caret = row * this.columns + column;
        this.host.pointed(this, (column + 0.5) / this.columns, (row + 0.5) / this.rows);
      } else if (event.key === " " || event.key === "Enter") {
        this._set(this.caret, this.mask[this.caret] ? 0 : 1);
      } else return;
      event.preventDefault();
      this.draw();
    });
    for (const name of ["focus", "blur"]) this.canvas.addEventListener(name, () => this.draw());
  }

  _set(patch, masked) {
    if (this.mask[patch] === masked && this.given) return;
    if (!this.given) this.host.give(this);
    this.mask[patch] = masked;
    this.draw();
    this.host.painted(this);
  }

  /** The mask as the server expects it. */
  get digits() {
    return Array.from(this.mask, (m) => (m ? "1" : "0")).join("");
  }

  setMask(digits) {
    for (let i = 0; i < this.mask.length; i++) this.mask[i] = digits[i] === "1" ? 1 : 0;
    this.draw();
  }

  draw() {
    if (!this.picture?.complete) return;
    const side = 512;
    const context = this.canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.clearRect(0, 0, side, side);
    context.drawImage(this.picture, 0, 0, side, side);
    const dark = document.documentElement.dataset.theme === "dark";
    const [height, width] = [side / this.rows, side / this.columns];
    for (let i = 0; i < this.mask.length; i++) {
      if (this.given && !this.mask[i]) continue;
      const [x, y] = [(i % this.columns) * width, Math.floor(i / this.columns) * height];
      context.fillStyle = dark ? "#2b3433f2" : "#d6dbdaf2";
      context.fillRect(x, y, width, height);
      context.strokeStyle = dark ? "#414d4b" : "#f4f6f6";
      context.lineWidth = 2;
      context.strokeRect(x + 1, y + 1, width - 2, height - 2);
    }
    if (document.activeElement === this.canvas && this.canvas.matches(":focus-visible")) {
      context.strokeStyle = "#ffffff";
      context.lineWidth = 8;
      const [x, y] = [(this.caret % this.columns) * width, Math.floor(this.caret / this.columns) * height];
      context.strokeRect(x + 4, y + 4, width - 8, height - 8);
      context.strokeStyle = "#000000";
      context.lineWidth = 3;
      context.strokeRect(x + 4, y + 4, width - 8, height - 8);
    }
  }

  /** The same location in other colours of classes. */
  recolour(info) {
    this.info = info;
    if (this.picture) this.picture.src = info.observed.src;
    if (!this.legend) return;
    const legend = classList(info.classes);
    this.legend.replaceWith(legend);
    this.legend = legend;
  }

  /** Shows a reconstruction. `keep`: visible patches stay as observed. */
  show(result, keep) {
    this.result = result;
    this.predicted = unpack(result.values);
    this.std = unpack(result.stds);
    for (const kind of ["std", "error"]) {
      const { image, cell } = this.images[kind];
      image.src = result[kind].src;
      cell.caption.textContent = result[kind].title;
      setBar(cell, result[kind].bar);
    }
    this.keep(keep);
  }

  keep(keep) {
    if (!this.result) return;
    const { image, cell } = this.images.prediction;
    image.src = keep && this.result.filled ? this.result.filled.src : this.result.prediction.src;
    setBar(cell, this.result.prediction.bar);
  }

  setScore(score) {
    if (!score) this.score.textContent = this.info.output && this.info.observed ? "nothing masked" : "";
    else if (score.kind === "categorical") this.score.textContent = `${(100 * score.accuracy).toFixed(0)} % accuracy · majority class ${(100 * score.baseline.accuracy).toFixed(0)} %`;
    else this.score.textContent = `R² ${formatNumber(score.r2)} · RMSE ${formatNumber(score.rmse)}${score.unit && score.unit.length < 5 ? ` ${score.unit}` : ""}`;
  }

  /** Marks a point in all pictures; none: no mark. */
  mark(u, v) {
    for (const { cross } of this.cells) {
      const context = cross.getContext("2d");
      context.clearRect(0, 0, 256, 256);
      if (u === undefined) continue;
      for (const [colour, line] of [["#000000aa", 5], ["#ffffff", 2]]) {
        context.strokeStyle = colour;
        context.lineWidth = line;
        context.beginPath();
        context.arc(u * 256, v * 256, 7, 0, 7);
        context.stroke();
      }
    }
  }

  /** Observed, predicted and std per band at a point. */
  at(u, v) {
    const pick = (plane, band) => (plane ? plane.at(band, Math.floor(v * plane.height), Math.floor(u * plane.width)) : null);
    return this.info.bands.map((band, i) => ({
      ...band,
      observed: pick(this.truth, i),
      predicted: pick(this.predicted, i),
      std: pick(this.std, 0),
    }));
  }
}
