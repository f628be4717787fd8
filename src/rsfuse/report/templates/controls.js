// From hand to viewer: radio buttons, sliders, keys, wheel, mouse, touch, and the page's address.

function connectControls(viewer) {
  const on = (name, kind, act) =>
    viewer.control(name)?.addEventListener(kind, (event) => act(event.target));
  on("mode", "change", (radio) => viewer.selectMode(radio.value));
  on("layer", "change", (radio) => viewer.selectLayer(radio.value));
  on("setting", "input", (slider) => viewer.changeSetting(+slider.value));
  on("ties", "change", (box) => viewer.changeTies({ shown: box.checked }));
  on("rejected", "change", (box) => viewer.changeTies({ rejected: box.checked }));
  on("probability", "input", (slider) => viewer.changeTies({ probability: +slider.value }));
  on("score", "input", (slider) => viewer.changeBoxes({ score: +slider.value }));
  for (const box of viewer.root.querySelectorAll("[data-class]")) {
    box.addEventListener("change", () => viewer.toggleClass(+box.dataset.class, box.checked));
  }
  const fullScreen = () =>
    document.fullscreenElement ? document.exitFullscreen() : viewer.root.requestFullscreen();
  const acts = {
    in: () => viewer.zoomAt(1.6), out: () => viewer.zoomAt(1 / 1.6), fit: () => viewer.fit(),
    full: fullScreen,
  };
  for (const button of viewer.root.querySelectorAll("[data-do]")) {
    button.addEventListener("click", acts[button.dataset.do]);
  }
}

function connectKeys(viewer) {
  const step = 60;
  const acts = {
    ArrowLeft: () => viewer.moveBy(step, 0), ArrowRight: () => viewer.moveBy(-step, 0),
    ArrowUp: () => viewer.moveBy(0, step), ArrowDown: () => viewer.moveBy(0, -step),
    "+": () => viewer.zoomAt(1.4), "=": () => viewer.zoomAt(1.4), "-": () => viewer.zoomAt(1 / 1.4),
    0: () => viewer.fit(),
    b: () => viewer.selectLayer(viewer.layer === "after" ? "before" : "after"),
  };
  MODES.forEach((mode, i) => { acts[i + 1] = () => viewer.selectMode(mode); });
  viewer.canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !acts[event.key]) return;
    event.preventDefault();
    acts[event.key]();
  });
}

function connectWheel(viewer) { // a picture that was not clicked lets the page scroll
  const hint = viewer.root.querySelector(".hint");
  let timer;
  viewer.canvas.addEventListener("wheel", (event) => {
    if (event.ctrlKey || document.activeElement === viewer.canvas) {
      event.preventDefault();
      const notches = event.deltaY / (event.deltaMode ? 3 : 100);
      viewer.zoomAt(1.25 ** -Math.max(-4, Math.min(4, notches)), event.offsetX, event.offsetY);
      return;
    }
    hint.hidden = false;
    clearTimeout(timer);
    timer = setTimeout(() => { hint.hidden = true; }, 1200);
  }, { passive: false });
}

class Gestures { // one pointer moves the divider or the picture, two zoom
  constructor(viewer) {
    this.viewer = viewer;
    this.pointers = new Map(); // id -> where it was last
    this.dividing = false;
    const on = (kind, act) => viewer.canvas.addEventListener(kind, act);
    on("pointerdown", (e) => this.press(e));
    on("pointermove", (e) => this.move(e));
    on("pointerup", (e) => this.release(e));
    on("pointercancel", (e) => this.release(e));
    on("dblclick", (e) => viewer.zoomAt(2, e.offsetX, e.offsetY));
    // Two fingers belong to the picture; one finger scrolls the page until the picture is zoomed.
    const claim = (e) => { if (e.touches.length > 1) e.preventDefault(); };
    viewer.canvas.addEventListener("touchstart", claim, { passive: false });
  }

  press(event) {
    const { viewer, pointers } = this;
    viewer.canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
    const touch = event.pointerType === "touch";
    const reach = touch ? (viewer.isWhole ? Infinity : 28) : 14;
    this.dividing = pointers.size === 1 && viewer.awayFromDivider(event.offsetX) < reach;
    viewer.canvas.classList.add("dragging");
    viewer.describe(event.offsetX, event.offsetY);
  }

  move(event) {
    const { viewer, pointers } = this;
    const now = [event.offsetX, event.offsetY];
    const grips = this.dividing || viewer.awayFromDivider(now[0]) < 14;
    viewer.canvas.classList.toggle("divider", grips);
    const last = pointers.get(event.pointerId);
    if (last) {
      if (pointers.size === 2) this.pinch(event.pointerId, last, now);
      else if (this.dividing) viewer.divideAt(now[0]);
      else if (pointers.size === 1) viewer.moveBy(now[0] - last[0], now[1] - last[1]);
      pointers.set(event.pointerId, now);
    }
    viewer.describe(...now);
  }

  pinch(id, last, now) {
    const [, other] = [...this.pointers].find(([key]) => key !== id);
    const span = (at) => Math.hypot(at[0] - other[0], at[1] - other[1]) || 1;
    const middle = [(last[0] + other[0]) / 2, (last[1] + other[1]) / 2];
    this.viewer.zoomAt(span(now) / span(last), ...middle);
    this.viewer.moveBy((now[0] - last[0]) / 2, (now[1] - last[1]) / 2);
  }

  release(event) {
    this.pointers.delete(event.pointerId);
    if (this.pointers.size) return;
    this.dividing = false;
    this.viewer.canvas.classList.remove("dragging");
  }
}

// State in the address: report.html#mode=checker&layer=before&ties=0&probability=0.9&zoom=4
function restore(viewer, address) {
  const wanted = new URLSearchParams(address.replace(/^#/, ""));
  if (MODES.includes(wanted.get("mode"))) viewer.selectMode(wanted.get("mode"));
  if (wanted.has("layer")) viewer.selectLayer(wanted.get("layer"));
  for (const name of ["ties", "rejected", "setting", "probability", "score"]) {
    const control = wanted.has(name) && viewer.control(name);
    if (!control) continue;
    if (control.type === "checkbox") control.checked = wanted.get(name) !== "0";
    else control.value = wanted.get(name);
    control.dispatchEvent(new Event(control.type === "checkbox" ? "change" : "input"));
  }
  if (wanted.has("zoom")) viewer.zoomAt(Number(wanted.get("zoom")) || 1);
}

function start(root) {
  const viewer = new Viewer(root);
  viewer.resize();
  connectControls(viewer);
  connectKeys(viewer);
  connectWheel(viewer);
  new Gestures(viewer);
  restore(viewer, location.hash);
  root.dataset.ready = "yes";
}

window.addEventListener("load", () => { // by then every picture is there
  for (const root of document.querySelectorAll(".viewer")) start(root);
});

for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    const text = document.getElementById(button.dataset.copy);
    getSelection().selectAllChildren(text);
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "Copied";
    } catch { // a local file may not touch the clipboard; the text is selected
      button.textContent = "Press Ctrl+C";
    }
  });
}
