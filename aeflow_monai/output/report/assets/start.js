// From the data to the page.

function outcomeOf(one, labelled) {
  if (!labelled) return one.above ? "above threshold" : "below threshold";
  if (one.label === 1) return one.above ? "found" : "missed";
  return one.above ? "false alarm" : "passed";
}

function prepared(report) {
  report.labelled = report.kind === "evaluation";
  const stored = (report.model.thresholds || {}).case_threshold ?? report.metrics.threshold ?? (report.cases[0] || {}).threshold;
  report.threshold = stored ?? NaN;
  for (const one of report.cases) {
    one.limit = one.threshold ?? report.threshold;
    one.above = one.prediction === 1;
    one.outcome = outcomeOf(one, report.labelled);
    one.kind = report.labelled ? (one.label === 1 ? "abnormal" : "normal") : one.above ? "abnormal" : "normal";
  }
  const colours = [];
  for (let k = 0; k < 256; k += 1) colours.push([0, 2, 4].map((at) => parseInt(report.colours.substr(6 * k + at, 2), 16)));
  report.look = { colours, outline: true, lesion: true, threshold: (report.model.thresholds || {}).map_threshold ?? 0 };
  return report;
}

function placeText(one) {
  if (one.slice_from_0 === undefined) return "";
  const letter = { axial: "S", coronal: "A", sagittal: "R" }[one.plane];
  const position = one.position_mm === undefined ? "" : `, ${letter} ${one.position_mm < 0 ? MINUS : "+"}${Math.abs(one.position_mm).toFixed(1)} mm`;
  return `${one.plane}, ${one.axis} = ${one.slice_from_0}${position}`;
}

function peakText(one) {
  const voxel = [one.peak_i, one.peak_j, one.peak_k].filter((index) => index !== undefined);
  const signed = (mm) => `${mm < 0 ? MINUS : "+"}${Math.abs(mm).toFixed(1)}`;
  const place = one.peak_s_mm === undefined || voxel.length < 3 ? "" : `, R ${signed(one.peak_r_mm)} A ${signed(one.peak_a_mm)} S ${signed(one.peak_s_mm)} mm`;
  return voxel.length ? `${voxel.join(" ")}${place}` : "";
}

function partsText(one, joined) {
  const formula = joined === undefined ? "" : `: score = ${joined.replaceAll("*", "\u00d7")}`;
  return `map ${fixed(one.map_score)} and global term ${fixed(one.global_term)}, joined by a soft maximum, no sum${formula}`;
}

function caseFacts(report, one) {
  const facts = [`score ${fixed(one.anomaly_score)}, threshold ${fixed(one.limit)}`, report.labelled ? `${one.kind}, ${one.outcome}` : one.outcome];
  if (one.p_value !== undefined) facts.push(`p ${pValue(one.p_value)} among ${plural(one.n_held_out, "held-out normal")}`);
  if (one.peak_i !== undefined) facts.push(`map highest at the ${one.slice_from_0 === undefined ? "pixel" : "voxel"} ${peakText(one)}`);
  if (one.global_term !== undefined) facts.push(partsText(one, report.model.joined));
  if (one.global_term !== undefined && one.anomaly_score > one.limit && one.map_score <= one.limit) facts.push("abnormal as a whole, by its global term: the map may show nothing");
  if (one.ease > 1.5) facts.push("easier to reconstruct than normals, which no map shows");
  return facts;
}

function columnsOf(report) {
  const top = Math.max(...report.cases.map((one) => one.anomaly_score), report.threshold || 0) || 1;
  const wrong = ["missed", "false alarm"];
  const columns = [
    { name: "Case", class: "name", value: (one) => one.case, cell: (one) => el("button", { class: "link", type: "button" }, named(one.case)) },
    { name: "Score", right: true, first: true, value: (one) => one.anomaly_score, cell: (one) => [fixed(one.anomaly_score), scoreMeter(one.anomaly_score, one.limit, top)] },
    report.labelled && { name: "Label", value: (one) => one.kind, cell: (one) => el("span", { class: "state" }, sign(one.kind), one.kind) },
    { name: report.labelled ? "Outcome" : "Prediction", value: (one) => one.outcome, cell: (one) => el("span", { class: wrong.includes(one.outcome) ? "state wrong" : "state" },
      report.labelled ? null : sign(one.kind), one.outcome) },
    report.cases.some((one) => one.p_value !== undefined) && { name: "p among normals", right: true, value: (one) => one.p_value, cell: (one) => pValue(one.p_value) },
    report.volumes && { name: "Most anomalous slice, from 0", value: (one) => one.slice_from_0, cell: placeText },
    { name: "File", class: "name dim", value: (one) => one.file, cell: (one) => named(one.file) },
  ];
  return columns.filter(Boolean);
}

function filtersOf(report) {
  const all = { name: "All", keep: () => true };
  const names = report.labelled ? ["missed", "false alarm", "found", "passed"] : ["above threshold", "below threshold"];
  return [all, ...names.map((name) => ({ name: name[0].toUpperCase() + name.slice(1), keep: (one) => one.outcome === name }))];
}

function start() {
  const report = prepared(JSON.parse(document.getElementById("data").textContent));
  report.volumes = report.cases.some((one) => one.slice_from_0 !== undefined || (report.pictures[one.case] || {}).block);
  report.open = caseViewer(report);
  const what = report.labelled ? "Evaluation" : "Inference";
  document.title = `${what}: ${plural(report.cases.length, "case")}`;
  document.getElementById("kind").textContent = `${what} report`;
  const summary = el("section", { id: "summary" }, report.labelled ? summaryOfEvaluation(report) : summaryOfInference(report), el("p", {}, el("span", { class: "notice" }, report.notice)));
  const parts = [{ id: "summary", name: "Summary", node: summary }];
  if (report.cases.length) {
    const { box, curves } = scoreSection(report);
    parts.push(box);
    if (curves) parts.push(section("curves", "Curves and baselines", curves.node));
    parts.push(section("gallery", "Pictures", gallery(report, report.open)));
    parts.push(section("cases", "All cases", sortedTable("case", columnsOf(report), report.cases, filtersOf(report), report.open)));
  }
  parts.push(...[lesionSection(report), failureSection(report), aboutSection(report)].filter(Boolean));
  document.getElementById("main").replaceChildren(...parts.map((part) => part.node));
  const short = { curves: "Curves", cases: "Table", lesions: "Lesions", failures: "Failed", about: "About" };
  document.getElementById("nav").replaceChildren(...parts.map((part) => el("a", { href: `#${part.id}` }, short[part.id] || part.name)));
  document.getElementById("foot").textContent = `${report.notice} Written by aeflow_monai ${report.version}.`;
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && event.target.tagName !== "INPUT" && !document.getElementById("viewer").open) {
      const search = document.querySelector("#cases input[type=search]");
      if (search) { event.preventDefault(); search.focus(); }
    }
  });
  const wanted = location.hash.startsWith("#case=") && decodeURIComponent(location.hash.slice(6));
  const first = wanted && report.cases.find((one) => one.case === wanted);
  if (first) report.open(first);
}

start();
