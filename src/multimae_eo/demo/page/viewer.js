// A map of tiles on a canvas: drag, wheel, pinch and keys. No base map, nothing from other servers.

import { el, palette } from "./dom.js";

const HALF = Math.PI * 6378137;
const TILE = 256;
const CACHED = 600;

export class Viewer {
  /** bounds: [left, bottom, right, top] in Web-Mercator metres; pixel: of the data, in metres. */
  constructor(container, { bounds, pixel, label, help }) {
    this.bounds = bounds;
    this.deepest = Math.min(24, Math.ceil(Math.log2((2 * HALF) / TILE / pixel)));
    this.leastStep = pixel / 16;
    this.layers = []; // {id, opacity, from, to}: drawn between two shares of the width
    this.pictures = []; // {image, bounds, opacity, smooth}
    this.marks = () => {}; // draws with (context, toScreen)
    this.on = { click: null, rectangle: null, point: null };
    this.tiles = new Map();
    this.pointers = new Map();
    this.canvas = el("canvas", { tabIndex: 0 });
    this.canvas.setAttribute("role", "application");
    this.canvas.setAttribute("aria-label", `${label}. Arrow keys pan, plus and minus zoom, 0 shows all. ${help}`);
    const button = (text, name, act) => el("button", { "aria-label": name, title: name, onclick: act }, text);
    this.readout = el("div", { className: "readout", hidden: true });
    this.handle = el("div", { className: "handle", hidden: true });
    container.replaceChildren(this.canvas, this.handle, el("div", { className: "zoom" },
      button("+", "Zoom in", () => this.zoom(0.5)), button("−", "Zoom out", () => this.zoom(2)), button("⤢", "Show all", () => this.fit())), this.readout);
    this._listen();
    this.fitted = false;
    new ResizeObserver(() => this._resize()).observe(container);
    document.addEventListener("palettechange", () => this.draw());
    this._resize();
  }

  _resize() {
    const box = this.canvas.getBoundingClientRect();
    if (!box.width) return;
    const ratio = devicePixelRatio || 1;
    [this.width, this.height] = [box.width, box.height];
    this.canvas.width = Math.round(box.width * ratio);
    this.canvas.height = Math.round(box.height * ratio);
    if (!this.fitted) this.fit();
    this.draw();
  }

  fit(bounds = this.bounds) {
    const [left, bottom, right, top] = bounds;
    if (!this.width) return;
    this.fitted = true;
    this.x = (left + right) / 2;
    this.y = (bottom + top) / 2;
    this.step = Math.max((right - left) / (this.width - 24), (top - bottom) / (this.height - 24));
    this.draw();
  }

  zoom(factor, at = [this.width / 2, this.height / 2]) {
    const [x, y] = this.toMap(...at);
    const widest = (4 * Math.max(this.bounds[2] - this.bounds[0], this.bounds[3] - this.bounds[1])) / Math.min(this.width, this.height);
    const step = Math.min(Math.max(this.step * factor, this.leastStep), widest);
    this.x = x - (at[0] - this.width / 2) * step;
    this.y = y + (at[1] - this.height / 2) * step;
    this.step = step;
    this.draw();
  }

  toMap(px, py) {
    return [this.x + (px - this.width / 2) * this.step, this.y - (py - this.height / 2) * this.step];
  }

  toScreen(x, y) {
    return [(x - this.x) / this.step + this.width / 2, (this.y - y) / this.step + this.height / 2];
  }

  /** The visible bounds: [left, bottom, right, top]. */
  get view() {
    const [left, top] = this.toMap(0, 0);
    const [right, bottom] = this.toMap(this.width, this.height);
    return [left, bottom, right, top];
  }

  showReadout(text) {
    this.readout.textContent = text;
    this.readout.hidden = !text;
  }

  setHandle(share) {
    this.handle.hidden = share === null;
    if (share !== null) this.handle.style.left = `calc(${100 * share}% - 1px)`;
  }

  draw() {
    if (this.scheduled || !this.width) return;
    this.scheduled = true;
    requestAnimationFrame(() => { this.scheduled = false; this._paint(); });
  }

