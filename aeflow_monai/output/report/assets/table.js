// A table of cases or lesions: sorted by its headings, searched, filtered.

const PAGE = 50;

function sortedTable(word, columns, rows, filters, open) {
  const state = { column: columns.findIndex((column) => column.first), down: true, filter: 0, text: "", shown: PAGE };
  const body = el("tbody", {});
  const count = el("span", { class: "dim", role: "status" });
  const more = el("button", { class: "button", type: "button", onclick: () => { state.shown += 10 * PAGE; draw(); } });
  const heads = columns.map((column, index) => el("th", { scope: "col", class: column.right ? "right" : null },
    el("button", { type: "button", onclick: () => sortBy(index) }, column.name, el("span", { class: "arrow", "aria-hidden": "true" }))));
  const chips = filters.map((filter, index) => el("button", {
    class: "button", type: "button", onclick: () => { state.filter = index; state.shown = PAGE; draw(); },
  }, `${filter.name} ${rows.filter(filter.keep).length}`));
  const search = el("input", {
    type: "search", placeholder: "Search case or file", "aria-label": `Search ${word}s by case or file`,
    oninput: () => { state.text = search.value.toLowerCase(); state.shown = PAGE; draw(); },
  });
  const empty = el("p", { class: "empty", hidden: true }, `No ${word} fits.`);

  function sortBy(index) {
    state.down = state.column === index ? !state.down : Boolean(columns[index].right);
    state.column = index;
    draw();
  }

  function visible() {
    const { value } = columns[state.column];
    const found = rows.filter(filters[state.filter].keep).filter(
      (one) => `${one.case}\n${one.file || ""}`.toLowerCase().includes(state.text));
    const order = (a, b) => (typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a - b);
    return found.sort((a, b) => {
      const [first, second] = [value(a), value(b)];
      const known = (second !== undefined) - (first !== undefined); // what is unknown comes last
      return known || (state.down ? order(second, first) : order(first, second));
    });
  }

  function draw() {
    const found = visible();
    heads.forEach((head, index) => {
      const active = index === state.column;
      if (active) head.setAttribute("aria-sort", state.down ? "descending" : "ascending"); else head.removeAttribute("aria-sort");
      head.querySelector(".arrow").textContent = active ? (state.down ? "\u25bc" : "\u25b2") : "\u25b2";
    });
    chips.forEach((chip, index) => chip.setAttribute("aria-pressed", String(index === state.filter)));
    body.replaceChildren(...found.slice(0, state.shown).map((one) => el("tr", {
      class: "open", onclick: () => open(one, found),
    }, columns.map((column) => el("td", { class: [column.right && "right", column.class].filter(Boolean).join(" ") || null },
      column.cell(one))))));
    count.textContent = found.length === rows.length ? plural(rows.length, word) : share(found.length, plural(rows.length, word));
    empty.hidden = found.length > 0;
    more.hidden = found.length <= state.shown;
    more.textContent = `Show more (${found.length - state.shown} left)`;
  }

  draw();
  return [
    el("div", { class: "tools" }, el("div", { class: "grow" }, search), chips, count),
    el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, heads)), body), empty),
    el("div", { class: "tools" }, more),
  ];
}

function scoreMeter(score, threshold, top) {
  const at = (value) => Math.max(0, Math.min(1, value / top)) * 84;
  return svg("svg", { class: "meter", viewBox: "0 0 84 12", "aria-hidden": "true" },
    svg("rect", { class: "track", y: 4, width: 84, height: 4, rx: 2 }),
    svg("rect", { class: score > threshold ? "fill above" : "fill", y: 4, width: at(score), height: 4, rx: 2 }),
    svg("line", { class: "mark", x1: at(threshold), x2: at(threshold), y1: 0, y2: 12 }));
}
