// One case: its layers beside each other, a slider through its slices, other planes, keys.

const TALLEST = 420;

function caseViewer(report) {
  const dialog = document.getElementById("viewer");
  const look = { ...report.look, over: "map", opacity: 0.8 };
  let list = [];
  let current = null;
  let block = null;
  let at = [0, 0, 0];
  let panels = [];
  let slider = null;
  let onMove = () => {};

  async function open(one, among) {
    current = one;
    list = among || report.cases;
    block = null;
    draw();
    if (!dialog.open) { dialog.showModal(); dialog.focus(); }
    history.replaceState(null, "", `#case=${encodeURIComponent(one.case)}`);
    const kept = report.pictures[one.case] || {};
    const source = kept.block || kept.single;
    if (!source) return;
    const read = await readBlock(source);
    if (current !== one) return; // another one was opened meanwhile
    block = read;
    at = [block.peak, ...peakOf(block)];
    draw();
  }

  function step(by) {
    const next = list[list.indexOf(current) + by];
    if (next) open(next, list);
  }

  function draw() {
    const place = list.indexOf(current);
    const focused = document.activeElement && document.activeElement.dataset.move;
    const move = (by, name) => el("button", { class: "button", type: "button", "data-move": by, disabled: !list[place + by], onclick: () => step(by) }, name);
    dialog.replaceChildren(
      el("div", { class: "case-head" },
        el("h2", { id: "viewer-title" }, named(current.case)),
        el("div", { class: "facts-line" }, caseFacts(report, current).map((fact) => el("span", {}, fact))),
        el("div", { class: "moves" }, move(-1, "\u2190 Previous"), move(1, "Next \u2192"),
          el("button", { class: "button", type: "button", onclick: () => dialog.close(), "aria-label": "Close" }, "Close"))),
      el("div", { class: "case-body" }, block ? blockView() : noBlock()));
    if (block) redraw();
    if (!dialog.open || dialog.contains(document.activeElement)) return;
    const again = focused && dialog.querySelector(`[data-move="${focused}"]:not(:disabled)`); // what had the focus was replaced
    (again || dialog).focus();
  }

  function noBlock() {
    const kept = report.pictures[current.case];
    if (kept && kept.overlay) return el("img", { src: kept.overlay, alt: "Overlay", class: "whole" });
    if (kept) return el("p", { class: "empty" }, "Reading the pictures \u2026");
    return el("p", { class: "empty" }, "The report keeps pictures of the most interesting cases only, so that it stays small; of this one there are none. ",
      report.kind === "inference" ? "Its maps and its overlay lie in the folder of the results." : "An inference writes its maps.");
  }

  function blockView() {
    const has = (name) => Boolean(block.layers[name]);
    const many = block.numbers.length > 1;
    const own = [
      ["Image", { layer: "image", over: null, outline: false }],
      has("anomaly_map") && ["Anomaly map", { layer: "image" }],
      has("reconstruction") && ["Reconstruction", { layer: "reconstruction", over: null, outline: false, lesion: false }],
      has("residual") && ["Residual, \u00d7 2", { layer: "residual", over: null }],
    ].filter(Boolean);
    panels = own.map(([name, how]) => panel(name, block.plane, how));
    const others = many ? Object.keys(VIEWS).filter((view) => view !== block.plane) : [];
    const across = others.map((view) => panel(view[0].toUpperCase() + view.slice(1), view, { layer: "image", cross: true }));
    panels.push(...across);
    return [
      el("div", { class: "panels" }, panels.slice(0, own.length).map((one) => one.figure)),
      many ? track() : null, controls(),
      many ? el("div", { class: "panels planes" }, across.map((one) => one.figure)) : null,
      el("p", { class: "keys" }, many ? [el("kbd", {}, "\u2190"), " ", el("kbd", {}, "\u2192"), " slice, "] : null,
        el("kbd", {}, "P"), " ", el("kbd", {}, "N"), " previous, next case, ", el("kbd", {}, "M"), " map, mask or neither, ",
        el("kbd", {}, "+"), " ", el("kbd", {}, MINUS), " opacity, ", el("kbd", {}, "O"), " outline, ",
        has("lesion") ? [el("kbd", {}, "L"), " lesion, "] : null, el("kbd", {}, "Esc"), " close"),
      el("p", { class: "keys" }, "Pictures are reduced to at most 128 pixels a side and 64 slices (2D images: 320 pixels) and compressed; "
        + "outlines here are approximate. The files hold the values. Where nothing in the tissue stands out, the map may be highest in the noise of the air around it."),
    ];
  }

  function panel(name, view, how) {
    const canvas = el("canvas", { role: "img", "aria-label": `${name} of ${current.case}` });
    const [down, right] = VIEWS[view];
    const sides = block.positions_mm.length ? [["n", down[0]], ["s", down[1]], ["w", right[0]], ["e", right[1]]] : [];
    const frame = el("div", { class: "frame" }, canvas, sides.map(([where, letter]) => el("span", { class: `side ${where}`, "aria-hidden": "true" }, letter)));
    const one = { canvas, frame, view, how, figure: el("figure", {}, frame, el("figcaption", {}, name)) };
    if (block.numbers.length > 1) {
      canvas.addEventListener("click", (event) => {
        const box = canvas.getBoundingClientRect();
        at = planeOf(block, view, at).place([(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]);
        moved();
      });
    }
    return one;
  }

  function redraw() {
    for (const { canvas, frame, view, how } of panels) {
      const plane = planeOf(block, view, at);
      fit(canvas, frame.clientWidth, plane.ratio, TALLEST);
      paint(canvas, block, plane, { ...look, ...how });
    }
    onMove();
  }

  function moved() {
    if (slider) slider.value = at[0];
    redraw();
  }

  function track() {
    const { svg: picture, mark } = profileTrack(block, report.model.thresholds);
    const text = el("output", {});
    slider = el("input", { type: "range", min: 0, max: block.numbers.length - 1, step: 1, value: at[0], "aria-label": "Slice",
      oninput: () => { at = [Number(slider.value), at[1], at[2]]; redraw(); } });
    onMove = () => {
      mark(at[0]);
      text.textContent = sliceText(block, at[0]);
      slider.setAttribute("aria-valuetext", text.textContent);
    };
    return el("div", { class: "track-box" }, picture, el("div", { class: "slide" }, slider),
      el("div", { class: "where" }, text, el("button", { class: "button", type: "button", onclick: () => { at = [block.peak, ...peakOf(block)]; moved(); } },
        "Most anomalous slice")));
  }

  function controls() {
    const choices = [["map", "Map"], ["mask", "Mask"], [null, "Neither"]];
    const buttons = choices.map(([value, name]) => el("button", { class: "button", type: "button", "aria-pressed": String(look.over === value),
      "data-over": String(value), onclick: () => choose(value) }, name));
    const opacity = el("input", { type: "range", min: 0, max: 1, step: 0.05, value: look.opacity, id: "opacity",
      oninput: () => { look.opacity = Number(opacity.value); redraw(); } });
    const check = (key, name) => el("label", {}, el("input", { type: "checkbox", checked: look[key], id: `show-${key}`,
      onchange: (event) => { look[key] = event.target.checked; redraw(); } }), name);
    return el("div", { class: "controls" }, el("span", { class: "group", role: "group", "aria-label": "Over the image" }, buttons),
      el("label", {}, "Opacity", opacity), check("outline", "Outline above the map threshold"),
      block.layers.lesion ? check("lesion", "Lesion of the mask file (dashed)") : null, ramp());
  }

  function ramp() {
    const canvas = el("canvas", { width: 256, height: 1, "aria-hidden": "true" });
    const context = canvas.getContext("2d");
    look.colours.forEach((colour, k) => { context.fillStyle = rgb(colour); context.fillRect(k, 0, 1, 1); });
    return el("span", { class: "ramp" }, "0", canvas, `${fixed(block.map_top, 1)} SD of normals`);
  }

  function choose(value) {
    look.over = value;
    dialog.querySelectorAll("[data-over]").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.over === String(value))));
    redraw();
  }

  function toggle(key) {
    const box = document.getElementById(`show-${key}`);
    if (box) box.click();
  }

  function opaque(by) {
    look.opacity = Math.max(0, Math.min(1, look.opacity + by));
    document.getElementById("opacity").value = look.opacity;
    redraw();
  }

  dialog.addEventListener("close", () => history.replaceState(null, "", "#cases"));
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.toLowerCase();
    if (key === "n") step(1);
    else if (key === "p") step(-1);
    else if (!block) return;
    else if (key === "m") choose({ map: "mask", mask: null, null: "map" }[String(look.over)]);
    else if (key === "o") toggle("outline");
    else if (key === "l") toggle("lesion");
    else if (key === "+" || key === "=") opaque(0.1);
    else if (key === "-") opaque(-0.1);
    else if (["arrowleft", "arrowright"].includes(key) && block.numbers.length > 1 && event.target.type !== "range") {
      at = [Math.max(0, Math.min(block.numbers.length - 1, at[0] + (key === "arrowleft" ? -1 : 1))), at[1], at[2]];
      moved();
    } else return;
    event.preventDefault();
  });
  window.addEventListener("resize", () => { if (dialog.open && block) redraw(); });
  return open;
}

