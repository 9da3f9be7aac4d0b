// Lists of pictures: the most anomalous, the borderline, what was missed and what was a false alarm.

const LISTED = 14; // two rows
const MOST = 7;
const BORDERLINE = 0.5; // standard deviations of normals, which scores are in

function galleryLists(report) {
  const { cases } = report;
  const near = (one) => Math.abs(one.anomaly_score - one.limit);
  const list = (name, rule, of, order, limit = LISTED) => {
    const shown = [...of].sort(order).slice(0, limit);
    return { name, cases: shown, all: of.length, note: rule };
  };
  const highest = (a, b) => b.anomaly_score - a.anomaly_score;
  const lists = [
    list("Most anomalous", `The highest scores: at most ${MOST}, no more than half of the cases, and at least one.`, cases, highest,
      Math.min(MOST, Math.max(1, Math.floor(cases.length / 2)))),
    list("Borderline", `Scores within ${BORDERLINE} of the threshold, on either side of it; the nearest first.`,
      cases.filter((one) => near(one) <= BORDERLINE), (a, b) => near(a) - near(b)),
  ];
  if (report.labelled) {
    lists.splice(1, 0,
      list("Missed", "Abnormal, but not above the threshold; the lowest scores first.",
        cases.filter((one) => one.outcome === "missed"), (a, b) => a.anomaly_score - b.anomaly_score),
      list("False alarms", "Normal, but above the threshold; the highest scores first.",
        cases.filter((one) => one.outcome === "false alarm"), highest));
  }
  return lists;
}

function gallery(report, open) {
  const lists = galleryLists(report);
  const anyPicture = Object.keys(report.pictures).length > 0;
  const note = el("p", { class: "dim" });
  const room = el("div", { class: "thumbs", role: "tabpanel", id: "thumbs" });
  const tabs = lists.map((list, index) => el("button", {
    class: "button", type: "button", role: "tab", "aria-controls": "thumbs", onclick: () => show(index), onkeydown: (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = (index + step + lists.length) % lists.length;
      show(next);
      tabs[next].focus();
    },
  }, `${list.name} ${list.cases.length < list.all ? share(list.cases.length, list.all) : list.all}`));

  function show(index) {
    tabs.forEach((tab, k) => { tab.setAttribute("aria-selected", String(k === index)); tab.tabIndex = k === index ? 0 : -1; });
    const list = lists[index];
    note.textContent = `${list.note}${anyPicture ? "" : ` No pictures were kept.${report.run.n_shards ? " Of shards they are the overlays, which --outputs overlay writes." : ""}`}`;
    room.replaceChildren(...list.cases.map((one) => thumb(report, one, anyPicture, () => open(one, list.cases))));
    if (!list.cases.length) room.replaceChildren(el("p", { class: "empty" }, "None."));
  }
  show(0);
  return [el("div", { class: "tools", role: "tablist", "aria-label": "Lists" }, tabs), note, room];
}

function thumb(report, one, framed, open) {
  const frame = el("span", { class: "frame" }, "no picture kept");
  const pictures = report.pictures[one.case];
  if (pictures && pictures.single) {
    readBlock(pictures.single).then((block) => {
      const plane = planeOf(block, block.plane, [0, 0, 0]);
      const canvas = el("canvas", {});
      fit(canvas, 190, plane.ratio, 190);
      canvas.removeAttribute("style");
      paint(canvas, block, plane, { ...report.look, layer: "image", over: "map", opacity: 0.85 });
      frame.replaceChildren(canvas);
    });
  } else if (pictures && pictures.overlay) {
    frame.replaceChildren(el("img", { src: pictures.overlay, alt: "" }));
  }
  return el("button", { class: "thumb", type: "button", onclick: open, "aria-label": `${one.case}, score ${fixed(one.anomaly_score)}` },
    framed ? frame : null, el("span", { class: "caption" }, el("b", {}, named(one.case)),
      el("span", { class: "state" }, sign(one.kind), `${fixed(one.anomaly_score)} \u00b7 ${one.outcome}`)));
}
