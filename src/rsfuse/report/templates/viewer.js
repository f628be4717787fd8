// Pictures of one run, compared in four ways, with pan, zoom and tie points. No library.
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
const MOST_ZOOM = 32;        // screen pixels per preview pixel
const ARROW_PX = 20;         // length on the screen of a residual that 90 % stay below
const ROOM_PX = 30;          // side of the square that a tie point needs to be drawn at full size
const PICK_PX = 12;          // a tie point this near the pointer is described

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
    this.box = { w: 1, h: 1, density: 1 }; // until the page gives the canvas a place
    this.fit();
    this.prepareTiePoints();
    this.prepareBoxes();
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
    const { width, height } = this.canvas.getBoundingClientRect();
    if (!width || !height) return; // inside a closed chapter
    const { isWhole, view } = this;
    const density = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(width * density);
    this.canvas.height = Math.round(height * density);
    this.box = { w: width, h: height, density };
    if (isWhole) this.fit();
    else this.moveTo(view.zoom, view.x, view.y);
    this.drawNow(); // a resized canvas is empty: do not show it so until the next frame
  }

  get fitZoom() {
    return Math.min(this.box.w / this.size.w, this.box.h / this.size.h);
  }

  get isWhole() {
    return this.view.zoom <= this.fitZoom * 1.001;
  }

  fit() {
    this.moveTo(this.fitZoom, 0, 0);
  }

  moveTo(zoom, x, y) { // never out of sight: centred as a whole, else without needless margin
    this.view = { zoom: Math.min(Math.max(zoom, this.fitZoom), Math.max(MOST_ZOOM, this.fitZoom)) };
    const hold = (at, margin) =>
      this.isWhole ? margin / 2 : Math.min(Math.max(at, Math.min(0, margin)), Math.max(0, margin));
    this.view.x = hold(x, this.box.w - this.size.w * this.view.zoom);
    this.view.y = hold(y, this.box.h - this.size.h * this.view.zoom);
    this.canvas.classList.toggle("zoomed", !this.isWhole);
    this.draw();
  }

  moveBy(dx, dy) {
    this.moveTo(this.view.zoom, this.view.x + dx, this.view.y + dy);
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
      drawDivider(c, x, box.h);
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
    if (this.boxes) this.drawBoxes();
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

  visibleSpan() { // left and right end of the picture on the screen
    const right = this.view.x + this.size.w * this.view.zoom;
    return [Math.max(0, this.view.x), Math.min(this.box.w, right)];
  }

  dividerX() {
    const [left, right] = this.visibleSpan();
    return left + ((right - left) * this.settings.swipe) / 100;
  }

  divideAt(x) {
    const [left, right] = this.visibleSpan();
    this.changeSetting((100 * (x - left)) / (right - left));
  }

  awayFromDivider(x) {
    return this.layer && this.mode === "swipe" ? Math.abs(x - this.dividerX()) : Infinity;
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
    const size = Math.min(1, Math.max(0.6, room / ROOM_PX)); // smaller where they stand close
    const longer = niceBelow((size * ARROW_PX) / (this.residual90 * onScreen));
    let shown = 0;
    c.lineCap = "round";
    for (let i = 0; i < points.x.length; i++) {
      if (!this.isShown(i)) continue;
      shown += 1;
      const [x, y] = this.place(i);
      const seen = x > -60 && y > -60 && x < box.w + 60 && y < box.h + 60;
      if (!this.ties.shown || !seen) continue;
      if (points.kept[i]) {
        const colour = rampColour(points.r[i] / this.mostResidual);
        const vector = [points.dx[i] * onScreen * longer, points.dy[i] * onScreen * longer];
        drawArrow(c, [x, y], vector, { colour, size });
      } else {
        drawCross(c, [x, y], size);
      }
    }
    this.write("shown", `${shown} of ${points.x.length} shown`);
    this.write("exaggeration", `arrows ×${+longer.toPrecision(1)}`);
  }

  // ---- oriented boxes ------------------------------------------------------------------------

  prepareBoxes() { // corners: x1, y1 ... x4, y4 of each box, in pixels of the reference
    const { boxes } = this.data;
    if (!boxes) return;
    this.boxes = { ...boxes, score: boxes.start ?? 0, hidden: new Set() };
    this.write("score", this.boxes.score.toFixed(2));
  }

  changeBoxes(changes) {
    Object.assign(this.boxes, changes);
    this.write("score", this.boxes.score.toFixed(2));
    this.draw();
  }

  toggleClass(index, shown) {
    this.boxes.hidden[shown ? "delete" : "add"](index);
    this.draw();
  }

  isBoxShown(i) {
    const { scores, labels, score, hidden } = this.boxes;
    return scores[i] >= score && !hidden.has(labels[i]);
  }

  boxOnScreen(i) {
    const { view, ratio, boxes: { corners } } = this;
    const place = (value, k) => (value / ratio) * view.zoom + (k % 2 ? view.y : view.x);
    return corners[i].map(place);
  }

  drawBoxes() {
    const { context: c, box, boxes } = this;
    const size = Math.min(1.2, Math.max(0.6, this.view.zoom / this.ratio));
    let shown = 0;
    c.lineJoin = "round";
    for (let i = 0; i < boxes.scores.length; i++) {
      if (!this.isBoxShown(i)) continue;
      shown += 1;
      const [x, y, ...rest] = this.boxOnScreen(i);
      if (x < -400 || y < -400 || x > box.w + 400 || y > box.h + 400) continue;
      const path = new Path2D();
      path.moveTo(x, y);
      for (let k = 0; k < rest.length; k += 2) path.lineTo(rest[k], rest[k + 1]);
      path.closePath();
      strokeWithRim(c, path, boxes.colors[boxes.labels[i]], size);
    }
    this.write("boxes", `${shown} of ${boxes.scores.length} shown`);
  }

  boxAt(screenX, screenY) { // the smallest box under the pointer
    let [found, least] = [null, Infinity];
    for (let i = 0; this.boxes && i < this.boxes.scores.length; i++) {
      if (!this.isBoxShown(i)) continue;
      const at = this.boxOnScreen(i);
      let [inside, area] = [false, 0];
      for (let k = 0; k < 8; k += 2) {
        const [x1, y1, x2, y2] = [at[k], at[k + 1], at[(k + 2) % 8], at[(k + 3) % 8]];
        area += (x1 * y2 - x2 * y1) / 2;
        if (y1 > screenY !== y2 > screenY && screenX < ((x2 - x1) * (screenY - y1)) / (y2 - y1) + x1) {
          inside = !inside;
        }
      }
      if (inside && Math.abs(area) < least) [found, least] = [i, Math.abs(area)];
    }
    return found;
  }

  drawNames() {
    const { context: c, layer, mode, phase } = this;
    const { reference, [layer]: over } = this.data.names;
    if (!layer) return drawName(c, reference, 12);
    if (mode === "flicker") return drawName(c, phase ? over : reference, 12);
    if (mode !== "swipe") return drawName(c, `${reference} and ${over}`, 12);
    const x = this.dividerX();
    if (x > 100) drawName(c, reference, x - 10, "right");
    if (x < this.box.w - 130) drawName(c, over, x + 10);
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
    if (!slider) return; // there is nothing to compare
    radio.checked = true;
    const { min, max, step } = SETTINGS[mode];
    Object.assign(slider, { min, max, step });
    this.changeSetting(this.settings[mode]);
  }

  selectLayer(layer) {
    if (!this.images[layer]) return;
    this.layer = layer;
    const radio = this.root.querySelector(`input[value="${layer}"]`);
    if (radio) radio.checked = true;
    this.draw();
  }

  changeSetting(value) {
    const { label, unit, min, max } = SETTINGS[this.mode];
    const held = Math.min(Math.max(value, min), max);
    this.settings[this.mode] = held;
    const slider = this.control("setting");
    slider.value = held;
    slider.setAttribute("aria-valuetext", `${+held.toFixed(1)}${unit}`);
    this.write("setting", label);
    this.scheduleFlicker();
    this.draw();
  }

  scheduleFlicker() {
    clearTimeout(this.timer);
    if (this.mode !== "flicker") return;
    this.timer = setTimeout(() => {
      this.phase = 1 - this.phase;
      this.draw();
      this.scheduleFlicker();
    }, 500 / this.settings.flicker);
  }

  changeTies(changes) {
    Object.assign(this.ties, changes);
    this.write("probability", this.ties.probability.toFixed(2));
    this.draw();
  }

  // ---- words under the picture ---------------------------------------------------------------

  describe(screenX, screenY) {
    const { view, ratio, data } = this;
    const x = ((screenX - view.x) / view.zoom) * ratio;
    const y = ((screenY - view.y) / view.zoom) * ratio;
    const parts = [`x ${x.toFixed(1)}, y ${y.toFixed(1)} px`];
    if (data.geotransform) {
      const [a, b, c, d, e, f] = data.geotransform;
      const digits = Math.min(8, Math.max(0, Math.round(-Math.log10(Math.hypot(a, d))) + 1));
      const world = [a * x + b * y + c, d * x + e * y + f].map((v) => v.toFixed(digits));
      parts.push(`${world.join(", ")}${data.crs ? ` (${data.crs})` : ""}`);
    }
    const tie = this.tieAt(screenX, screenY);
    if (tie !== null) {
      const { r, p, kept, held, why } = data.points;
      const used = held[tie] < 0 ? "kept" : `kept, held-out error ${held[tie].toFixed(2)} px`;
      const fate = kept[tie] ? used : ["left out", why[tie]].filter(Boolean).join(": ");
      parts.push(`tie point: residual ${r[tie].toFixed(2)} px`);
      parts.push(`probability ${p[tie].toFixed(2)}, ${fate}`);
    }
    const box = this.boxAt(screenX, screenY);
    if (box !== null) {
      const { names, labels, scores } = this.boxes;
      parts.push(`${names[labels[box]]}, score ${scores[box].toFixed(2)}`);
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
}
