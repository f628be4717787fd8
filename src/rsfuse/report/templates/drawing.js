"use strict";
// What is drawn on a picture: arrows, crosses, the divider, names. Functions of a canvas context
// `c` and of screen positions; they know nothing of the viewer.

const RAMP = [[76, 201, 240], [255, 214, 10], [255, 77, 94]]; // as .ramp of the style sheet

function rampColour(share) {
  const at = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1);
  const i = Math.min(Math.floor(at), RAMP.length - 2);
  const mixed = RAMP[i].map((low, band) => Math.round(low + (RAMP[i + 1][band] - low) * (at - i)));
  return `rgb(${mixed.join(",")})`;
}

function drawArrow(c, [x, y], [dx, dy], { colour, size }) {
  const length = Math.hypot(dx, dy);
  const [ux, uy] = length ? [dx / length, dy / length] : [0, 0];
  const head = Math.min(5 * size, length / 2);
  const radius = 4 * size;
  const path = new Path2D();
  path.moveTo(x, y);
  path.lineTo(x + dx, y + dy);
  for (const side of [-0.6, 0.6]) {
    path.moveTo(x + dx, y + dy);
    path.lineTo(x + dx - head * (ux + side * uy), y + dy - head * (uy - side * ux));
  }
  path.moveTo(x + radius, y);
  path.arc(x, y, radius, 0, 7);
  strokeWithRim(c, path, colour, size);
}

function drawCross(c, [x, y], size) {
  const path = new Path2D();
  for (const side of [-3 * size, 3 * size]) {
    path.moveTo(x - side, y - 3 * size);
    path.lineTo(x + side, y + 3 * size);
  }
  strokeWithRim(c, path, "#d5dbe3", size);
}

function strokeWithRim(c, path, colour, size) { // the dark rim keeps a line visible on any ground
  for (const [style, width] of [["rgba(8,12,18,.7)", 3.6], [colour, 1.6]]) {
    c.strokeStyle = style;
    c.lineWidth = width * size;
    c.stroke(path);
  }
}

function drawDivider(c, x, height) {
  c.fillStyle = "#fff";
  c.fillRect(x - 1, 0, 2, height);
  c.beginPath();
  c.arc(x, height / 2, 15, 0, 7);
  c.fill();
  c.fillStyle = "#1f2937";
  for (const side of [-1, 1]) {
    c.beginPath();
    c.moveTo(x + side * 10, height / 2);
    c.lineTo(x + side * 4, height / 2 - 5);
    c.lineTo(x + side * 4, height / 2 + 5);
    c.fill();
  }
}

function drawName(c, text, x, align = "left") {
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
