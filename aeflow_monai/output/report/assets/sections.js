// The parts of the page, from the verdict down.

function section(id, name, ...children) {
  return { id, name, node: el("section", { id, "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title` }, name), children) };
}

const interval = (pair) => `${metric(pair[0])}\u2013${metric(pair[1])}`;

function tile(what, value, more, pair, at, mark) {
  const x = linear(0, 1, 3, 197);
  const bar = pair && svg("svg", { class: "interval", viewBox: "0 0 200 14", preserveAspectRatio: "none", role: "img", "aria-label": `95 % interval ${interval(pair)}` },
    svg("line", { class: "track", x1: 3, x2: 197, y1: 7, y2: 7 }),
    svg("line", { class: "range", x1: x(pair[0]), x2: Math.max(x(pair[1]), x(pair[0]) + 1), y1: 7, y2: 7 }),
    mark === undefined ? null : svg("line", { class: "mark", x1: x(mark), x2: x(mark), y1: 1, y2: 13 }),
    svg("rect", { class: "point", x: x(at) - 2, y: 2, width: 4, height: 10, rx: 1.5 }));
  return el("div", { class: "card tile" }, el("div", { class: "what" }, what), el("div", { class: "value" }, value), bar, el("div", { class: "more" }, more));
}

function summaryOfEvaluation(report) {
  const { metrics, cases, failures } = report;
  const counts = rates(cases, report.threshold);
  const { positive, negative } = counts;
  if (metrics.auroc === undefined) {
    return [el("h1", {}, `No verdict: ${cases.length ? cases.length === 1 ? `the only case is ${positive ? "abnormal" : "normal"}` : `all ${cases.length} cases are ${positive ? "abnormal" : "normal"}` : "no case was scored"}`),
      el("p", { class: "lead" }, "AUROC, sensitivity and specificity need normal and abnormal cases."), noteLines(report), failureLine(failures)];
  }
  const passed = negative - counts.alarms;
  const notes = noteLines(report);
  if (metrics.specificity_note) notes.push(el("p", { class: metrics.is_specificity_contradicted || metrics.is_normal_shifted ? "warn" : "fine" }, metrics.specificity_note));
  notes.push(uncertainThreshold(report));
  if (metrics.auroc_note === undefined && metrics.auroc_ci95[0] <= 0.5) metrics.auroc_note = "The interval of the AUROC includes 0.5, or lies below it."; // of an earlier version
  if (metrics.auroc_note) notes.push(el("p", { class: "warn" }, metrics.auroc_note));
  const [best] = Object.entries(metrics.baselines || {}).sort((a, b) => b[1] - a[1]);
  if (best && best[1] >= metrics.auroc) notes.push(el("p", { class: "warn" }, `A trivial baseline does as well: ${best[0].replaceAll("_", " ")} alone has an AUROC of ${metric(best[1])}.`));
  return [
    el("h1", {}, `${counts.hits} of ${plural(positive, "abnormal case")} found, ${passed} of ${plural(negative, "normal case")} passed`),
    el("p", { class: "lead" }, `At the stored threshold of ${fixed(report.threshold)}. Of two cases, one normal and one abnormal, the abnormal one has the higher score in ${(100 * metrics.auroc).toFixed(1)} % of pairs (AUROC ${metric(metrics.auroc)}).`),
    notes,
    el("div", { class: "tiles" },
      tile("Cases", String(cases.length), `${negative} normal, ${positive} abnormal${failures.length ? `; ${failures.length} more failed` : ""}`),
      tile("AUROC", metric(metrics.auroc), `95 % interval ${interval(metrics.auroc_ci95)}; chance 0.5`, metrics.auroc_ci95, metrics.auroc, 0.5),
      tile("Sensitivity", metric(metrics.sensitivity), `${share(counts.hits, positive)} abnormal; ${interval(metrics.sensitivity_ci95)}`, metrics.sensitivity_ci95, metrics.sensitivity),
      tile("Specificity", metric(metrics.specificity), `${share(passed, negative)} normal; ${interval(metrics.specificity_ci95)}${metrics.expected_specificity === undefined ? "" : `; expected ${metric(metrics.expected_specificity)}`}`,
        metrics.specificity_ci95, metrics.specificity, metrics.expected_specificity)),
    failureLine(failures),
  ];
}

function summaryOfInference(report) {
  const { cases, failures } = report;
  const above = cases.filter((one) => one.above);
  const top = [...cases].sort((a, b) => b.anomaly_score - a.anomaly_score).slice(0, 3);
  const { rank, n_held_out: held } = report.model;
  const expected = held ? rank / (held + 1) : null;
  const scored = report.run.n_scored ?? cases.length, exceed = report.run.n_above ?? above.length;
  return [
    el("h1", {}, scored ? `${exceed} of ${plural(scored, "case")} above the threshold` : "No case was scored"),
    scored > cases.length ? el("p", { class: "warn" }, `This page shows the ${cases.length} most anomalous. scores.csv has all.`) : null,
    top.length ? el("p", { class: "lead" }, "Most anomalous: ", top.map((one, k) => [k ? ", " : "",
      el("button", { class: "link", type: "button", onclick: () => report.open(one) }, one.case), ` (${fixed(one.anomaly_score)})`]), ".") : null,
    expected ? el("p", {}, `The threshold was set on ${plural(held, "held-out patient")}: about ${percent(1 - expected)} of new normal cases of the same kind exceed it too. A score says how much an image differs from the normal images of the training, not what it shows.`) : null,
    scored >= 10 && exceed > 0.8 * scored ? el("p", { class: "warn" }, "Nearly all are above it. Images of another modality, scanner or preparation are, ill or not: calibrate the model on normal ones of the same kind, or train on them.") : null,
    noteLines(report), uncertainThreshold(report),
    el("div", { class: "tiles" }, tile("Cases", String(scored), "scored"),
      tile("Above the threshold", String(exceed), report.threshold === undefined ? "" : `of ${fixed(report.threshold)}`),
      tile("Highest score", top.length ? fixed(top[0].anomaly_score) : "\u2013", "standard deviations of normals"),
      tile("Failed", String(failures.length), failures.length ? "not scored; see below" : cases.length ? "all were read and scored" : "there was none")),
    failureLine(failures),
  ];
}

function uncertainThreshold(report) {
  const { specificity_range: range, n_held_out: held } = report.model;
  return range ? el("p", { class: "warn" }, el("b", {}, `The threshold comes from ${plural(held, "patient")}. `), `By the chance of who they were, anything from ${percent(range[0])} to ${percent(range[1])} of new normal cases may stay below it. `
    + "Compare scores rather than predictions, or calibrate the model on normals of more patients.") : null;
}

// What the scores mean less for, as volumes for a model of 2D images.
const noteLines = (report) => report.run.notes.map((note) => el("p", { class: "warn" }, note));

function failureLine(failures) {
  return failures.length ? el("p", { class: "warn" }, `${plural(failures.length, "case")} failed and ${failures.length === 1 ? "is" : "are"} in none of these numbers: `,
    el("a", { href: "#failures" }, "which, and why"), ".") : null;
}

function scoreSection(report) {
  const { cases, labelled, threshold } = report;
  const held = (report.model.held_out_scores || []).map((score) => ({ anomaly_score: score }));
  const groups = [{ name: "held-out normals", kind: "held", cases: held }];
  if (labelled) {
    for (const [kind, label] of [["normal", 0], ["abnormal", 1]]) groups.push({ name: `${kind} cases`, kind, cases: cases.filter((one) => one.label === label) });
  } else groups.push({ name: "cases", kind: "plain", cases });
  const chart = strips(groups.filter((group) => group.cases.length), threshold, report.open);
  const curves = labelled && report.metrics.auroc !== undefined ? curveCards(report) : null;
  const box = section("scores", "Scores", el("div", { class: "card" },
    el("p", { class: "dim" }, "Each mark is a case, in standard deviations of normals; a click opens it. The line is the stored threshold: larger scores are called abnormal."),
    chart.box, explorer(report, held, [chart, ...(curves ? curves.charts : [])])));
  return { box, curves };
}

function explorer(report, held, charts) {
  const { cases, labelled, threshold } = report;
  const scores = cases.map((one) => one.anomaly_score);
  const text = el("output", { for: "explore" });
  const input = el("input", { id: "explore", type: "range", min: 0, max: 1000, step: 1, "aria-describedby": "explore-note" });
  const scale = scoreScale([...scores, ...held.map((one) => one.anomaly_score), threshold].filter(Number.isFinite), 0, 1000); // as the marks above it lie
  const home = Math.round(scale(threshold));
  const stored = labelled ? rates(cases, threshold) : null;
  const set = (value) => {
    const tried = rates(cases, value);
    const called = cases.filter((one) => one.anomaly_score > value).length;
    text.textContent = labelled && tried.positive && tried.negative
      ? `${fixed(value)}: sensitivity ${metric(tried.sensitivity)} (${share(tried.hits, tried.positive)}), specificity ${metric(tried.specificity)} (${share(tried.negative - tried.alarms, tried.negative)})`
      : `${fixed(value)}: ${share(called, cases.length)} above`;
    input.setAttribute("aria-valuetext", text.textContent);
    charts.forEach((chart) => chart.move(chart.box ? value : stored, value === threshold ? null : tried));
  };
  const reset = () => { input.value = home; set(threshold); };
  input.addEventListener("input", () => set(scale.invert(Number(input.value))));
  reset();
  return [input, el("div", { class: "explorer" },
    el("label", { for: "explore" }, el("b", {}, "Exploratory threshold "), text),
    el("span", { class: "dim", id: "explore-note" }, labelled ? "Chosen on these labels, so no estimate for new cases." : "Predictions go by the stored one."),
    el("button", { class: "button", type: "button", onclick: reset }, "Back to the stored one"))];
}

function curveCards(report) {
  const { cases, metrics } = report;
  const { roc, recall, prevalence } = curvePoints(cases);
  const one = squareChart(`ROC curve, area ${metric(metrics.auroc)}`, ["1 \u2212 specificity", "sensitivity"], roc, [0, 1], (c) => [1 - c.specificity, c.sensitivity]);
  const two = squareChart(`Precision-recall curve, average precision ${metric(metrics.average_precision)}`, ["recall (sensitivity)", "precision"], recall, [prevalence, prevalence], (c) => [c.sensitivity, c.precision]);
  const legend = el("div", { class: "legend" }, el("span", {}, sign("stored"), "stored threshold"), el("span", {}, sign("tried"), "exploratory"), el("span", {}, "dotted: chance"));
  const rows = [["Average precision", "average_precision"], ["F1 at the threshold", "f1"], ["Accuracy at the threshold", "accuracy"]];
  const node = el("div", { class: "charts" },
    el("div", { class: "card" }, el("h3", {}, `ROC curve \u2013 area ${metric(metrics.auroc)}`), one.chart, legend),
    el("div", { class: "card" }, el("h3", {}, `Precision and recall \u2013 average ${metric(metrics.average_precision)}`), two.chart, legend.cloneNode(true)),
    el("div", { class: "card last" }, el("h3", {}, "Against trivial baselines"), baselines(metrics),
      el("h3", {}, "More numbers"), el("dl", { class: "facts" }, rows.map(([name, key]) => [el("dt", {}, name), el("dd", {}, `${metric(metrics[key])} [${interval(metrics[`${key}_ci95`])}]`)]),
        el("dt", {}, "F1 if all were called abnormal"), el("dd", {}, metric(metrics.all_abnormal_f1)),
        el("dt", {}, "Best F1 of any threshold"), el("dd", {}, `${metric(metrics.oracle_best_f1)} (oracle: chosen on test labels)`)),
      el("p", { class: "dim" }, `Intervals are 95 % bootstraps over cases, ${metrics.n_bootstrap} resamples.`)));
  return { node, charts: [{ move: (stored, tried) => { one.move(stored, tried); two.move(stored, tried); } }] };
}

function baselines(metrics) {
  const rows = [["this model", metrics.auroc], ...Object.entries(metrics.baselines || {}).map(([name, value]) => [name.replaceAll("_", " "), value])];
  return el("div", { class: "bars" }, el("p", { class: "dim" }, "AUROC; of baselines in their better direction."),
    el("table", { class: "plain" }, el("tbody", {}, rows.map(([name, value], k) => el("tr", {}, el("th", { scope: "row" }, name),
      el("td", {}, svg("svg", { class: "bar-of", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
        svg("rect", { class: k ? "fill other" : "fill", width: Math.max(1, (value - 0.5) * 200), height: 10, rx: 2 }))), el("td", { class: "right" }, metric(value)))))));
}

function lesionSection(report) {
  const found = report.localisation;
  if (found.n_volumes === undefined) return null;
  const list = (rows) => el("dl", { class: "facts" }, rows.filter((row) => row[1] !== undefined).map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
  const with95 = (key) => found[key] === undefined ? undefined : `${metric(found[key])} [${interval(found[`${key}_ci95`])}]`;
  const cards = [];
  if (found.lesion_sensitivity) {
    cards.push(el("div", { class: "card" }, el("h3", {}, "Lesions at any threshold (FROC)"),
      el("p", { class: "dim" }, `${plural(found.n_lesions, "lesion")}. ${hitRule(found)}`),
      el("table", { class: "plain" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "False positives per volume"), el("th", { scope: "col", class: "right" }, "Lesions hit"))),
        el("tbody", {}, Object.entries(found.lesion_sensitivity).sort((a, b) => a[0] - b[0]).map(([rate, value]) => el("tr", {}, el("td", {}, rate), el("td", { class: "right" }, `${metric(value)} (${share(Math.round(value * found.n_lesions), found.n_lesions)})`))),
          el("tr", {}, el("td", {}, el("b", {}, "FROC score (mean)")), el("td", { class: "right" }, el("b", {}, metric(found.froc_score))))))));
  }
  cards.push(el("div", { class: "card" }, el("h3", {}, "Voxels"), list([
    ["Volumes", `${found.n_volumes}, ${found.n_abnormal_volumes} with lesions`], ["AUROC", metric(found.voxel_auroc)],
    ["Average precision", `${metric(found.voxel_average_precision)} (chance ${metric(found.lesion_fraction)})`], ["AUPRO", metric(found.aupro)],
    ["Dice at the map threshold", metric(found.dice)], ["Mean Dice of a volume", metric(found.mean_volume_dice)],
    ["Best Dice of any threshold", `${metric(found.oracle_best_dice)} (oracle: chosen on test labels)`]])));
  if (found.slice_auroc !== undefined) {
    cards.push(el("div", { class: "card" }, el("h3", {}, "Slices"), list([["Slices", `${found.n_slices}, ${found.n_abnormal_slices} abnormal`],
      ["AUROC", with95("slice_auroc")], ["Average precision", with95("slice_average_precision")]])));
  }
  const left = found.n_abnormal_without_mask;
  return section("lesions", "Lesions and voxels", el("p", { class: "dim" }, "Compared with the lesion masks, on the grid of the files."),
    el("div", { class: "two" }, cards), report.lesions.length ? lesionList(report) : null, left ? el("p", { class: "warn" }, `${plural(left, "abnormal case")} without a mask ${left === 1 ? "is" : "are"} left out here.`) : null);
}

// FROC and the list of lesions ask two questions; docs/report.md says both rules in these words.
const hitRule = (found) => `A lesion is hit if a peak of the map, a voxel with no larger one within ${found.candidate_radius_mm} mm, lies within ${found.hit_tolerance_mm} mm of it.`;
const FOUND_RULES = {
  anomaly_mask: "A lesion is found if the anomaly mask covers at least one voxel of it, so that the largest map value in it exceeds the map threshold; otherwise it is missed.",
};
const foundRule = (report) => FOUND_RULES[report.localisation.found_by]; // of earlier versions none

function lesionList(report) {
  const { lesions } = report;
  const limit = report.localisation.map_threshold;
  const rule = foundRule(report);
  if (!rule) {
    return [el("h3", { class: "list" }, plural(lesions.length, "lesion")),
      el("p", { class: "dim" }, "This evaluation, of another version, does not say by which rule lesions count as found, so that is left out. Evaluate again to see it."), lesionTable(report)];
  }
  return [el("h3", { class: "list" }, `Lesions at the map threshold of ${fixed(limit)}: ${share(lesions.filter((one) => one.found).length, lesions.length)} found`),
    el("p", { class: "dim" }, rule), lesionTable(report)];
}

function lesionTable(report) {
  const rule = foundRule(report);
  const found = (one) => (one.found ? "found" : "missed");
  const cases = new Map(report.cases.map((one) => [one.case, one]));
  const columns = [
    { name: "Case", class: "name", value: (one) => one.case, cell: (one) => el("button", { class: "link", type: "button" }, named(one.case)) },
    { name: "Lesion", right: true, value: (one) => one.lesion, cell: (one) => String(one.lesion) },
    { name: "Diameter of its size, mm", right: true, first: true, value: (one) => one.diameter_mm, cell: (one) => fixed(one.diameter_mm, 1) },
    { name: "Voxels", right: true, value: (one) => one.n_voxels, cell: (one) => String(one.n_voxels) },
  ];
  if (rule) columns.push(
    { name: "Largest map value in it, SD", right: true, value: (one) => one.map_value, cell: (one) => fixed(one.map_value) },
    { name: "At the map threshold", value: found, cell: (one) => el("span", { class: one.found ? "state" : "state wrong" }, found(one)) },
  );
  const filters = [{ name: "All", keep: () => true }];
  if (rule) filters.push({ name: "Missed", keep: (one) => !one.found }, { name: "Found", keep: (one) => one.found });
  return sortedTable("lesion", columns, report.lesions, filters, (one) => cases.has(one.case) && report.open(cases.get(one.case)));
}

function failureSection(report) {
  if (!report.failures.length) return null;
  return section("failures", "Failed cases", el("p", { class: "dim" }, "These were not scored; the others went on."),
    el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, ["Case", "File", "When", "What is wrong"].map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, report.failures.map((one) => el("tr", {}, el("td", { class: "name" }, named(one.case)), el("td", { class: "name" }, named(one.file)), el("td", {}, one.stage), el("td", { class: "wrap" }, one.message)))))));
}