// Row and column of the largest map value of the most anomalous slice.
function peakOf(block) {
  const { rows, columns, peak } = block;
  const map = block.layers.anomaly_map;
  if (!map) return [rows >> 1, columns >> 1];
  const from = peak * rows * columns;
  let best = from;
  for (let k = from; k < from + rows * columns; k += 1) if (map[k] > map[best]) best = k;
  return [Math.floor((best - from) / columns), (best - from) % columns];
}

function sliceText(block, index) {
  const number = block.numbers[index];
  const { scores, axis, slices_from_0: numbers, n_slices: count } = block.profile;
  const letter = { axial: "S", coronal: "A", sagittal: "R" }[block.plane];
  const position = block.positions_mm[index];
  const parts = [axis ? `${block.plane}, ${axis} = ${numbers[number - 1]} (0 to ${count - 1})` : block.plane];
  if (position !== undefined) parts.push(`${letter} ${position < 0 ? MINUS : "+"}${Math.abs(position).toFixed(1)} mm`);
  const score = scores[number - 1];
  parts.push(score === null ? "skipped, no score" : `slice score ${fixed(score)}`);
  return parts.join(" \u00b7 ");
}

// Scores of all slices as bars above the slider; a dashed line is the slice threshold.
function profileTrack(block, thresholds) {
  const { scores } = block.profile;
  const known = scores.filter((score) => score !== null);
  const limit = thresholds && thresholds.slice_threshold;
  const top = Math.max(...known, limit || 0, 1);
  const [width, height] = [1000, 74];
  const first = block.numbers[0];
  const last = block.numbers[block.numbers.length - 1];
  const x = linear(first, last, 16, width - 16); // as the slider's thumb runs
  const y = linear(Math.min(0, ...known), top, height - 2, 4);
  const bar = Math.min(30, Math.max(1, (x(2) - x(1)) * 0.8));
  const bars = scores.map((score, index) => {
    const number = index + 1;
    if (number < first || number > last) return null;
    if (score === null) return svg("rect", { class: "gone", x: x(number) - bar / 2, y: 4, width: bar, height: height - 6 });
    const [from, to] = [y(0), y(score)];
    return svg("rect", { class: score > limit ? "score above" : "score", x: x(number) - bar / 2, y: Math.min(from, to), width: bar, height: Math.max(1, Math.abs(from - to)) });
  });
  const here = svg("line", { class: "here", y1: 0, y2: height });
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": "Scores of the slices" },
    bars, Number.isFinite(limit) && limit <= top ? svg("line", { class: "explore", x1: 0, x2: width, y1: y(limit), y2: y(limit), "vector-effect": "non-scaling-stroke" }) : null, here);
  const mark = (index) => { const place = x(block.numbers[index]); here.setAttribute("x1", place); here.setAttribute("x2", place); };
  return { svg: picture, mark };
}
