// The table of models with its intervals, and the paired differences between them.

const MODEL_NOTES = {
  base: "before any training",
  r1_zero: "the base model after RL alone",
  sft_1: "the base model fine-tuned on the cold start",
  rl_1: "RL with a reward for one language",
  sft_2: "the base model fine-tuned on rejection samples",
  r1: "RL on reasoning and general prompts (stage rl_2)",
  student_base: "a smaller model before any training",
  student_distilled: "the student fine-tuned on the large model's answers",
  student_rl: "the student after RL alone",
};

const COLUMNS = [
  ["pass@1", "pass@1", "share of all samples whose answer is right, with its 95% interval over problems", 3],
  ["accuracy_any", "any", "the same when the last number anywhere counts and the format does not", 3],
  ["cons@k", "cons@k", "share of problems whose most frequent answer is right", 3],
  ["format", "format", "share of samples that keep to the format", 3],
  ["language", "language", "share of a chain's words in the question's language, mean", 3],
  ["mixed", "mixed", "share of chains with less than 95% of their words in the question's language", 3],
  ["tokens", "tokens", "mean length of a response", 1],
  ["truncated", "cut off", "share of responses that hit the length limit", 3],
  ["refusal", "refusal", "share of harmful requests that are refused", 2],
  ["refusal_benign", "benign refusal", "share of harmless requests that are refused", 2],
  ["reward_model", "helpful", "mean of the helpful reward model on harmless requests", 2],
  ["reward_safe", "safe", "mean of the safe reward model on all requests", 2],
];
const NOT_COLUMNS = ["pass@1_ci", "num_problems", "k", "high_temperature", "temperature"];

// Columns that some model of some run has a value in; figures we have no words for come last under their own name.
function columnsOf(tables) {
  const rows = tables.flatMap((table) => Object.values(table));
  const has = (key) => rows.some((row) => row[key] !== null && row[key] !== undefined);
  const known = COLUMNS.map(([key]) => key);
  const others = [...new Set(rows.flatMap(Object.keys))]
    .filter(
      (key) => !known.includes(key) && !NOT_COLUMNS.includes(key) && rows.some((row) => typeof row[key] === "number"),
    )
    .map((key) => [key, key, "", 3]);
  return [...COLUMNS, ...others].filter(([key]) => has(key));
}

function drawModels() {
  const box = section("models");
  if (!RUNS.some((run) => Object.keys(run.eval).length)) {
    box.append(notice("No model has been evaluated yet: this table is filled by the stage evaluation."));
    return;
  }
  const place = el("div");
  const high = RUNS.map((run) => Object.values(run.eval).find((row) => row.high_temperature)?.high_temperature).find(
    Boolean,
  );
  const draw = (which) => place.replaceChildren(modelTable(which === "high"));
  if (high) {
    const options = [
      ["low", "evaluation’s sampling"],
      ["high", `temperature ${high.temperature}`],
    ];
    box.append(choice("Sampling", options, draw, "low"));
  }
  box.append(place);
  draw("low");
  const pairs = pairTables();
  if (pairs.length) box.append(el("div", { class: "columns" }, pairs));
}

function modelTable(high) {
  const tables = RUNS.map((run) => {
    const rows = Object.entries(run.eval).map(([name, row]) => [name, high ? row.high_temperature : row]);
    return Object.fromEntries(rows.filter(([, row]) => row));
  });
  const columns = columnsOf(tables);
  const names = [...new Set(tables.flatMap(Object.keys))];
  const first = Object.values(tables.find((table) => Object.keys(table).length) ?? {})[0] ?? {};
  const titles = columns.map(([key, title]) => (key === "cons@k" && first.k ? `cons@${first.k}` : title));
  const head = el(
    "tr",
    {},
    el("th", { scope: "col" }, "model"),
    COMPARING ? el("th", { scope: "col" }, "run") : null,
    columns.map(([, , help], i) => el("th", { scope: "col", class: "number", title: help }, titles[i])),
  );
  const body = names.map((name) =>
    el(
      "tbody",
      {},
      tables.map((table, number) =>
        modelRow(name, table[name], columns, titles, number, number === 0 ? tables.length : 0),
      ),
    ),
  );
  const problems = Math.max(...names.flatMap((name) => tables.map((table) => table[name]?.num_problems ?? 0)));
  const caption = [
    problems ? `${count(problems, "held-out problem")}, ` : "",
    first.k ? `${count(first.k, "sample")} of each. ` : "",
    "The brackets and bars are 95% intervals over problems.",
  ].join("");
  const help = el(
    "details",
    {},
    el("summary", {}, "What the columns mean"),
    el(
      "dl",
      { class: "terms" },
      columns.map(([, , text], i) => (text ? [el("dt", {}, titles[i]), el("dd", {}, text)] : [])),
    ),
  );
  const table = el(
    "table",
    { class: "stack", data: { table: "models" } },
    el("caption", {}, caption),
    el("thead", {}, head),
    body,
  );
  return el("div", {}, scroller("Table of models", table), help);
}

