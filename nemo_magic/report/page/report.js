"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const byId = (id) => document.getElementById(id);

  // Charts near the screen are drawn first, the others when there is nothing else to do, all of them before printing.
  const figures = read("figures");
  const options = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
  const draw = (element) => {
    if (element.dataset.drawn) return;
    element.dataset.drawn = "begun";
    const figure = figures[element.id];
    const narrow = element.clientWidth < 520;
    if (narrow) {
      for (const axis of [figure.layout.xaxis, figure.layout.yaxis]) axis.fixedrange = true;
      for (const trace of figure.data) if (trace.type === "heatmap") { trace.showscale = false; trace.textfont = { size: 10 }; }
    }
    Plotly.newPlot(element, figure.data, figure.layout, { ...options, displayModeBar: narrow ? false : "hover" })
      .then(() => { element.dataset.drawn = "done"; });
  };
  // One at a time, so that the first can be read while the next is drawn.
  const waiting = [];
  const next = () => {
    const one = waiting.shift();
    if (waiting.length) setTimeout(next);
    draw(one);
  };
  const watch = new IntersectionObserver((entries) => {
    const near = entries.filter((one) => one.isIntersecting).map((one) => one.target);
    near.forEach((one) => watch.unobserve(one));
    const idle = waiting.length === 0;
    waiting.push(...near);
    if (idle && near.length) next();
  }, { rootMargin: "500px" });
  const charts = [...document.querySelectorAll(".chart")];
  charts.forEach((element) => watch.observe(element));
  const rest = [...charts], whenIdle = window.requestIdleCallback ?? ((call) => setTimeout(call, 50));
  const later = () => {
    if (waiting.length === 0 && rest.length) draw(rest.shift());
    if (rest.length) whenIdle(later);
  };
  window.addEventListener("load", () => whenIdle(later));
  window.addEventListener("beforeprint", () => charts.forEach(draw));

  const form = byId("filters");
  if (!form) return;
  const rows = read("rows"), names = read("names"), PAGE = 20;
  const list = byId("list"), found = byId("found"), showAll = byId("show-all");
  const value = (id) => { const element = byId(id); return element ? element.value : ""; };
  const words = (row) => {
    if (row.words === undefined) {
      const said = row.turns.flatMap((turn) => [turn.attack, turn.rewrite, turn.response]);
      row.words = [row.id, row.seed, ...said].join("\n").toLowerCase();
    }
    return row.words;
  };
  let matching = rows, page = 0;

  const make = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const texts = (row) => {
    const box = make("dl", "texts");
    const add = (name, text) => {
      if (text === null || text === undefined || text === "") return;
      const line = make("div");
      line.append(make("dt", "", name), make("dd", "", text));
      box.append(line);
    };
    add("seed", row.seed);
    row.turns.forEach((turn, number) => {
      const of = row.turns.length > 1 ? ` ${number + 1}` : "";
      add(`attacker${of}`, turn.attack);
      add(`shown${of}`, turn.rewrite);
      add(`defender${of}`, turn.response + (turn.finished ? "" : " … (cut by the length limit)"));
    });
    add("verdict", Object.entries(row.verdict).map(([name, said]) => `${name.replaceAll("_", " ")}: ${said}`).join(", "));
    return box;
  };
  const item = (row) => {
    const element = make("li"), head = make("div", "head"), button = make("button");
    button.type = "button";
    head.append(make("strong", "", `step ${row.step}`));
    if (names.length > 1) head.append(make("span", "", names[row.run]));
    head.append(make("span", `badge ${row.label}`, row.label));
    head.append(make("span", row.outcome === "attack succeeded" ? "badge won" : "badge", row.outcome));
    if (row.strategy) head.append(make("span", "badge", row.strategy));
    for (const [role, reward] of Object.entries(row.rewards)) head.append(make("span", "", `${role} ${reward > 0 ? "+" : ""}${reward}`));
    head.append(button);
    element.append(head);
    let shown = null;
    const show = (yes) => {
      if (yes && !shown) { shown = texts(row); element.append(shown); }
      if (!yes && shown) { shown.remove(); shown = null; }
      button.textContent = yes ? "Hide text" : "Show text";
      button.setAttribute("aria-expanded", String(yes));
    };
    button.addEventListener("click", () => show(!shown));
    show(showAll.checked);
    return element;
  };
  const display = () => {
    const pages = Math.max(1, Math.ceil(matching.length / PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    list.replaceChildren(...matching.slice(page * PAGE, (page + 1) * PAGE).map(item));
    found.textContent = `${matching.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} conversations`;
    byId("page").textContent = `page ${page + 1} of ${pages}`;
    byId("newer").disabled = page === 0;
    byId("older").disabled = page === pages - 1;
  };
  const filter = () => {
    const sought = value("q").toLowerCase().split(/\s+/).filter(Boolean);
    const exact = [["run", "f-run"], ["label", "f-label"], ["outcome", "f-outcome"], ["strategy", "f-strategy"]]
      .map(([key, id]) => [key, value(id)]).filter(([, wanted]) => wanted !== "");
    const from = value("f-from") === "" ? -Infinity : Number(value("f-from"));
    const to = value("f-to") === "" ? Infinity : Number(value("f-to"));
    matching = rows.filter((row) =>
      exact.every(([key, wanted]) => String(row[key]) === wanted) &&
      row.step >= from && row.step <= to && sought.every((word) => words(row).includes(word)));
    page = 0;
    display();
  };
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", (event) => { if (event.target !== showAll) filter(); });
  showAll.addEventListener("change", display);
  const turn = (by) => { page += by; display(); found.scrollIntoView({ block: "nearest" }); };
  byId("newer").addEventListener("click", () => turn(-1));
  byId("older").addEventListener("click", () => turn(1));
  display();
})();
