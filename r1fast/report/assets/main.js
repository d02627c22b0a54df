// The head of the page, its colours, and the order in which the parts are drawn.

function drawOverview() {
  const box = section("overview");
  RUNS.forEach((run, number) => {
    const model = run.finished ? "finished" : "unfinished";
    const facts = [
      run.wall_s ? duration(run.wall_s) : null,
      run.summary.peak_pss_bytes ? `${(run.summary.peak_pss_bytes / 2 ** 30).toFixed(2)} GiB at the peak` : null,
      run.summary.device
        ? `${run.summary.device}, ${count(run.summary.world_size ?? 1, "process", "processes")}`
        : null,
    ];
    box.append(
      el(
        "div",
        { class: "run", data: { run: LETTERS[number] } },
        el("h1", {}, runMark(number), `${runName(run)} `, el("span", { class: `state ${model}` }, model)),
        el("p", { class: "meta" }, facts.filter(Boolean).join(" · ")),
        run.finished ? null : progress(run),
        tiles(run),
      ),
    );
  });
}

function progress(run) {
  const done = run.stages.filter((stage) => stage.done).length;
  const current = run.stages.find((stage) => !stage.done && run.curves[stage.name]);
  const words = [`${done} of ${count(run.stages.length, "stage")} done.`];
  if (current) words.push(`${current.name}: ${stateOf(run, current).replace("unfinished, ", "")}.`);
  if (run.last_written) words.push(`Last figure of ${run.last_written}.`);
  words.push(`This page shows what was there when it was written; r1fast report ${run.folder} writes it again.`);
  return notice(words.join(" "));
}

// What the run did to the models, in four figures: from the first model of the chain to its last.
function tiles(run) {
  const names = Object.keys(run.eval).filter((name) => !name.startsWith("student"));
  if (!names.length) return null;
  const last = names.at(-1);
  const zero = run.eval.r1_zero && last !== "r1_zero" ? "r1_zero" : names[0];
  const tile = (title, key, from, show) => {
    const [before, after] = [run.eval[from][key], run.eval[last][key]];
    if (after === null || after === undefined || before === null || before === undefined) return null;
    return el(
      "li",
      {},
      el("span", { class: "title" }, title),
      el(
        "span",
        { class: "figures" },
        from === last ? null : el("span", { class: "before" }, `${show(before)} → `),
        el("b", {}, show(after)),
      ),
      el("span", { class: "who" }, from === last ? last : `${from} → ${last}`),
    );
  };
  const share = (value) => `${(value * 100).toFixed(1)}%`;
  return el(
    "ul",
    { class: "tiles" },
    tile("pass@1, held-out problems", "pass@1", names[0], share),
    tile("chain in the question’s language", "language", zero, share),
    tile("tokens a response", "tokens", names[0], (value) => value.toFixed(1)),
    tile("harmful requests refused", "refusal", zero, share),
  );
}

// Colours: as the system until someone chooses; the choice is kept where the browser keeps anything for files.
const THEMES = { auto: "◐ auto", light: "☀ light", dark: "☾ dark" };

function storedTheme() {
  try {
    return localStorage.getItem("r1fast-theme");
  } catch {
    return null; // no storage for this file: the choice lasts as long as the page
  }
}

function setTheme(name) {
  const button = document.getElementById("theme");
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  button.textContent = THEMES[name];
  button.setAttribute("aria-label", `Colours: ${name === "auto" ? "as the system" : name}; press to change`);
  button.dataset.theme = name;
  DRAWN.forEach((chart) => chart.plot.redraw(false, true));
}

function nextTheme() {
  const names = Object.keys(THEMES);
  const name = names[(names.indexOf(document.getElementById("theme").dataset.theme) + 1) % names.length];
  setTheme(name);
  try {
    localStorage.setItem("r1fast-theme", name);
  } catch {
    // see storedTheme()
  }
}

setTheme(storedTheme() in THEMES ? storedTheme() : "auto");
document.getElementById("theme").addEventListener("click", nextTheme);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
  DRAWN.forEach((chart) => chart.plot.redraw(false, true)),
);

drawOverview();
drawModels();
drawCurves();
drawSamples();
drawProblems();
drawYield();
drawStages();
drawConfiguration();
document.getElementById("colophon").textContent =
  `Written ${DATA.written} by r1fast ${DATA.version} with r1fast report. One file: it loads nothing and sends nothing.`;
document.documentElement.dataset.ready = "";
