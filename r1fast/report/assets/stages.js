// The stages and their time, the yield of the data stages with examples, configuration and versions.

const STAGE_NOTES = {
  base: "loads the base model and reads it on dev",
  r1_zero: "RL alone on the base model",
  cold_start: "samples R1-Zero, keeps what is right and readable, rewrites it",
  sft_1: "fine-tunes the base model on that",
  rl_1: "RL with the language reward",
  rejection: "samples RL 1’s model through R1’s filters",
  sft_2: "fine-tunes the base model on that",
  reward_models: "trains the helpful and the safe reward model",
  rl_2: "RL on reasoning and general prompts",
  distill: "fine-tunes the student on R1’s data",
  student_rl: "RL alone on the student",
  evaluation: "reads every model on held-out problems",
};

function drawStages() {
  const tables = RUNS.filter((run) => run.stages.length).map((run) => stageTable(run, RUNS.indexOf(run)));
  section("stages").append(el("div", { class: "columns" }, tables.length ? tables : notice("No stage has begun.")));
}

function stageTable(run, number) {
  const longest = Math.max(...run.stages.map((stage) => stage.result.wall_s ?? 0), 1e-9);
  const rows = run.stages.map((stage) => {
    const seconds = stage.result.wall_s;
    const time =
      seconds === undefined ? null : [el("span", { class: "value" }, duration(seconds)), bar(seconds / longest)];
    return el(
      "tr",
      { data: { stage: stage.name } },
      el(
        "th",
        { scope: "row", class: "model" },
        el("span", { class: "name" }, stage.name),
        el("small", {}, STAGE_NOTES[stage.name] ?? ""),
      ),
      el("td", { data: { label: "state" } }, stateOf(run, stage)),
      el("td", { class: "facts", data: { label: "result" } }, resultOf(stage.result)),
      el("td", { class: "number time", data: { label: "time" } }, time),
    );
  });
  const head = ["stage", "state", "result", "time"].map((title) => el("th", { scope: "col" }, title));
  const table = el(
    "table",
    { class: "stack stages" },
    COMPARING ? el("caption", {}, runMark(number), ` ${runName(run)}`) : null,
    el("thead", {}, el("tr", {}, head)),
    el("tbody", {}, rows),
  );
  return scroller(`Stages of ${runName(run)}`, table);
}

function stateOf(run, stage) {
  if (stage.done) return "done";
  const step = run.curves[stage.name]?.last;
  if (step === undefined) return "to do";
  return stage.steps ? `unfinished, step ${step} of ${stage.steps}` : `unfinished, step ${step}`;
}

function resultOf(result) {
  return Object.entries(result)
    .filter(
      ([key, value]) => key !== "wall_s" && !key.startsWith("yield/") && ["number", "string"].includes(typeof value),
    )
    .map(([key, value]) => `${key.replaceAll("_", " ")} ${figure(value)}`)
    .join(", ");
}

function bar(share) {
  return el("span", { class: "share", "aria-hidden": "true", style: { "--share": share } });
}

function drawYield() {
  const box = section("yield");
  const found = RUNS.flatMap((run, number) =>
    run.stages
      .filter((stage) => Object.keys(stage.result).some((key) => key.startsWith("yield/")))
      .map((stage) => el("div", {}, yieldTable(run, stage, number), examplesOf(run.examples[stage.name]))),
  );
  box.append(
    found.length
      ? el("div", { class: "columns" }, found)
      : notice("No data stage has finished: cold_start and rejection report here what they keep."),
  );
}

function yieldTable(run, stage, number) {
  const { samples, examples } = stage.result;
  const counts = Object.entries(stage.result).filter(([key]) => key.startsWith("yield/"));
  counts.sort(([a, n], [b, m]) => (b === "yield/kept") - (a === "yield/kept") || m - n);
  const rows = counts.map(([key, value]) => {
    const reason = key.slice("yield/".length);
    return el(
      "tr",
      { class: reason === "kept" ? "kept" : null, data: { reason } },
      el("th", { scope: "row" }, reason),
      el("td", { class: "number", data: { value } }, value.toLocaleString("en-US")),
      el("td", { class: "number" }, percent(value / samples)),
      el("td", { class: "wide-bar" }, bar(value / samples)),
    );
  });
  const kept = stage.result["yield/kept"] ?? 0;
  const more = examples > kept ? `, ${count(examples - kept, "example")} of other kinds added` : "";
  const fewer = examples < kept ? `, ${examples.toLocaleString("en-US")} of them used` : "";
  const words = ` ${count(samples, "sample")}: ${kept.toLocaleString("en-US")} kept${more}${fewer}`;
  const caption = el("caption", {}, runMark(number), el("b", {}, stage.name), words);
  return el("table", { class: "yield", data: { yield: stage.name } }, caption, el("tbody", {}, rows));
}

function examplesOf(found) {
  if (!found) return null;
  const items = found.examples.map((example) =>
    el(
      "li",
      {},
      el("p", { class: "question" }, example.prompt ?? ""),
      el("div", { class: "response" }, plainText(example.response)),
    ),
  );
  return el(
    "details",
    {},
    el("summary", {}, `${items.length} of ${count(found.num_examples, "example")}`),
    el("ol", { class: "examples" }, items),
  );
}

function drawConfiguration() {
  const box = section("configuration");
  if (DATA.comparison) box.append(differences(DATA.comparison.settings));
  const runs = RUNS.map((run, number) => {
    const facts = {
      ...run.about,
      ...run.summary.versions,
      device: run.summary.device,
      processes: run.summary.world_size,
      seed: run.seed,
    };
    const rows = Object.entries(facts)
      .filter(([, value]) => value !== undefined && value !== null)
      .map(([key, value]) => [el("dt", {}, key), el("dd", {}, String(value))]);
    return el(
      "div",
      {},
      COMPARING ? el("h3", {}, runMark(number), ` ${runName(run)}`) : null,
      el("dl", { class: "terms" }, rows),
      run.config
        ? el("details", {}, el("summary", {}, "config.toml, as resolved"), el("pre", { tabindex: 0 }, run.config))
        : null,
    );
  });
  box.append(el("div", { class: "columns" }, runs));
}

function differences(settings) {
  if (!settings.length) return notice("Both runs have the same settings.");
  const rows = settings.map(({ key, values }) =>
    el(
      "tr",
      { data: { setting: key } },
      el("th", { scope: "row" }, key),
      values.map((value) => el("td", {}, el("code", {}, value))),
    ),
  );
  const head = el(
    "tr",
    {},
    el("th", { scope: "col" }, "setting"),
    LETTERS.map((_, number) => el("th", { scope: "col" }, runMark(number))),
  );
  return scroller(
    "Settings that differ",
    el("table", {}, el("caption", {}, "Settings that differ"), el("thead", {}, head), el("tbody", {}, rows)),
  );
}
