"use strict";
// A list with a search, filters, pages, and texts that are hidden until they are asked for: of conversations, of cases.
const listing = (() => {
  const PAGE = 20;
  const byId = (id) => document.getElementById(id);
  const make = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const verdict = (said) => Object.entries(said).map(([name, value]) => `${name.replaceAll("_", " ")}: ${value}`).join(", ");

  // What a row says, as [name, text, class] lines; lines without text are left out.
  const texts = (lines) => {
    const box = make("dl", "texts");
    for (const [name, text, kind] of lines) {
      if (text === null || text === undefined || text === "") continue;
      const line = make("div", kind);
      line.append(make("dt", "", name), make("dd", "", text));
      box.append(line);
    }
    return box;
  };

  // ids: of the form, list, found, all (the box that shows all texts), q, page, newer and older. Of a row: words, what
  // is searched; head, elements; lines, as above, or null where it has no text. chosen: a test by the form's other fields.
  const open = ({ rows, noun, ids, words, head, lines, chosen }) => {
    const list = byId(ids.list), found = byId(ids.found), all = byId(ids.all);
    let matching = rows, page = 0;
    const searched = (row) => row.words ??= words(row).join("\n").toLowerCase();
    const item = (row) => {
      const element = make("li"), top = make("div", "head"), said = lines(row);
      top.append(...head(row));
      element.append(top);
      if (said === null) return element;
      const button = make("button");
      button.type = "button";
      top.append(button);
      let shown = null;
      const show = (yes) => {
        if (yes && !shown) { shown = texts(said); element.append(shown); }
        if (!yes && shown) { shown.remove(); shown = null; }
        button.textContent = yes ? "Hide text" : "Show text";
        button.setAttribute("aria-expanded", String(yes));
      };
      button.addEventListener("click", () => show(!shown));
      show(all.checked);
      return element;
    };
    const display = () => {
      const pages = Math.max(1, Math.ceil(matching.length / PAGE));
      page = Math.min(Math.max(page, 0), pages - 1);
      list.replaceChildren(...matching.slice(page * PAGE, (page + 1) * PAGE).map(item));
      found.textContent = `${matching.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} ${noun}`;
      byId(ids.page).textContent = `page ${page + 1} of ${pages}`;
      byId(ids.newer).disabled = page === 0;
      byId(ids.older).disabled = page === pages - 1;
    };
    const filter = () => {
      const sought = byId(ids.q).value.toLowerCase().split(/\s+/).filter(Boolean), test = chosen();
      matching = rows.filter((row) => test(row) && sought.every((word) => searched(row).includes(word)));
      page = 0;
      display();
    };
    const turn = (by) => { page += by; display(); found.scrollIntoView({ block: "nearest" }); };
    const form = byId(ids.form);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", (event) => { if (event.target !== all) filter(); });
    all.addEventListener("change", display);
    byId(ids.newer).addEventListener("click", () => turn(-1));
    byId(ids.older).addEventListener("click", () => turn(1));
    display();
  };
  return { make, verdict, open };
})();
