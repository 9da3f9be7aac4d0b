"use strict";
// Elements are made, never parsed: whatever a case is called stays text.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// A name whose middle is cut where there is no room, since both ends tell cases apart; a pointer over it shows all.
const TAIL = 10;
const SHORT = 18;
function named(name) {
  const signs = [...name];
  if (signs.length <= SHORT) return el("span", { title: name }, name);
  return el("span", { class: "cut", title: name }, el("span", {}, signs.slice(0, -TAIL).join("")), el("span", {}, signs.slice(-TAIL).join("")));
}

const MINUS = "\u2212";
const fixed = (value, digits = 2) =>
  value === undefined || value === null || Number.isNaN(value) ? "\u2013" : value.toFixed(digits).replace("-", MINUS);
const metric = (value) => fixed(value, 3); // as in the log, the terminal, the model card and docs/results.md
const pValue = (value) => (value === undefined ? "\u2013" : String(Number(value.toPrecision(2)))); // as in the terminal
const share = (part, whole) => `${part} of ${whole}`;
const percent = (value) => `${(100 * value).toFixed(value > 0.995 && value < 1 ? 1 : 0)} %`;
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

// What a case is, beside its colour: a circle is normal, a triangle abnormal, a square held-out.
const SHAPES = {
  normal: (r) => `M${-r},0a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0Z`,
  abnormal: (r) => `M0,${-1.25 * r}L${1.2 * r},${0.9 * r}L${-1.2 * r},${0.9 * r}Z`,
  held: (r) => `M${-0.8 * r},${-0.8 * r}h${1.6 * r}v${1.6 * r}h${-1.6 * r}Z`,
  stored: (r) => `M0,${-1.4 * r}L${1.4 * r},0L0,${1.4 * r}L${-1.4 * r},0Z`,
};
SHAPES.plain = SHAPES.normal;
SHAPES.tried = SHAPES.normal;

function sign(kind) {
  const dot = ["stored", "tried"].includes(kind) ? kind : `dot ${kind}`;
  return svg("svg", { class: "sign", viewBox: "-6 -6 12 12", "aria-hidden": "true" },
    svg("path", { class: dot, d: SHAPES[kind](4.5) }));
}