function modelRow(name, row, columns, titles, number, span) {
  const note = MODEL_NOTES[name];
  const title = el(
    "th",
    { scope: "rowgroup", rowspan: span > 1 ? span : null, class: "model" },
    el("span", { class: "name" }, name),
    note ? el("small", {}, note) : null,
  );
  const cells = columns.map(([key, , , digits], i) => {
    const value = row?.[key];
    const text = row ? fixed(value ?? null, digits) : "–";
    const interval = key === "pass@1" && row?.["pass@1_ci"];
    return el(
      "td",
      {
        class: interval ? "number interval" : "number",
        data: { column: key, label: titles[i], value: String(value ?? "") },
      },
      el("span", { class: "value" }, text),
      interval ? intervalOf(value, interval) : null,
    );
  });
  return el(
    "tr",
    { data: { model: name, run: LETTERS[number] }, class: number ? "second" : null },
    span ? title : null,
    COMPARING ? el("td", { data: { label: "run" } }, runMark(number)) : null,
    cells,
  );
}

// The bracket, cut to what a share can be, and a bar from 0 to 1.
function intervalOf(value, [low, high]) {
  const [from, to] = [Math.max(0, low), Math.min(1, high)];
  return [
    el("span", { class: "bracket", title: `${low} to ${high}` }, ` [${from.toFixed(3)}, ${to.toFixed(3)}]`),
    whisker(value, from, to, 0, 1),
  ];
}

// A point with its interval on the axis from `least` to `most`.
function whisker(value, low, high, least, most) {
  const at = (number) => `${(100 * (Math.min(most, Math.max(least, number)) - least)) / (most - least)}%`;
  return el(
    "svg",
    { class: "whisker", "aria-hidden": "true" },
    el("line", { class: "track", x1: at(least), x2: at(most), y1: "50%", y2: "50%" }),
    least < 0 ? el("line", { class: "track", x1: at(0), x2: at(0), y1: "0%", y2: "100%" }) : null,
    el("line", { class: "span", x1: at(low), x2: at(high), y1: "50%", y2: "50%" }),
    el("circle", { cx: at(value), cy: "50%", r: 3.5 }),
  );
}

function pairTables() {
  const tables = RUNS.map((run, number) => [el("span", {}, runMark(number), "Differences in pass@1"), run.pairs]);
  if (DATA.comparison) {
    tables.unshift([el("span", {}, "Run A − run B in pass@1, model by model"), DATA.comparison.pairs]);
  }
  return tables.filter(([, pairs]) => Object.keys(pairs).length).map(([title, pairs]) => pairTable(title, pairs));
}

function pairTable(title, pairs) {
  const reach = Math.max(0.05, ...Object.values(pairs).flatMap((pair) => pair.ci.map(Math.abs)));
  const rows = Object.entries(pairs).map(([name, pair]) =>
    el(
      "tr",
      { data: { pair: name } },
      el("th", { scope: "row" }, name.replaceAll(" - ", " − ")),
      el(
        "td",
        { class: "number interval" },
        el("span", { class: "value" }, signed(pair.mean, 3)),
        el("span", { class: "bracket" }, ` [${signed(pair.ci[0], 3)}, ${signed(pair.ci[1], 3)}]`),
        whisker(pair.mean, pair.ci[0], pair.ci[1], -reach, reach),
      ),
    ),
  );
  const problems = Object.values(pairs)[0].num_problems;
  const caption = el(
    "caption",
    {},
    title,
    `: the same ${count(problems, "problem")} answered by both, with 95% intervals`,
  );
  return el("table", { class: "pairs" }, caption, el("tbody", {}, rows));
}

// What may be wider than the screen scrolls in a box of its own, by keyboard too.
function scroller(label, ...children) {
  return el("div", { class: "scroller", tabindex: 0, role: "region", "aria-label": label }, children);
}
