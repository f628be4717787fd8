"use strict";
// Pictures of one run, compared in four ways, with pan, zoom and tie points. No library, no request.
//
// Three frames of coordinates meet here. "Preview" pixels are those of the inlined pictures; the
// reference's own pixels are preview pixels times `ratio`; screen positions are CSS pixels of the
// canvas: screen = preview * view.zoom + (view.x, view.y).

const MODES = ["swipe", "flicker", "checker", "opacity"];
const SETTINGS = { // the one slider of each way of comparing: label, lowest, highest, step, value
  swipe: { label: "Divider", min: 0, max: 100, step: 0.5, value: 50, unit: " %" },
  flicker: { label: "Rate", min: 0.3, max: 2.5, step: 0.1, value: 1, unit: " per second" },
  checker: { label: "Square", min: 24, max: 240, step: 4, value: 96, unit: " px" },
  opacity: { label: "Blend", min: 0, max: 100, step: 1, value: 50, unit: " %" },
};
const RAMP = [[76, 201, 240], [255, 214, 10], [255, 77, 94]]; // as .ramp of the style sheet
const MOST_ZOOM = 32;        // screen pixels per preview pixel
const ARROW_PX = 20;         // length on the screen of a residual that 90 % stay below
const ROOM_PX = 30;          // side of the square that a tie point needs to be drawn at full size
const PICK_PX = 12;          // a tie point this near the pointer is described

function rampColour(share) {
  const at = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1);
  const i = Math.min(Math.floor(at), RAMP.length - 2);
  const mixed = RAMP[i].map((low, c) => Math.round(low + (RAMP[i + 1][c] - low) * (at - i)));
  return `rgb(${mixed.join(",")})`;
}

function niceBelow(value) { // the largest 1, 2 or 5 times a power of ten that does not exceed value
  const base = 10 ** Math.floor(Math.log10(value));
  return base * [5, 2, 1].find((step) => step * base <= value * 1.0001);
}

function quantile(values, share) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] : 0;
}

class Viewer {
  constructor(root) {
    this.root = root;
    this.canvas = root.querySelector("canvas");
    this.context = this.canvas.getContext("2d");
    this.data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
    this.images = {};
    for (const image of root.querySelectorAll("img")) this.images[image.dataset.role] = image;
    this.size = { w: this.images.reference.naturalWidth, h: this.images.reference.naturalHeight };
    this.ratio = this.data.reference[0] / this.size.w;
    this.mode = "swipe";
    this.layer = this.images.after ? "after" : this.images.before ? "before" : null;
    this.settings = Object.fromEntries(MODES.map((mode) => [mode, SETTINGS[mode].value]));
    this.phase = 0;
    this.view = null;
    this.pointers = new Map();
    this.prepareTiePoints();
    this.listen();
    this.selectMode(this.mode);
    new ResizeObserver(() => this.resize()).observe(this.canvas);
  }

  prepareTiePoints() {
    const points = this.data.points;
    const kept = points.r.filter((_, i) => points.kept[i]);
    this.residual90 = quantile(kept.length ? kept : points.r, 0.9) || 1e-3;
    this.mostResidual = niceBelow(this.residual90 * 1.6) || 1;
    this.ties = { shown: true, rejected: false, probability: 0 };
    this.write("most", `${+this.mostResidual.toPrecision(2)} px or more`);
  }

  // ---- drawing -------------------------------------------------------------------------------

  resize() {
    const box = this.canvas.getBoundingClientRect();
    if (!box.width || !box.height) return;
    const density = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(box.width * density);
    this.canvas.height = Math.round(box.height * density);
    const fitted = !this.view || this.view.zoom <= this.fitZoom * 1.001;
    this.box = { w: box.width, h: box.height, density };
    this.fitZoom = Math.min(box.width / this.size.w, box.height / this.size.h);
    if (fitted) this.fit();
    else this.moveTo(this.view.zoom, this.view.x, this.view.y);
    this.drawNow(); // a resized canvas is empty: do not show it so until the next frame
  }

  fit() {
    this.moveTo(this.fitZoom, 0, 0);
  }

  moveTo(zoom, x, y) { // keeps the picture in sight: centred where it is smaller than the canvas
    zoom = Math.min(Math.max(zoom, this.fitZoom), Math.max(MOST_ZOOM, this.fitZoom));
    const hold = (at, length, room) =>
      length <= room ? (room - length) / 2 : Math.min(0, Math.max(room - length, at));
    this.view = {
      zoom,
      x: hold(x, this.size.w * zoom, this.box.w),
      y: hold(y, this.size.h * zoom, this.box.h),
    };
    this.canvas.classList.toggle("zoomed", zoom > this.fitZoom * 1.001);
    this.draw();
  }

