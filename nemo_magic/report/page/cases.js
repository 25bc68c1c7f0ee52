"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  if (!byId("case-filters")) return;
  const read = (id) => JSON.parse(byId(id).textContent);
  const { make, verdict } = listing, names = read("evaluation-names");
  const checked = (id) => { const box = byId(id); return box !== null && box.checked; };

  const head = (row) => {
    const elements = [make("strong", "", row.task), make("span", "id", row.id)];
    if (row.label) elements.push(make("span", `badge ${row.label}`, row.label));
    for (const more of [row.category, row.method]) if (more) elements.push(make("span", "muted-inline", more));
    row.came.forEach((came, number) => {
      if (!came.length) return;
      const group = make("span", "came");
      if (names.length > 1) group.append(make("span", "", `${names[number]}:`));
      for (const [said, mood] of came) group.append(make("span", `badge ${mood}`, said));
      elements.push(group);
    });
    return elements;
  };
  const lines = (row) => !row.said.length ? null : row.said.flatMap((one) => [
    ...(names.length > 1 ? [["evaluation", names[one.of], "of"]] : []),
    ...(one.turns.every(([shown]) => shown !== one.request) ? [["request", one.request]] : []),
    ...one.turns.flatMap(([shown, said], number) => {
      const of = one.turns.length > 1 ? ` ${number + 1}` : "";
      return [[`shown${of}`, shown], [`defender${of}`, said]];
    }),
    ["verdict", verdict(one.verdict)],
  ]);
  const chosen = () => {
    const task = byId("c-task").value, outcome = byId("c-outcome").value;
    const against = checked("c-against"), differs = checked("c-differs");
    return (row) =>
      (task === "" || row.task === task) &&
      (outcome === "" || row.came.some((came) => came.some(([said]) => said === outcome))) &&
      (!against || row.against) && (!differs || row.differs);
  };
  listing.open({
    rows: read("case-rows"), noun: "cases", head, lines, chosen,
    ids: {
      form: "case-filters", list: "c-list", found: "c-found", all: "c-show", q: "c-q", page: "c-page", newer: "c-newer",
      older: "c-older",
    },
    words: (row) => [row.task, row.id, row.category, row.method, ...row.said.flatMap((one) => [one.request, ...one.turns.flat()])],
  });
})();
