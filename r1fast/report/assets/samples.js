// The sample browser: a stage, a step, a prompt with its whole group side by side.

function drawSamples() {
  const box = section("samples");
  const runs = RUNS.map((run, number) => [run, number]).filter(([run]) => Object.keys(run.groups).length);
  if (!runs.length) {
    box.append(notice("No samples yet: the RL stages write them (run.samples_per_step says how many a step)."));
    return;
  }
  const state = { run: runs[0][0], stage: null, step: 0, group: 0, order: "index", colour: "plain" };
  const place = el("div", { data: { group: "" } });
  const remark = el("p", { class: "remark" });
  const show = () => place.replaceChildren(groupView(state));
  const steps = () => state.run.groups[state.stage].steps;

  const run = select(
    "Run",
    runs.map(([one, i]) => [String(i), `${LETTERS[i]}: ${runName(one)}`]),
    (value) => chooseRun(RUNS[Number(value)]),
  );
  const stage = select("Stage", [], (value) => chooseStage(value));
  const step = stepper(
    "Step",
    (i) => steps()[i].step.toLocaleString("en-US"),
    (i) => chooseStep(i),
  );
  const group = select("Prompt", [], (value) => ((state.group = Number(value)), show()));
  const order = select(
    "Order",
    [
      ["index", "as sampled"],
      ["reward", "highest reward first"],
      ["length", "longest first"],
    ],
    (value) => ((state.order = value), show()),
    "index",
  );
  const colour = choice("Colour", COLOURS, (value) => ((state.colour = value), show()), "plain");

  const chooseStep = (i) => {
    state.step = i;
    const groups = steps()[i].groups;
    state.group = 0;
    fillSelect(
      group.box,
      groups.map((one, n) => [String(n), `${n + 1}: ${short(one.prompt)}`]),
      "0",
    );
    group.field.hidden = groups.length < 2;
    show();
  };
  const chooseStage = (name) => {
    state.stage = name;
    remark.textContent = leftOut(state.run.groups[name], state.run, name);
    step.resize(steps().length, steps().length - 1);
  };
  const chooseRun = (one) => {
    state.run = one;
    const names = Object.keys(one.groups);
    fillSelect(
      stage.box,
      names.map((name) => [name, name]),
      names.includes(state.stage) ? state.stage : names[0],
    );
    chooseStage(stage.box.value);
  };
  run.field.hidden = runs.length < 2;
  box.append(
    el("div", { class: "controls" }, run.field, stage.field, step.field, group.field, order.field),
    el("div", { class: "controls" }, colour),
    place,
    remark,
  );
  chooseRun(state.run);
}

function short(text, length = 48) {
  const line = (text ?? "").replace(/\s+/g, " ");
  return line.length > length ? `${line.slice(0, length)}…` : line;
}

// What of a stage's samples is in this page, in words.
function leftOut(groups, run, stage) {
  const shown = groups.steps.length;
  const file = `${run.stages.find((one) => one.name === stage)?.folder ?? stage}/samples.jsonl`;
  const words = [];
  if (shown < groups.num_steps) {
    words.push(
      `${shown.toLocaleString("en-US")} of ${count(groups.num_steps, "step")}, evenly spaced: a page holds only so much.`,
    );
  }
  if (groups.sample_bytes) words.push(`Samples are cut to about ${count(groups.sample_bytes, "byte")}.`);
  if (groups.unreadable) words.push(`${count(groups.unreadable, "line")} could not be read.`);
  words.push(
    `All ${count(groups.num_samples, "sample")} that the run kept (${fileSize(groups.bytes)}) are in ${file}.`,
  );
  return words.join(" ");
}

function groupView(state) {
  const group = state.run.groups[state.stage].steps[state.step]?.groups[state.group];
  if (!group) return notice("No samples of this step could be read.");
  const samples = group.samples.map((sample, i) => ({ sample_index: i, ...sample }));
  if (new Set(samples.map((sample) => sample.sample_index)).size < samples.length) {
    samples.forEach((sample, i) => (sample.sample_index = i));
  }
  const orders = {
    index: (a, b) => a.sample_index - b.sample_index,
    reward: (a, b) => (toNumber(b.reward) ?? 0) - (toNumber(a.reward) ?? 0),
    length: (a, b) => lengthOf(b) - lengthOf(a),
  };
  samples.sort(orders[state.order]);
  const scale = scaleOf(state.colour, samples);
  const rewards = samples.map((sample) => toNumber(sample.reward)).filter(Number.isFinite);
  const mean = rewards.reduce((sum, value) => sum + value, 0) / rewards.length;
  return [
    el(
      "div",
      { class: "prompt" },
      el("p", { class: "question" }, group.prompt ?? ""),
      el(
        "p",
        { class: "meta" },
        [
          group.answer ? `answer ${group.answer}` : null,
          group.kind,
          group.language,
          count(samples.length, "sample"),
          rewards.length ? `mean reward ${figure(mean)}` : null,
          rewards.length > 1 && new Set(rewards).size === 1 ? "all rewards equal: this group teaches nothing" : null,
        ]
          .filter(Boolean)
          .join(" · "),
      ),
    ),
    colourKey(state.colour, scale, samples),
    el(
      "div",
      { class: "cards" },
      samples.map((sample) => sampleCard(sample, state.colour, scale, group.language)),
    ),
  ].reduce((whole, part) => (whole.append(part), whole), el("div", {}));
}

function lengthOf(sample) {
  return sample.length ?? sample.response?.length ?? 0;
}

function sampleCard(sample, colour, scale, language) {
  const advantage = toNumber(sample.advantage) ?? 0;
  const sign = advantage > 0 ? "above" : advantage < 0 ? "below" : "even";
  return el(
    "article",
    { class: `card ${sign}`, data: { sample: sample.sample_index } },
    el(
      "header",
      {},
      el("span", { class: "number-of" }, `#${sample.sample_index + 1}`),
      el("span", {}, "reward ", el("b", { data: { value: String(sample.reward) } }, figure(sample.reward))),
      el(
        "span",
        { class: `advantage ${sign}` },
        "advantage ",
        el("b", { data: { value: String(sample.advantage) } }, signed(advantage, 3)),
      ),
    ),
    el(
      "ul",
      { class: "parts" },
      Object.entries(sample.parts ?? {}).map(([name, value]) =>
        el("li", { class: partKind(value) }, `${name} `, el("b", {}, figure(value))),
      ),
    ),
    responseView(sample, colour, scale, language),
    el(
      "footer",
      {},
      [
        sample.length !== undefined ? count(sample.length, "token") : null,
        sample.finish_reason === "length" ? "cut off at the limit" : null,
        sample.outcome && sample.outcome !== "ok" ? sample.outcome : null,
      ]
        .filter(Boolean)
        .join(" · "),
    ),
  );
}

function partKind(value) {
  const number = toNumber(value);
  if (number >= 1) return "full";
  return number > 0 ? "some" : "none";
}