function aboutSection(report) {
  const { versions, started, model, unused } = report.run;
  const { thresholds = {}, rank, n_held_out: held } = report.model;
  const rows = [["Run", started], ["Model", model && `SHA-256 ${model}\u2026`],
    ["Thresholds", thresholds.case_threshold === undefined ? "" : `case ${fixed(thresholds.case_threshold)}, slice ${fixed(thresholds.slice_threshold)}, map ${fixed(thresholds.map_threshold)} standard deviations of normals`],
    ["Case threshold set on", held ? `${plural(held, "held-out patient")}; ${percent(rank / (held + 1))} of new normal cases are expected below it` : ""],
    ["Not used of the data", Object.entries(unused || {}).map(([kind, count]) => `${count} ${kind}`).join(", ") + (Object.keys(unused || {}).length ? " (run.json lists them)" : "")],
    ["Pictures kept", `${Object.keys(report.pictures).length} of ${plural(report.cases.length, "case")}, ${Object.values(report.pictures).filter((one) => one.block).length} with all slices`],
    ["Versions", Object.entries(versions).map(([name, value]) => `${name} ${value}`).join(", ")]];
  return section("about", "About this report", el("div", { class: "card" }, el("dl", { class: "facts" },
    rows.filter((row) => row[1]).map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]))));
}