  zoomAt(factor, x = this.box.w / 2, y = this.box.h / 2) {
    const zoom = Math.min(Math.max(this.view.zoom * factor, this.fitZoom), MOST_ZOOM);
    const real = zoom / this.view.zoom;
    this.moveTo(zoom, x - (x - this.view.x) * real, y - (y - this.view.y) * real);
  }

  draw() {
    if (!this.drawing) {
      this.drawing = true;
      requestAnimationFrame(() => { this.drawing = false; this.drawNow(); });
    }
  }

  drawNow() {
    const { context: c, box, view, layer, mode } = this;
    const setting = this.settings[mode];
    c.setTransform(box.density, 0, 0, box.density, 0, 0);
    c.clearRect(0, 0, box.w, box.h);
    c.imageSmoothingEnabled = view.zoom * box.density < 3;
    c.imageSmoothingQuality = "high";
    if (!layer) {
      this.picture("reference");
    } else if (mode === "swipe") {
      const x = this.dividerX();
      this.picture("reference", (path) => path.rect(0, 0, x, box.h));
      this.picture(layer, (path) => path.rect(x, 0, box.w - x, box.h));
      this.drawDivider(x);
    } else if (mode === "flicker") {
      this.picture(this.phase ? layer : "reference");
    } else if (mode === "checker") {
      for (const odd of [0, 1]) this.picture(odd ? layer : "reference", this.squares(setting, odd));
    } else {
      this.picture("reference");
      c.globalAlpha = setting / 100;
      this.picture(layer);
      c.globalAlpha = 1;
    }
    if (this.data.points.x.length) this.drawTiePoints();
    this.drawNames();
  }

  picture(role, clip) {
    const { context: c, view, size } = this;
    c.save();
    if (clip) {
      const path = new Path2D();
      clip(path);
      c.clip(path);
    }
    c.drawImage(this.images[role], view.x, view.y, size.w * view.zoom, size.h * view.zoom);
    c.restore();
  }

  squares(side, odd) {
    return (path) => {
      for (let row = 0; row * side < this.box.h; row++) {
        for (let column = (row + odd) % 2; column * side < this.box.w; column += 2) {
          path.rect(column * side, row * side, side, side);
        }
      }
    };
  }

  dividerX() { // a share of the visible part of the picture
    const left = Math.max(0, this.view.x);
    const right = Math.min(this.box.w, this.view.x + this.size.w * this.view.zoom);
    return left + ((right - left) * this.settings.swipe) / 100;
  }

  drawDivider(x) {
    const { context: c, box } = this;
    c.fillStyle = "#fff";
    c.fillRect(x - 1, 0, 2, box.h);
    c.beginPath();
    c.arc(x, box.h / 2, 15, 0, 7);
    c.fill();
    c.fillStyle = "#1f2937";
    for (const side of [-1, 1]) {
      c.beginPath();
      c.moveTo(x + side * 10, box.h / 2);
      c.lineTo(x + side * 4, box.h / 2 - 5);
      c.lineTo(x + side * 4, box.h / 2 + 5);
      c.fill();
    }
  }

  isShown(i) {
    const points = this.data.points;
    return points.p[i] >= this.ties.probability && (points.kept[i] || this.ties.rejected);
  }

  place(i) { // a tie point on the screen
    const { view, ratio, data: { points } } = this;
    return [(points.x[i] / ratio) * view.zoom + view.x, (points.y[i] / ratio) * view.zoom + view.y];
  }

  drawTiePoints() {
    const { context: c, box, data: { points } } = this;
    const onScreen = this.view.zoom / this.ratio;
    const room = this.view.zoom * Math.sqrt((this.size.w * this.size.h) / points.x.length);
    this.symbol = Math.min(1, Math.max(0.6, room / ROOM_PX)); // smaller where they stand close
    const longer = niceBelow((this.symbol * ARROW_PX) / (this.residual90 * onScreen));
    let shown = 0;
    c.lineCap = "round";
    for (let i = 0; i < points.x.length; i++) {
      if (!this.isShown(i)) continue;
      shown += 1;
      const [x, y] = this.place(i);
      if (!this.ties.shown || x < -60 || y < -60 || x > box.w + 60 || y > box.h + 60) continue;
      if (points.kept[i]) {
        this.drawArrow(x, y, points.dx[i] * onScreen * longer, points.dy[i] * onScreen * longer,
          rampColour(points.r[i] / this.mostResidual), points.held[i]);
      } else {
        this.drawCross(x, y);
      }
    }
    this.write("shown", `${shown} of ${points.x.length} shown`);
    this.write("exaggeration", longer === 1 ? "arrows to scale" : `arrows ×${+longer.toPrecision(1)}`);
  }