  _paint() {
    const context = this.canvas.getContext("2d");
    const ratio = this.canvas.width / this.width;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    for (const layer of this.layers) {
      context.save();
      context.globalAlpha = layer.opacity ?? 1;
      const [from, to] = [layer.from ?? 0, layer.to ?? 1];
      context.beginPath();
      context.rect(from * this.width, 0, (to - from) * this.width, this.height);
      context.clip();
      this._paintTiles(context, layer.id);
      context.restore();
    }
    for (const { image, bounds, opacity, smooth } of this.pictures) {
      if (!image.complete) continue;
      context.save();
      context.globalAlpha = opacity;
      const [x0, y0] = this.toScreen(bounds[0], bounds[3]);
      const [x1, y1] = this.toScreen(bounds[2], bounds[1]);
      context.imageSmoothingEnabled = smooth ?? true;
      context.drawImage(image, x0, y0, x1 - x0, y1 - y0);
      context.restore();
    }
    this.marks(context, (x, y) => this.toScreen(x, y));
    if (this.band) this._paintBand(context, this.band);
    if (this.rectangle) outline(context, (x, y) => this.toScreen(x, y), this.rectangle, "#ffffff");
  }

  _paintBand(context, [x0, y0, x1, y1]) {
    for (const [colour, line] of [["#000000bb", 4], ["#ffffff", 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = line;
      context.strokeRect(Math.min(x0, x1), Math.min(y0, y1), Math.abs(x1 - x0), Math.abs(y1 - y0));
    }
  }

  _paintTiles(context, id) {
    const level = Math.ceil(Math.log2((2 * HALF) / TILE / this.step) - 0.25);
    const z = Math.min(Math.max(level, 0), this.deepest);
    const side = (2 * HALF) / 2 ** z;
    const [left, bottom, right, top] = this.view;
    const clip = (low, high, own0, own1) => [Math.max(low, own0), Math.min(high, own1)];
    const [x0, x1] = clip(left, right, this.bounds[0], this.bounds[2]);
    const [y0, y1] = clip(bottom, top, this.bounds[1], this.bounds[3]);
    if (x0 >= x1 || y0 >= y1) return;
    context.imageSmoothingEnabled = side / TILE / this.step < 2;
    const column = (x) => Math.floor((x + HALF) / side);
    const row = (y) => Math.floor((HALF - y) / side);
    for (let ty = row(y1); ty <= row(y0); ty++) {
      for (let tx = column(x0); tx <= column(x1); tx++) this._paintTile(context, id, z, tx, ty);
    }
  }

  _paintTile(context, id, z, tx, ty) {
    // The tile itself, else a part of the nearest coarser one that is there.
    this._tile(id, z, tx, ty);
    for (let up = 0; up <= Math.min(z, 5); up++) {
      const tile = this.tiles.get(`${id}/${palette()}/${z - up}/${tx >> up}/${ty >> up}`);
      if (!tile?.ready) continue;
      const side = (2 * HALF) / 2 ** z;
      const [px, py] = this.toScreen(-HALF + tx * side, HALF - ty * side);
      const [qx, qy] = this.toScreen(-HALF + (tx + 1) * side, HALF - (ty + 1) * side);
      const part = TILE >> up;
      const sx = (tx - ((tx >> up) << up)) * part;
      const sy = (ty - ((ty >> up) << up)) * part;
      const [dx, dy] = [Math.round(px), Math.round(py)];
      context.drawImage(tile.image, sx, sy, part, part, dx, dy, Math.round(qx) - dx, Math.round(qy) - dy);
      return;
    }
  }

  _tile(id, z, x, y) {
    const key = `${id}/${palette()}/${z}/${x}/${y}`;
    if (this.tiles.has(key)) return;
    const tile = { image: new Image(), ready: false };
    this.tiles.set(key, tile);
    tile.image.onload = () => { tile.ready = true; this.draw(); };
    tile.image.onerror = () => setTimeout(() => this.tiles.delete(key), 2000);
    tile.image.src = `/api/layers/${id}/tiles/${z}/${x}/${y}.png?palette=${palette()}`;
    if (this.tiles.size > CACHED) this.tiles.delete(this.tiles.keys().next().value);
  }

  _listen() {
    const { canvas } = this;
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      canvas.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, at(event));
      this.moved = this.pointers.size > 1;
      this.start = at(event);
      if (this.drawing) this.band = [...this.start, ...this.start];
    });
    canvas.addEventListener("pointermove", (event) => {
      const now = at(event);
      const before = this.pointers.get(event.pointerId);
      if (!before) return this.on.point?.(...this.toMap(...now));
      if (Math.hypot(now[0] - this.start[0], now[1] - this.start[1]) > 4) this.moved = true;
      if (this.drawing && this.pointers.size === 1) {
        this.band = [...this.start, ...now];
        return this.draw();
      }
      const others = [...this.pointers].filter(([id]) => id !== event.pointerId).map(([, p]) => p);
      this.pointers.set(event.pointerId, now);
      if (others.length) {
        const apart = (p) => Math.hypot(p[0] - others[0][0], p[1] - others[0][1]) || 1;
        this.zoom(apart(before) / apart(now), [(now[0] + others[0][0]) / 2, (now[1] + others[0][1]) / 2]);
      } else if (this.moved) {
        canvas.classList.add("dragging");
        this.x -= (now[0] - before[0]) * this.step;
        this.y += (now[1] - before[1]) * this.step;
        this.draw();
      }
    });
    const up = (event) => {
      if (!this.pointers.delete(event.pointerId)) return;
      canvas.classList.remove("dragging");
      if (event.type === "pointercancel") { this.band = null; return; }
      if (this.drawing && this.moved) this._rectangle(this.band);
      else if (!this.moved) this.on.click?.(...this.toMap(...at(event)));
      this.band = null;
      this.draw();
    };
    canvas.addEventListener("pointerup", up);
    canvas.addEventListener("pointercancel", up);
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(Math.max(-100, Math.min(100, event.deltaY)) * 0.004), at(event));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this._key(event));
    for (const name of ["focus", "blur"]) canvas.addEventListener(name, () => this.draw());
  }

  _key(event) {
    const pan = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (pan) {
      const by = this.step * Math.min(this.width, this.height) * (event.shiftKey ? 0.02 : 0.12);
      this.x += pan[0] * by;
      this.y += pan[1] * by;
      this.on.point?.(this.x, this.y);
      this.draw();
    } else if (event.key === "+" || event.key === "=") this.zoom(0.7);
    else if (event.key === "-") this.zoom(1 / 0.7);
    else if (event.key === "0") this.fit();
    else if (event.key === "Enter" || event.key === " ") this.on.click?.(this.x, this.y);
    else return;
    event.preventDefault();
  }

  setDrawing(drawing) {
    this.drawing = drawing;
    this.canvas.classList.toggle("drawing", drawing);
  }

  _rectangle([x0, y0, x1, y1]) {
    const [left, top] = this.toMap(Math.min(x0, x1), Math.min(y0, y1));
    const [right, bottom] = this.toMap(Math.max(x0, x1), Math.max(y0, y1));
    this.rectangle = [left, bottom, right, top];
    this.on.rectangle?.(this.rectangle);
  }
}

/** A small cross in the middle, where the keys act. */
export function crosshair(context, viewer) {
  if (!viewer.canvas.matches(":focus-visible")) return;
  const [x, y] = [viewer.width / 2, viewer.height / 2];
  for (const [colour, line] of [["#000000aa", 4], ["#ffffff", 1.5]]) {
    context.strokeStyle = colour;
    context.lineWidth = line;
    context.beginPath();
    context.moveTo(x - 9, y);
    context.lineTo(x + 9, y);
    context.moveTo(x, y - 9);
    context.lineTo(x, y + 9);
    context.stroke();
  }
}

/** Bounds as a line that shows on any ground; returns their upper left corner on the screen. */
export function outline(context, toScreen, bounds, colour) {
  const [x0, y0] = toScreen(bounds[0], bounds[3]);
  const [x1, y1] = toScreen(bounds[2], bounds[1]);
  for (const [stroke, line] of [["#000000bb", 4], [colour, 2]]) {
    context.strokeStyle = stroke;
    context.lineWidth = line;
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  }
  return [x0, y0];
}
