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

  if (!byId("filters")) return;
  const names = read("names"), { make, verdict } = listing;
  const value = (id) => { const element = byId(id); return element ? element.value : ""; };
  const head = (row) => {
    const elements = [make("strong", "", `step ${row.step}`)];
    if (names.length > 1) elements.push(make("span", "", names[row.run]));
    elements.push(make("span", `badge ${row.label}`, row.label));
    elements.push(make("span", row.outcome === "attack succeeded" ? "badge won" : "badge", row.outcome));
    if (row.strategy) elements.push(make("span", "badge", row.strategy));
    for (const [role, reward] of Object.entries(row.rewards)) elements.push(make("span", "", `${role} ${reward > 0 ? "+" : ""}${reward}`));
    return elements;
  };
  const lines = (row) => [
    ["seed", row.seed],
    ...row.turns.flatMap((turn, number) => {
      const of = row.turns.length > 1 ? ` ${number + 1}` : "";
      if (turn.response === null) return [[`attacker${of}`, turn.attack], [`shown${of}`, "nothing: the attack was cut off before it had any text"]];
      const cut = turn.finished ? "" : " … (cut by the length limit)";
      return [[`attacker${of}`, turn.attack], [`shown${of}`, turn.rewrite], [`defender${of}`, turn.response + cut]];
    }),
    ["verdict", verdict(row.verdict)],
  ];
  const chosen = () => {
    const exact = [["run", "f-run"], ["label", "f-label"], ["outcome", "f-outcome"], ["strategy", "f-strategy"]]
      .map(([key, id]) => [key, value(id)]).filter(([, wanted]) => wanted !== "");
    const from = value("f-from") === "" ? -Infinity : Number(value("f-from"));
    const to = value("f-to") === "" ? Infinity : Number(value("f-to"));
    return (row) => exact.every(([key, wanted]) => String(row[key]) === wanted) && row.step >= from && row.step <= to;
  };
  listing.open({
    rows: read("rows"), noun: "conversations", head, lines, chosen,
    ids: { form: "filters", list: "list", found: "found", all: "show-all", q: "q", page: "page", newer: "newer", older: "older" },
    words: (row) => [row.id, row.seed, ...row.turns.flatMap((turn) => [turn.attack, turn.rewrite, turn.response ?? ""])],
  });
})();
