// A response as text, or token by token with a colour for its log-prob, entropy or advantage.

const COLOURS = [
  ["plain", "none"],
  ["language", "language"],
  ["logp", "log-prob"],
  ["entropy", "entropy"],
  ["advantage", "advantage"],
];
const TAGS = /(<\/?(?:think|answer|summary)>)/;
const HAN = /\p{Script=Han}/u;
const LATIN = /\p{Script=Latin}/u;

function hasTokens(sample) {
  return Array.isArray(sample.tokens) && sample.tokens.length > 0;
}

// What a colour at full strength stands for among the samples that are shown together.
function scaleOf(mode, samples) {
  const values = {
    logp: () => samples.flatMap((sample) => (sample.logp ?? []).map((value) => -(toNumber(value) ?? 0))),
    entropy: () => samples.flatMap((sample) => (sample.entropy ?? []).map((value) => toNumber(value) ?? 0)),
    advantage: () => samples.map((sample) => Math.abs(toNumber(sample.advantage) ?? 0)),
  }[mode];
  if (!values) return 1;
  return Math.max(
    values().reduce((most, value) => (Number.isFinite(value) && value > most ? value : most), 0),
    1e-6,
  );
}

// The response in a colour mode; arrow keys and the pointer read single tokens.
function responseView(sample, mode, scale, language) {
  if (mode === "plain") return el("div", { class: "response" }, plainText(sample.response));
  if (mode === "language") return el("div", { class: "response" }, languageText(sample.response, language));
  if (!hasTokens(sample)) {
    return mode === "advantage"
      ? wholeResponse(sample, scale)
      : el("div", { class: "response" }, plainText(sample.response));
  }
  return tokenView(sample, mode, scale);
}

function plainText(text) {
  return (text ?? "").split(TAGS).map((part) => (TAGS.test(part) ? el("span", { class: "tag" }, part) : part));
}

// Words of another script than the question's, marked.
function languageText(text, language) {
  const foreign = language === "zh" ? LATIN : HAN;
  return (text ?? "").split(/(<\/?(?:think|answer|summary)>|\\boxed|\s+)/).map((word) => {
    if (TAGS.test(word)) return el("span", { class: "tag" }, word);
    return foreign.test(word) && word !== "\\boxed" ? el("mark", { class: "foreign" }, word) : word;
  });
}

function wholeResponse(sample, scale) {
  const tint = tintOf("advantage", sample, 0, scale);
  return el(
    "div",
    { class: "response" },
    el("span", { class: `token ${tint.kind}`, style: { "--strength": tint.strength } }, sample.response ?? ""),
  );
}

// The class and the strength of a token’s colour.
function tintOf(mode, sample, i, scale) {
  if (mode === "advantage") {
    const advantage = toNumber(sample.advantage) ?? 0;
    return { kind: advantage >= 0 ? "above" : "below", strength: strengthOf(advantage / scale) };
  }
  const value = toNumber(sample[mode]?.[i]);
  if (value === null || !Number.isFinite(value)) return { kind: "unknown", strength: "0%" };
  return { kind: mode, strength: strengthOf(value / scale) };
}

// How much of the colour: text stays readable on the strongest.
function strengthOf(share) {
  return `${(60 * Math.min(1, Math.abs(share))).toFixed(1)}%`;
}

function tokenView(sample, mode, scale) {
  const spans = sample.tokens.map((text, i) => {
    const tint = tintOf(mode, sample, i, scale);
    const classes = `token ${tint.kind}${TAGS.test(text) ? " tag" : ""}`;
    return el("span", { class: classes, style: { "--strength": tint.strength }, data: { token: i } }, visible(text));
  });
  const readout = el("p", { class: "readout", "aria-live": "polite" });
  let chosen = null;
  const choose = (i) => {
    spans[chosen]?.classList.remove("chosen");
    chosen = i;
    spans[i].classList.add("chosen");
    readout.textContent = tokenWords(sample, i);
  };
  const onkeydown = (event) => {
    const at = chosen ?? -1;
    const moves = {
      ArrowLeft: at - 1,
      ArrowRight: at + 1,
      ArrowUp: at - 10,
      ArrowDown: at + 10,
      Home: 0,
      End: spans.length - 1,
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    choose(Math.max(0, Math.min(spans.length - 1, moves[event.key])));
    spans[chosen].scrollIntoView({ block: "nearest" });
  };
  const onpointerover = (event) =>
    event.target.dataset.token !== undefined && choose(Number(event.target.dataset.token));
  const left = (sample.length ?? spans.length) - spans.length;
  return el(
    "div",
    {},
    el(
      "div",
      {
        class: "response tokens",
        tabindex: 0,
        role: "group",
        "aria-label": "Tokens; arrow keys read them",
        onkeydown,
        onpointerover,
      },
      spans,
    ),
    left > 0
      ? el(
          "p",
          { class: "remark" },
          `The first ${count(spans.length, "token")} of ${sample.length.toLocaleString("en-US")}; ${left.toLocaleString("en-US")} left out.`,
        )
      : null,
    readout,
  );
}

// White space that would not show: a line's end is drawn and kept, an empty piece (part of a character) gets a sign.
function visible(text) {
  if (text === "") return "·";
  return text.replaceAll("\n", "↵\n").replaceAll("\t", "⇥");
}

function tokenWords(sample, i) {
  const [logp, entropy] = [toNumber(sample.logp?.[i]), toNumber(sample.entropy?.[i])];
  const words = [`token ${i + 1} of ${sample.length ?? sample.tokens.length} ${JSON.stringify(sample.tokens[i])}`];
  if (logp !== null) words.push(`log-prob ${fixed(logp, 4)} (p ${fixed(Math.exp(logp), 3)})`);
  if (entropy !== null) words.push(`entropy ${fixed(entropy, 4)}`);
  if (sample.advantage !== undefined) words.push(`advantage ${signed(sample.advantage, 3)}`);
  return words.join(" · ");
}

// What the colours mean, for the samples that are shown.
function colourKey(mode, scale, samples) {
  const shades = (kind, from, to) => el("span", { class: "shades" }, from, el("span", { class: `bar ${kind}` }), to);
  const texts = {
    plain: [],
    language: ["Marked: words in another script than the question’s."],
    logp: ["log-prob of the token when it was sampled", shades("logp", "0", fixed(-scale, 2))],
    entropy: ["entropy of the policy there, nats", shades("entropy", "0", fixed(scale, 2))],
    advantage: [
      "advantage, the same for all tokens of a sample",
      shades("advantage", signed(-scale, 2), signed(scale, 2)),
    ],
  }[mode];
  const perToken = ["logp", "entropy", "advantage"].includes(mode) && samples.some(hasTokens);
  if (["logp", "entropy"].includes(mode) && !perToken) {
    return notice("These samples have no values per token: the run was made before they were kept.");
  }
  const hint = perToken ? "· point at a token, or give a response the focus and use the arrow keys" : null;
  return el("p", { class: "colour-key" }, texts, hint);
}