  drawArrow(x, y, dx, dy, colour, heldOut) {
    const c = this.context;
    const length = Math.hypot(dx, dy);
    const head = Math.min(5 * this.symbol, length / 2);
    const radius = (heldOut ? 4 : 1.2) * this.symbol;
    const [ux, uy] = length ? [dx / length, dy / length] : [0, 0];
    const [tipX, tipY] = [x + dx, y + dy];
    const path = new Path2D();
    path.moveTo(x, y);
    path.lineTo(tipX, tipY);
    for (const side of [-1, 1]) {
      path.moveTo(tipX, tipY);
      path.lineTo(tipX - head * (ux + side * 0.6 * uy), tipY - head * (uy - side * 0.6 * ux));
    }
    path.moveTo(x + radius, y);
    path.arc(x, y, radius, 0, 7);
    this.strokeTwice(path, colour);
  }

  drawCross(x, y) {
    const half = 3 * this.symbol;
    const path = new Path2D(`M${x - half} ${y - half} l${2 * half} ${2 * half} m0 ${-2 * half} l${-2 * half} ${2 * half}`);
    this.strokeTwice(path, "#d5dbe3");
  }

  strokeTwice(path, colour) { // a dark rim keeps a line visible on any ground
    const c = this.context;
    c.strokeStyle = "rgba(8,12,18,.7)";
    c.lineWidth = 3.6 * this.symbol;
    c.stroke(path);
    c.strokeStyle = colour;
    c.lineWidth = 1.6 * this.symbol;
    c.stroke(path);
  }

  drawNames() {
    const query = this.layer === "after" ? "query, registered" : "query, before";
    if (!this.layer || (this.mode === "flicker" && !this.phase)) this.drawName("reference", 12, "left");
    else if (this.mode === "flicker") this.drawName(query, 12, "left");
    else if (this.mode === "swipe") {
      const x = this.dividerX();
      if (x > 100) this.drawName("reference", x - 10, "right");
      if (x < this.box.w - 130) this.drawName(query, x + 10, "left");
    } else this.drawName(`reference and ${query}`, 12, "left");
  }

  drawName(text, x, align) {
    const c = this.context;
    c.font = `13px ${getComputedStyle(document.body).fontFamily}`;
    const width = c.measureText(text).width + 18;
    const left = align === "right" ? x - width : x;
    c.fillStyle = "rgba(10,15,22,.74)";
    c.beginPath();
    c.roundRect(left, 12, width, 26, 7);
    c.fill();
    c.fillStyle = "#fff";
    c.textBaseline = "middle";
    c.fillText(text, left + 9, 25.5);
  }

  // ---- controls ------------------------------------------------------------------------------

  control(name) {
    return this.root.querySelector(`[data-control="${name}"]`);
  }

  write(name, text) {
    const target = this.root.querySelector(`[data-out="${name}"]`);
    if (target) target.textContent = text;
  }

  selectMode(mode) {
    this.mode = mode;
    const radio = this.root.querySelector(`input[value="${mode}"]`);
    const slider = this.control("setting");
    if (radio) radio.checked = true;
    if (slider) {
      const { min, max, step } = SETTINGS[mode];
      Object.assign(slider, { min, max, step });
      this.changeSetting(this.settings[mode]);
    }
  }

  selectLayer(layer) {
    if (!this.images[layer]) return;
    this.layer = layer;
    const radio = this.root.querySelector(`input[value="${layer}"]`);
    if (radio) radio.checked = true;
    this.redraw();
  }

  changeSetting(value) {
    const { label, unit, min, max } = SETTINGS[this.mode];
    this.settings[this.mode] = Math.min(Math.max(value, min), max);
    const slider = this.control("setting");
    slider.value = value;
    slider.setAttribute("aria-valuetext", `${+value.toFixed(1)}${unit}`);
    this.write("setting", label);
    this.scheduleFlicker();
    this.redraw();
  }

