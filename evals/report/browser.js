"use strict";
// The browser of samples. All text enters the page as text, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("sample-data").textContent);
  const points = JSON.parse(document.getElementById("point-data").textContent);
  const words = JSON.parse(document.getElementById("label-data").textContent);
  const root = document.getElementById("browser");
  const PER_PAGE = 10;
  const names = ["question", "model", "condition", "permission", "budget", "verdict", "kind", "answer", "context",
    "tokens", "ttft", "error", "planted"];
  const samples = data.samples.map((values) => Object.fromEntries(names.map((name, place) => [name, values[place]])));
  const questions = data.questions.map(([dataset, id, text, answers, kind, gold]) =>
    ({ dataset, id, text, answers, kind, gold: new Set(gold), samples: [] }));
  for (const sample of samples) questions[sample.question].samples.push(sample);
  const models = [...new Set(samples.map((sample) => sample.model))].sort();
  const state = { dataset: "", condition: "", permission: "", budget: "", verdict: "", model: "", kind: "", text: "", page: 0 };
  // Begins where the headline ends: its model at the longest context.
  const [, ...start] = points[words.start] ?? [];
  ["dataset", "condition", "permission", "budget"].forEach((name, place) => { state[name] = String(start[place] ?? ""); });

  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "class") element.className = value;
      else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  };
  const distinct = (values) => [...new Set(values)];
  const number = (value) => value.toLocaleString("en-US");

  // Which choices each filter has follows from those before it.
  const filters = [
    ["dataset", "dataset", () => distinct(questions.map((question) => question.dataset)), false],
    ["condition", "documents", () => distinct(among("dataset").map((sample) => sample.condition)), false],
    ["permission", "instruction", () => distinct(among("dataset", "condition").map((sample) => sample.permission)), false],
    ["budget", "budget", () => distinct(among("dataset", "condition", "permission").map((sample) => sample.budget))
      .sort((a, b) => a - b), false],
    ["verdict", "verdict", () => distinct(among("dataset", "condition", "permission", "budget")
      .map((sample) => sample.verdict)).sort(), true],
    ["model", "of model", () => models, true],
    ["kind", "kind of question", () => distinct(questions.map((question) => question.kind)).sort(), true],
  ];
  const among = (...fields) => samples.filter((sample) => fields.every((name) =>
    name === "dataset" ? questions[sample.question].dataset === state.dataset : String(sample[name]) === String(state[name])));
  const label = (name, value) => (words[name] || {})[value] || (name === "budget" ? number(value) : String(value));

  const settle = () => {
    for (const [name, , choices, optional] of filters) {
      const known = choices().map(String);
      if (!known.includes(String(state[name]))) state[name] = optional ? "" : known[0] ?? "";
    }
  };

  const bar = () => {
    const shown = filters.filter(([, , choices]) => choices().length > 1).map(([name, title, choices, optional]) => {
      const select = make("select", { onchange: (event) => { state[name] = event.target.value; state.page = 0; draw(); } });
      if (optional) select.append(make("option", { value: "" }, "any"));
      for (const choice of choices()) {
        const option = make("option", { value: choice }, label(name, choice));
        option.selected = String(choice) === String(state[name]);
        select.append(option);
      }
      return make("label", {}, title, select);
    });
    const search = make("input", { type: "search", value: state.text, placeholder: "words of question or answer",
      onchange: (event) => { state.text = event.target.value; state.page = 0; draw(); } });
    return make("form", { class: "filters", onsubmit: (event) => event.preventDefault() }, ...shown,
      make("label", {}, "search", search));
  };

  const here = (question) => question.samples.filter((sample) => sample.condition === state.condition
    && sample.permission === state.permission && String(sample.budget) === String(state.budget));
  const matches = (question) => {
    if (question.dataset !== state.dataset || (state.kind && question.kind !== state.kind)) return false;
    const present = here(question);
    const wanted = present.filter((sample) => (!state.verdict || sample.verdict === state.verdict)
      && (!state.model || sample.model === state.model));
    if (!wanted.length) return false;
    const needle = state.text.toLowerCase();
    return !needle || [question.text, question.id, ...present.map((sample) => sample.answer)]
      .some((text) => text.toLowerCase().includes(needle));
  };

  // Every place where one of the needles stands as whole words, in any case.
  const highlight = (text, needles) => {
    const parts = needles.filter(([needle]) => needle.trim()).map(([needle, kind]) =>
      [needle.trim().replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), kind]);
    if (!parts.length) return [text];
    const pattern = new RegExp(parts.map(([needle]) => `(?<![\\p{L}\\p{N}])(${needle})(?![\\p{L}\\p{N}])`).join("|"), "giu");
    const found = [];
    let last = 0;
    for (const match of text.matchAll(pattern)) {
      const which = match.slice(1).findIndex((group) => group !== undefined);
      found.push(text.slice(last, match.index), make("mark", { class: parts[which][1] }, match[0]));
      last = match.index + match[0].length;
    }
    return [...found, text.slice(last)];
  };
  const claim = (answer) => answer.split("\n")[0].replace(/^[\s"'(]+|[\s"').!]+$/g, "");

  const context = (question, sample) => {
    const places = data.contexts[sample.context];
    const needles = question.answers.map((answer) => [answer, "accepted"]);
    const said = claim(sample.answer);
    if (sample.verdict === "hallucinated" && said && said.length <= 80) needles.push([said, "claimed"]);
    if (sample.planted) needles.push([sample.planted, "claimed"]);
    const evidence = places.map((place, rank) => [data.documents[place][0], rank + 1])
      .filter(([name]) => question.gold.has(name)).map(([, rank]) => rank);
    const title = `${places.length} documents, ${evidence.length ? `evidence at ${evidence.join(", ")}` : "no evidence"}`;
    const details = make("details", {}, make("summary", {}, title));
    details.addEventListener("toggle", () => {
      if (details.childElementCount > 1) return;
      const list = make("ol", { class: "documents" });
      for (const place of places) {
        const [name, heading, text] = data.documents[place];
        const item = make("li", question.gold.has(name) ? { class: "evidence" } : {}, make("b", {}, heading ?? name), " ");
        if (text === null) item.append("(its text is not in the store)");
        else item.append(...highlight(text, needles));
        list.append(item);
      }
      details.append(list);
    });
    return places.length ? details : make("p", { class: "meta" }, "no documents");
  };

  // The same question at every budget: a square for each, which leads there.
  const strip = (question, model) => {
    const row = question.samples.filter((sample) => sample.model === model && sample.condition === state.condition
      && sample.permission === state.permission).sort((a, b) => a.budget - b.budget);
    return make("span", { class: "strip" }, ...row.map((sample) => make("button", {
      class: `${sample.verdict}${String(sample.budget) === String(state.budget) ? " here" : ""}`,
      title: `${number(sample.budget)}: ${sample.verdict}`, "aria-label": `budget ${number(sample.budget)}: ${sample.verdict}`,
      onclick: () => { state.budget = String(sample.budget); state.verdict = ""; draw(); } })));
  };

  const answer = (question, sample) => {
    const notes = [sample.tokens === null ? "" : `${number(sample.tokens)} prompt tokens`,
      sample.ttft === null ? "" : `TTFT ${number(sample.ttft)} ms`, sample.error ?? ""].filter(Boolean);
    const verdict = sample.kind ? `${sample.verdict}: ${words.kind[sample.kind]}` : sample.verdict;
    return make("div", { class: `sample ${sample.verdict}` },
      make("p", { class: "meta" }, make("b", {}, sample.model), " ", strip(question, sample.model)),
      make("p", { class: "answer" }, ...(sample.answer ? highlight(sample.answer, question.answers.map((text) => [text, "accepted"]))
        : ["(empty)"])),
      make("p", { class: "meta" }, make("span", { class: "verdict" }, verdict), notes.length ? ` · ${notes.join(" · ")}` : ""),
      context(question, sample));
  };

  const entry = (question) => make("article", { class: "question" },
    make("p", {}, question.text),
    make("p", { class: "meta" }, question.answers.length ? `accepted: ${question.answers.join(" | ")}`
      : "accepted: nothing, no document has the answer", ` · ${question.kind} · ${question.id}`),
    make("div", { class: "beside" }, ...here(question).sort((a, b) => (a.model < b.model ? -1 : 1))
      .map((sample) => answer(question, sample))));

  const pages = (count) => {
    const last = Math.max(0, Math.ceil(count / PER_PAGE) - 1);
    const step = (title, to, off) => {
      const button = make("button", { onclick: () => { state.page = to; draw(); } }, title);
      button.disabled = off;
      return button;
    };
    return make("p", { class: "pages" }, step("previous", state.page - 1, state.page === 0),
      ` ${number(count)} questions, page ${state.page + 1} of ${last + 1} `, step("next", state.page + 1, state.page >= last));
  };

  const draw = () => {
    settle();
    const found = questions.filter(matches);
    const start = state.page * PER_PAGE;
    root.replaceChildren(bar(), pages(found.length), ...found.slice(start, start + PER_PAGE).map(entry));
  };

  // A dot or a figure leads to its samples.
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#p']");
    const name = (link?.dataset.point ?? link?.getAttribute("href") ?? link?.getAttribute("xlink:href") ?? "").replace("#", "");
    if (!points[name]) return;
    event.preventDefault();
    const [model, dataset, condition, permission, budget] = points[name];
    Object.assign(state, { model, dataset, condition, permission, budget: String(budget), verdict: link.dataset.verdict ?? "",
      kind: "", text: "", page: 0 });
    draw();
    root.scrollIntoView({ behavior: "smooth" });
  });
  draw();
})();
