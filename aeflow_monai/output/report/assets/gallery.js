// Lists of pictures: the most anomalous, the borderline, what was missed and what was a false alarm.

const LISTED = 14;

function galleryLists(report) {
  const { cases } = report;
  const by = (order) => (list) => [...list].sort(order).slice(0, LISTED);
  const lists = [
    { name: "Most anomalous", note: "The highest scores.", cases: by((a, b) => b.anomaly_score - a.anomaly_score)(cases) },
    { name: "Borderline", note: "Scores next to the threshold, on either side of it.",
      cases: by((a, b) => Math.abs(a.anomaly_score - a.limit) - Math.abs(b.anomaly_score - b.limit))(cases) },
  ];
  if (report.labelled) {
    lists.splice(1, 0,
      { name: "Missed", note: "Abnormal, but not above the threshold; the lowest scores first.",
        cases: by((a, b) => a.anomaly_score - b.anomaly_score)(cases.filter((one) => one.outcome === "missed")) },
      { name: "False alarms", note: "Normal, but above the threshold; the highest scores first.",
        cases: by((a, b) => b.anomaly_score - a.anomaly_score)(cases.filter((one) => one.outcome === "false alarm")) });
  }
  return lists;
}

function gallery(report, open) {
  const lists = galleryLists(report);
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
  }, `${list.name} ${list.cases.length}`));

  function show(index) {
    tabs.forEach((tab, k) => { tab.setAttribute("aria-selected", String(k === index)); tab.tabIndex = k === index ? 0 : -1; });
    const list = lists[index];
    note.textContent = list.note;
    room.replaceChildren(...list.cases.map((one) => thumb(report, one, () => open(one, list.cases))));
    if (!list.cases.length) room.replaceChildren(el("p", { class: "empty" }, "None."));
  }
  show(0);
  return [el("div", { class: "tools", role: "tablist", "aria-label": "Lists" }, tabs), note, room];
}

function thumb(report, one, open) {
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
    frame, el("span", { class: "caption" }, el("b", { title: one.case }, one.case),
      el("span", { class: "state" }, sign(one.kind), `${fixed(one.anomaly_score)} \u00b7 ${one.outcome}`)));
}