  scheduleFlicker() {
    clearTimeout(this.timer);
    if (this.mode !== "flicker") return;
    this.timer = setTimeout(() => {
      this.phase = 1 - this.phase;
      this.redraw();
      this.scheduleFlicker();
    }, 500 / this.settings.flicker);
  }

  redraw() {
    if (this.view) this.draw();
  }

  listen() {
    const on = (target, kind, act, options) => target && target.addEventListener(kind, act, options);
    on(this.control("mode"), "change", (e) => this.selectMode(e.target.value));
    on(this.control("layer"), "change", (e) => this.selectLayer(e.target.value));
    on(this.control("setting"), "input", (e) => this.changeSetting(+e.target.value));
    for (const [name, key] of [["ties", "shown"], ["rejected", "rejected"]]) {
      on(this.control(name), "change", (e) => { this.ties[key] = e.target.checked; this.redraw(); });
    }
    on(this.control("probability"), "input", (e) => {
      this.ties.probability = +e.target.value;
      this.write("probability", this.ties.probability.toFixed(2));
      this.redraw();
    });
    const actions = {
      in: () => this.zoomAt(1.6), out: () => this.zoomAt(1 / 1.6), fit: () => this.fit(),
      full: () => document.fullscreenElement ? document.exitFullscreen() : this.root.requestFullscreen(),
    };
    for (const button of this.root.querySelectorAll("[data-do]")) {
      on(button, "click", actions[button.dataset.do]);
    }
    const canvas = this.canvas;
    on(canvas, "keydown", (e) => this.key(e));
    on(canvas, "wheel", (e) => this.wheel(e), { passive: false });
    on(canvas, "pointerdown", (e) => this.press(e));
    on(canvas, "pointermove", (e) => this.drag(e));
    for (const kind of ["pointerup", "pointercancel"]) on(canvas, kind, (e) => this.release(e));
    on(canvas, "dblclick", (e) => this.zoomAt(2, e.offsetX, e.offsetY));
    // Two fingers belong to the picture; one finger scrolls the page until it is zoomed in.
    on(canvas, "touchstart", (e) => e.touches.length > 1 && e.preventDefault(), { passive: false });
  }

  key(event) {
    const step = 60;
    const { zoom, x, y } = this.view;
    const acts = {
      ArrowLeft: () => this.moveTo(zoom, x + step, y), ArrowRight: () => this.moveTo(zoom, x - step, y),
      ArrowUp: () => this.moveTo(zoom, x, y + step), ArrowDown: () => this.moveTo(zoom, x, y - step),
      "+": () => this.zoomAt(1.4), "=": () => this.zoomAt(1.4), "-": () => this.zoomAt(1 / 1.4),
      0: () => this.fit(), b: () => this.selectLayer(this.layer === "after" ? "before" : "after"),
    };
    if (this.layer) MODES.forEach((mode, i) => { acts[i + 1] = () => this.selectMode(mode); });
    if (event.ctrlKey || event.metaKey || event.altKey || !acts[event.key]) return;
    event.preventDefault();
    acts[event.key]();
  }

  wheel(event) { // a picture that was not clicked lets the page scroll
    if (!event.ctrlKey && document.activeElement !== this.canvas) {
      const hint = this.root.querySelector(".hint");
      hint.hidden = false;
      clearTimeout(this.hintTimer);
      this.hintTimer = setTimeout(() => { hint.hidden = true; }, 1200);
      return;
    }
    event.preventDefault();
    const notches = event.deltaY / (event.deltaMode ? 3 : 100);
    this.zoomAt(1.25 ** -Math.max(-4, Math.min(4, notches)), event.offsetX, event.offsetY);
  }

  nearDivider(x, touch) {
    return this.layer && this.mode === "swipe" && Math.abs(x - this.dividerX()) < (touch ? 28 : 14);
  }

  press(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
    if (this.pointers.size === 1) {
      const zoomed = this.canvas.classList.contains("zoomed");
      const touch = event.pointerType === "touch";
      this.dividing = this.nearDivider(event.offsetX, touch) || (touch && !zoomed && this.mode === "swipe");
    } else {
      this.dividing = false;
    }
    this.canvas.classList.add("dragging");
    this.describe(event.offsetX, event.offsetY);
  }

