// What every part of the page uses: its data, elements, numbers, and the controls that people choose with.

const DATA = JSON.parse(document.getElementById("data").textContent);
const RUNS = DATA.runs;
const COMPARING = RUNS.length > 1;
const LETTERS = ["A", "B"];

// An element. Text only ever becomes text: nothing of a run is read as HTML.
function el(tag, properties = {}, ...children) {
  const svg = ["svg", "line", "circle", "rect", "path"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") Object.entries(value).forEach(([key, text]) => node.style.setProperty(key, text));
    else if (name === "data") Object.assign(node.dataset, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

function section(id) {
  return document.getElementById(id);
}

let lastId = 0;
function freshId() {
  lastId += 1;
  return `e${lastId}`;
}

// Figures that JSON has no number for are written as words.
const WORDS = { inf: Infinity, "-inf": -Infinity, Infinity, "-Infinity": -Infinity };
function toNumber(value) {
  if (value === null || value === undefined || typeof value === "number") return value ?? null;
  return WORDS[value] ?? NaN;
}

// Four digits that count; what is very small or very large in powers of ten.
function figure(value) {
  const number = toNumber(value);
  if (number === null) return "–";
  if (Number.isNaN(number)) return "NaN";
  if (!Number.isFinite(number)) return number > 0 ? "∞" : "−∞";
  const size = Math.abs(number);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return minus(number.toExponential(2).replace(/\.?0+e/, "e"));
  if (Number.isInteger(number) || size >= 1e4) return minus(Math.round(number).toLocaleString("en-US"));
  return minus(String(Number(number.toPrecision(4))));
}

function fixed(value, digits) {
  const number = toNumber(value);
  return number === null || !Number.isFinite(number) ? figure(number) : minus(number.toFixed(digits));
}

function signed(value, digits) {
  const text = fixed(value, digits);
  return toNumber(value) > 0 ? `+${text}` : text;
}

function minus(text) {
  return text.replace(/^-/, "−").replace("e-", "e−");
}

function count(number, noun, nouns = `${noun}s`) {
  return `${number.toLocaleString("en-US")} ${number === 1 ? noun : nouns}`;
}

function percent(share) {
  return Number.isFinite(share) ? `${Math.round(share * 100)}%` : "–";
}

function duration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${(seconds / 60).toFixed(1)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

function fileSize(bytes) {
  return bytes < 1e5 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

function runName(run) {
  return `${run.name}, seed ${run.seed ?? "unknown"}`;
}

// "A" and "B" where two runs share the page.
function runMark(number) {
  return COMPARING ? el("span", { class: `run-mark run-${number}` }, LETTERS[number]) : null;
}

function notice(text) {
  return el("p", { class: "notice" }, text);
}

// A labelled <select>; `options` are [value, text].
function select(label, options, onchange, value) {
  const id = freshId();
  const box = el("select", { id, onchange: () => onchange(box.value) });
  fillSelect(box, options, value);
  return { field: el("div", { class: "field" }, el("label", { for: id }, label), box), box };
}

function fillSelect(box, options, value) {
  box.replaceChildren(...options.map(([key, text]) => el("option", { value: key }, text)));
  if (value !== undefined && options.some(([key]) => key === value)) box.value = value;
}

// A labelled slider over the numbers 0 to n - 1 with a button to either side; `name(i)` says what number i is.
function stepper(label, name, onchange) {
  const id = freshId();
  const range = el("input", { type: "range", id, min: 0, value: 0, oninput: () => set(Number(range.value)) });
  const output = el("output", { for: id });
  const back = el(
    "button",
    { type: "button", "aria-label": `Previous: ${label}`, onclick: () => set(current() - 1) },
    "‹",
  );
  const next = el("button", { type: "button", "aria-label": `Next: ${label}`, onclick: () => set(current() + 1) }, "›");
  const current = () => Number(range.value);
  const show = () => {
    output.textContent = name(current());
    range.setAttribute("aria-valuetext", output.textContent);
    back.disabled = current() <= 0;
    next.disabled = current() >= Number(range.max);
  };
  const set = (value) => {
    range.value = Math.max(0, Math.min(Number(range.max), value));
    show();
    onchange(current());
  };
  const resize = (length, value) => {
    range.max = Math.max(0, length - 1);
    range.disabled = length < 2;
    set(value);
  };
  const field = el(
    "div",
    { class: "field stepper" },
    el("label", { for: id }, label),
    el("div", { class: "row" }, back, range, next, output),
  );
  return { field, resize, set, current, range };
}

// A group of buttons of which one is chosen; `options` are [value, text].
function choice(label, options, onchange, value) {
  const name = freshId();
  const items = options.map(([key, text]) =>
    el(
      "label",
      { class: "option" },
      el("input", { type: "radio", name, value: key, checked: key === value, onchange: () => onchange(key) }),
      el("span", {}, text),
    ),
  );
  return el("fieldset", { class: "choice" }, el("legend", {}, label), el("div", { class: "options" }, items));
}
