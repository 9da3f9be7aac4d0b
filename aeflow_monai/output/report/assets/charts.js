// Curves and scores. The page's one state is the threshold that is tried.

function curvePoints(cases) {
  const sorted = [...cases].sort((a, b) => b.anomaly_score - a.anomaly_score);
  const positive = cases.filter((one) => one.label === 1).length;
  const negative = cases.length - positive;
  let [hits, alarms] = [0, 0];
  const roc = [[0, 0]];
  const recall = [];
  sorted.forEach((one, index) => {
    if (one.label === 1) hits += 1; else alarms += 1;
    const next = sorted[index + 1];
    if (next && next.anomaly_score === one.anomaly_score) return;
    roc.push([alarms / negative, hits / positive]);
    recall.push([hits / positive, hits / (hits + alarms)]);
  });
  return { roc, recall: [[0, recall[0][1]], ...recall], prevalence: positive / cases.length };
}

function rates(cases, threshold) {
  const counts = { hits: 0, alarms: 0, positive: 0, negative: 0 };
  for (const one of cases) {
    const above = one.anomaly_score > threshold;
    if (one.label === 1) { counts.positive += 1; counts.hits += above; } else { counts.negative += 1; counts.alarms += above; }
  }
  counts.sensitivity = counts.hits / counts.positive;
  counts.specificity = 1 - counts.alarms / counts.negative;
  counts.precision = counts.hits / (counts.hits + counts.alarms);
  return counts;
}

function squareChart(title, labels, points, chance, place) {
  const [size, left, bottom, top] = [300, 42, 38, 10];
  const x = linear(0, 1, left, size - 8);
  const y = linear(0, 1, size - bottom, top);
  const path = points.map(([a, b], k) => `${k ? "L" : "M"}${x(a).toFixed(1)},${y(b).toFixed(1)}`).join("");
  const [last] = points.slice(-1);
  const marks = svg("g", {});
  const ticks = [0, 0.25, 0.5, 0.75, 1];
  const chart = svg("svg", { viewBox: `0 0 ${size} ${size}`, role: "img", "aria-label": title },
    ticks.map((t) => [
      svg("line", { class: "axis", x1: x(t), x2: x(t), y1: y(0), y2: y(1) }),
      svg("line", { class: "axis", x1: x(0), x2: x(1), y1: y(t), y2: y(t) }),
      svg("text", { x: x(t), y: y(0) + 15, "text-anchor": "middle" }, String(t)),
      svg("text", { x: x(0) - 6, y: y(t) + 4, "text-anchor": "end" }, String(t)),
    ]),
    svg("text", { x: (x(0) + x(1)) / 2, y: size - 4, "text-anchor": "middle" }, labels[0]),
    svg("text", { transform: `translate(11 ${(y(0) + y(1)) / 2}) rotate(-90)`, "text-anchor": "middle" }, labels[1]),
    svg("path", { class: "area", d: `${path}L${x(last[0])},${y(0)}L${x(points[0][0])},${y(0)}Z` }),
    svg("line", { class: "chance", x1: x(0), y1: y(chance[0]), x2: x(1), y2: y(chance[1]) }),
    svg("path", { class: "curve", d: path }), marks);
  const move = (stored, tried) => {
    marks.replaceChildren(...[[stored, "stored"], [tried, "tried"]].map(([counts, kind]) => {
      const point = counts && place(counts);
      return point && point.every(Number.isFinite)
        ? svg("path", { class: kind, d: SHAPES[kind](5), transform: `translate(${x(point[0])} ${y(point[1])})` }) : "";
    }));
  };
  return { chart, move };
}

// Each group of scores on a line of its own; cases at the same place lie above each other.
function strips(groups, threshold, open) {
  const box = el("div", {});
  const everything = groups.flatMap((group) => group.cases.map((one) => one.anomaly_score));
  if (Number.isFinite(threshold)) everything.push(threshold);
  let tried = threshold;
  let draw = () => {};
  let scale = null;
  const redraw = () => {
    const width = Math.max(280, box.clientWidth || 800);
    scale = scoreScale(everything, 8, width - 8);
    const lanes = groups.map((group) => swarm(group, scale));
    let top = 24;
    const rows = lanes.map(({ group, placed, height }) => {
      const name = [
        svg("path", { class: `dot ${group.kind}`, d: SHAPES[group.kind](4.5), transform: `translate(14 ${top + 8})` }),
        svg("text", { x: 25, y: top + 12 }, `${group.name} (${group.cases.length})`)];
      const middle = top + 22 + height / 2;
      const row = svg("g", {},
        name, svg("line", { class: "axis", x1: 8, x2: width - 8, y1: middle, y2: middle }),
        placed.map(({ one, x, y, r }) => svg("path", {
          class: `dot ${group.kind}`, d: SHAPES[group.kind](r), transform: `translate(${x.toFixed(1)} ${(middle + y).toFixed(1)})`,
          onclick: () => one.case !== undefined && open(one),
        }, svg("title", {}, one.case === undefined ? fixed(one.anomaly_score) : `${one.case}: ${fixed(one.anomaly_score)}`))));
      top += height + 30;
      return row;
    });
    const height = top + 42;
    const line = svg("g", {});
    draw = () => line.replaceChildren(...marksAt(scale, threshold, tried, top, width));
    draw();
    box.replaceChildren(svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
      "aria-label": `Scores of ${groups.map((group) => `${group.cases.length} ${group.name}`).join(", ")}` },
      line, rows, scale.ticks(Math.max(3, Math.round(width / 110))).map((tick) => [
        svg("line", { class: "axis", x1: scale(tick), x2: scale(tick), y1: top, y2: top + 5 }),
        svg("text", { class: "tick", x: scale(tick), y: top + 18, "text-anchor": "middle" }, tickText(tick))]),
      svg("text", { x: width / 2, y: top + 37, "text-anchor": "middle" }, scale.bent ? "score, on a bent axis (asinh): the same distance is a larger difference farther out" : "score")));
  };
  let before = 0;
  new ResizeObserver(() => { if (box.clientWidth !== before) { before = box.clientWidth; redraw(); } }).observe(box);
  return { box, move: (value) => { tried = value; draw(); } };
}

function marksAt(scale, threshold, tried, bottom, width) {
  const found = [];
  const line = (value, kind) => svg("line", { class: kind, x1: scale(value), x2: scale(value), y1: 18, y2: bottom });
  if (Number.isFinite(threshold)) {
    const place = scale(threshold);
    const anchor = place < 80 ? "start" : place > width - 80 ? "end" : "middle";
    found.push(line(threshold, "threshold"), svg("text", { class: "strong", x: place, y: 12, "text-anchor": anchor }, `threshold ${fixed(threshold)}`));
  }
  if (Number.isFinite(tried) && tried !== threshold) found.push(line(tried, "explore"));
  return found;
}

function swarm(group, scale) {
  const many = group.cases.length > 220;
  const r = many ? 2.6 : group.cases.length > 80 ? 3.4 : 4.5;
  const columns = new Map();
  const placed = [...group.cases].sort((a, b) => a.anomaly_score - b.anomaly_score).map((one) => {
    const x = scale(one.anomaly_score);
    const column = Math.round(x / (2 * r));
    const count = columns.get(column) || 0;
    columns.set(column, count + 1);
    return { one, x, r, step: count % 2 ? -(count + 1) / 2 : count / 2 };
  });
  const most = Math.max(1, ...columns.values());
  const gap = Math.min(2 * r, 110 / most);
  placed.forEach((spot) => { spot.y = spot.step * gap; });
  return { group, placed, height: Math.max(18, most * gap + 2 * r) };
}
