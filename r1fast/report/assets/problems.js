// The same held-out problem answered by each model of the pipeline, in its order.

function drawProblems() {
  const box = section("problems");
  const runs = RUNS.map((run, number) => [run, number]).filter(([run]) => run.problems.problems.length);
  if (!runs.length) {
    box.append(notice("No answers to held-out problems yet: the stage evaluation writes them."));
    return;
  }
  const state = { run: runs[0][0], colour: "language", shown: [] };
  const place = el("div", { data: { problem: "" } });
  const remark = el("p", { class: "remark" });
  const show = () => place.replaceChildren(problemView(state.shown[step.current()], state));
  const run = select(
    "Run",
    runs.map(([one, i]) => [String(i), `${LETTERS[i]}: ${runName(one)}`]),
    (value) => ((state.run = RUNS[Number(value)]), choose()),
  );
  const which = select(
    "Show",
    [
      ["all", "all problems"],
      ["differ", "where models differ"],
      ["gained", "wrong before, right at the end"],
      ["lost", "right before, wrong at the end"],
    ],
    () => choose(),
    "all",
  );
  const step = stepper(
    "Problem",
    (i) => (state.shown.length ? `${i + 1} of ${state.shown.length}` : "none"),
    () => show(),
  );
  const colour = choice(
    "Colour",
    COLOURS.filter(([key]) => key !== "advantage"),
    (value) => ((state.colour = value), show()),
    "language",
  );
  const choose = () => {
    const { problems, num_problems: total } = state.run.problems;
    state.shown = problems.filter((problem) => matches(problem, which.box.value));
    const words = [
      `${problems.length.toLocaleString("en-US")} of ${count(total, "problem")} that evaluation kept are in this page, one answer of every model.`,
    ];
    remark.textContent = words.join(" ");
    step.resize(state.shown.length, 0);
  };
  run.field.hidden = runs.length < 2;
  box.append(
    el("div", { class: "controls" }, run.field, which.field, step.field),
    el("div", { class: "controls" }, colour),
    place,
    remark,
  );
  choose();
}

function matches(problem, which) {
  const names = Object.keys(problem.answers).filter((name) => !name.startsWith("student"));
  const rights = names.map((name) => problem.answers[name].right >= 1);
  const [first, last] = [rights[0], rights.at(-1)];
  if (which === "differ") return new Set(rights).size > 1;
  if (which === "gained") return !first && last;
  if (which === "lost") return rights.slice(0, -1).some(Boolean) && !last;
  return true;
}

function problemView(problem, state) {
  if (!problem) return notice("No problem of this page is like that.");
  const answers = Object.entries(problem.answers);
  const scale = scaleOf(
    state.colour,
    answers.map(([, answer]) => answer),
  );
  return el(
    "div",
    {},
    el(
      "div",
      { class: "prompt" },
      el("p", { class: "question" }, problem.prompt),
      el("p", { class: "meta" }, [`answer ${problem.answer}`, problem.language].filter(Boolean).join(" · ")),
    ),
    colourKey(
      state.colour,
      scale,
      answers.map(([, answer]) => answer),
    ),
    el(
      "ol",
      { class: "chain" },
      answers.map(([name, answer]) => answerCard(name, answer, state, scale, problem.language)),
    ),
  );
}

function answerCard(name, answer, state, scale, language) {
  const right = toNumber(answer.right) >= 1;
  const k = state.run.eval[name]?.k;
  const facts = [
    answer.share !== undefined && k ? `${Math.round(answer.share * k)} of ${k} samples right` : null,
    answer.length !== undefined ? count(answer.length, "token") : null,
    answer.finish_reason === "length" ? "cut off at the limit" : null,
  ];
  return el(
    "li",
    { class: right ? "right" : "wrong", data: { model: name } },
    el(
      "header",
      {},
      el("b", {}, name),
      el("span", { class: "verdict" }, right ? "✓ right" : "✗ wrong"),
      el("span", { class: "meta" }, facts.filter(Boolean).join(" · ")),
    ),
    responseView(answer, state.colour, scale, language ?? guessLanguage(state.run, answer)),
  );
}

// Runs from before the language was kept: the question's own script tells.
function guessLanguage(run, answer) {
  const problem = run.problems.problems.find((one) => Object.values(one.answers).includes(answer));
  return HAN.test(problem?.prompt ?? "") ? "zh" : "en";
}
