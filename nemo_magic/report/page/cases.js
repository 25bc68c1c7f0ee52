"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const form = byId("case-filters");
  if (!form) return;
  const read = (id) => JSON.parse(byId(id).textContent);
  const rows = read("case-rows"), names = read("evaluation-names"), PAGE = 20;
  const list = byId("c-list"), found = byId("c-found"), showAll = byId("c-show");
  const value = (id) => byId(id).value;
  const checked = (id) => { const box = byId(id); return box !== null && box.checked; };
  const words = (row) => {
    if (row.words === undefined) {
      const said = row.said.flatMap((one) => [one.request, ...one.turns.flat()]);
      row.words = [row.task, row.id, row.category, row.method, ...said].join("\n").toLowerCase();
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
    const add = (name, text, kind) => {
      if (text === null || text === undefined || text === "") return;
      const line = make("div", kind);
      line.append(make("dt", "", name), make("dd", "", text));
      box.append(line);
    };
    for (const one of row.said) {
      if (names.length > 1) add("evaluation", names[one.of], "of");
      if (one.turns.every(([shown]) => shown !== one.request)) add("request", one.request);
      one.turns.forEach(([shown, said], number) => {
        const of = one.turns.length > 1 ? ` ${number + 1}` : "";
        add(`shown${of}`, shown);
        add(`defender${of}`, said);
      });
      add("verdict", Object.entries(one.verdict).map(([name, said]) => `${name.replaceAll("_", " ")}: ${said}`).join(", "));
    }
    return box;
  };
  const item = (row) => {
    const element = make("li"), head = make("div", "head");
    head.append(make("strong", "", row.task), make("span", "id", row.id));
    if (row.label) head.append(make("span", `badge ${row.label}`, row.label));
    for (const more of [row.category, row.method]) if (more) head.append(make("span", "muted-inline", more));
    row.came.forEach((came, number) => {
      if (!came.length) return;
      const group = make("span", "came");
      if (names.length > 1) group.append(make("span", "", `${names[number]}:`));
      for (const [said, mood] of came) group.append(make("span", `badge ${mood}`, said));
      head.append(group);
    });
    element.append(head);
    if (!row.said.length) return element;
    const button = make("button");
    button.type = "button";
    head.append(button);
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
    found.textContent = `${matching.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} cases`;
    byId("c-page").textContent = `page ${page + 1} of ${pages}`;
    byId("c-newer").disabled = page === 0;
    byId("c-older").disabled = page === pages - 1;
  };
  const filter = () => {
    const sought = value("c-q").toLowerCase().split(/\s+/).filter(Boolean);
    const task = value("c-task"), outcome = value("c-outcome");
    const against = checked("c-against"), differs = checked("c-differs");
    matching = rows.filter((row) =>
      (task === "" || row.task === task) &&
      (outcome === "" || row.came.some((came) => came.some(([said]) => said === outcome))) &&
      (!against || row.against) && (!differs || row.differs) &&
      sought.every((word) => words(row).includes(word)));
    page = 0;
    display();
  };
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", (event) => { if (event.target !== showAll) filter(); });
  showAll.addEventListener("change", display);
  const turn = (by) => { page += by; display(); found.scrollIntoView({ block: "nearest" }); };
  byId("c-newer").addEventListener("click", () => turn(-1));
  byId("c-older").addEventListener("click", () => turn(1));
  display();
})();