  drag(event) {
    const now = [event.offsetX, event.offsetY];
    this.canvas.classList.toggle("divider", Boolean(this.nearDivider(now[0]) || this.dividing));
    const last = this.pointers.get(event.pointerId);
    if (last && this.pointers.size === 1 && this.dividing) this.divideAt(now[0]);
    else if (last && this.pointers.size === 1) {
      this.moveTo(this.view.zoom, this.view.x + now[0] - last[0], this.view.y + now[1] - last[1]);
    } else if (last && this.pointers.size === 2) this.pinch(event.pointerId, last, now);
    if (last) this.pointers.set(event.pointerId, now);
    this.describe(...now);
  }

  divideAt(x) {
    const left = Math.max(0, this.view.x);
    const right = Math.min(this.box.w, this.view.x + this.size.w * this.view.zoom);
    this.changeSetting(Math.min(100, Math.max(0, (100 * (x - left)) / (right - left))));
  }

  pinch(id, last, now) {
    const [, other] = [...this.pointers].find(([key]) => key !== id);
    const span = (at) => Math.hypot(at[0] - other[0], at[1] - other[1]) || 1;
    const middle = (at) => [(at[0] + other[0]) / 2, (at[1] + other[1]) / 2];
    const [was, is] = [middle(last), middle(now)];
    this.zoomAt(span(now) / span(last), ...was);
    this.moveTo(this.view.zoom, this.view.x + is[0] - was[0], this.view.y + is[1] - was[1]);
  }

  release(event) {
    this.pointers.delete(event.pointerId);
    if (!this.pointers.size) {
      this.dividing = false;
      this.canvas.classList.remove("dragging");
    }
  }

  // ---- words under the picture ---------------------------------------------------------------

  describe(screenX, screenY) {
    const { view, ratio, data } = this;
    const x = ((screenX - view.x) / view.zoom) * ratio;
    const y = ((screenY - view.y) / view.zoom) * ratio;
    const parts = [`x ${x.toFixed(1)}, y ${y.toFixed(1)} px`];
    if (data.geotransform) {
      const [a, b, c, d, e, f] = data.geotransform;
      const digits = Math.min(8, Math.max(0, Math.ceil(-Math.log10(Math.hypot(a, d))) + 1));
      const world = [a * x + b * y + c, d * x + e * y + f].map((v) => v.toFixed(digits));
      parts.push(`${world.join(", ")}${data.crs ? ` (${data.crs})` : ""}`);
    }
    const tie = this.tieAt(screenX, screenY);
    if (tie !== null) {
      const { r, p, kept, held, why } = data.points;
      const fate = kept[tie] ? (held[tie] ? "held out" : "kept") : `left out${why[tie] ? `: ${why[tie]}` : ""}`;
      parts.push(`tie point: residual ${r[tie].toFixed(2)} px, probability ${p[tie].toFixed(2)}, ${fate}`);
    }
    this.write("readout", parts.join("  ·  "));
  }

  tieAt(screenX, screenY) {
    let [nearest, best] = [null, PICK_PX];
    for (let i = 0; this.ties.shown && i < this.data.points.x.length; i++) {
      if (!this.isShown(i)) continue;
      const [x, y] = this.place(i);
      const away = Math.hypot(x - screenX, y - screenY);
      if (away < best) [nearest, best] = [i, away];
    }
    return nearest;
  }

  // State in the address: report.html#mode=checker&layer=before&ties=0&probability=0.9&zoom=4
  restore(hash) {
    const wanted = new URLSearchParams(hash.replace(/^#/, ""));
    const set = (name, change) => {
      const target = wanted.has(name) && this.control(name);
      if (!target) return;
      change(target, wanted.get(name));
      target.dispatchEvent(new Event(target.type === "checkbox" ? "change" : "input"));
    };
    if (MODES.includes(wanted.get("mode"))) this.selectMode(wanted.get("mode"));
    if (wanted.has("layer")) this.selectLayer(wanted.get("layer"));
    for (const name of ["ties", "rejected"]) set(name, (box, value) => { box.checked = value !== "0"; });
    for (const name of ["setting", "probability"]) set(name, (slider, value) => { slider.value = value; });
    if (wanted.has("zoom")) this.zoomAt(Number(wanted.get("zoom")) || 1);
  }
}

async function start(root) {
  await Promise.all([...root.querySelectorAll("img")].map((image) => image.decode()));
  const viewer = new Viewer(root);
  viewer.resize();
  viewer.restore(location.hash);
}

for (const root of document.querySelectorAll(".viewer")) start(root);
for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    const text = document.getElementById(button.dataset.copy);
    getSelection().selectAllChildren(text);
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Press Ctrl+C"; // a local file may not touch the clipboard; it is selected
    }
  });
}
