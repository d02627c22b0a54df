// The curves: uPlot draws them; the legend below each is made of buttons and shows the values under the pointer, or
// under the arrow keys when a chart has the focus.

const CHART_HEIGHT = 170;
const DRAWN = new Set(); // charts on the page, to draw again when colours change

// A flat curve gets an axis around it, a curve of zeros one from 0 to 1.
function rangeOf(low, high) {
  if (low === null || (low === 0 && high === 0)) return [0, 1];
  if (low === high) return [Math.min(0, 2 * low), Math.max(0, 2 * low)];
  return uPlot.rangeNum(low, high, 0.1, true);
}

// A colour of the page, as a canvas understands it.
const PROBE = document.head.appendChild(el("span"));
function css(name) {
  PROBE.style.color = `var(${name})`;
  return getComputedStyle(PROBE).color;
}

// Values that the chart cannot show (NaN, infinity, what is not above 0 on a logarithmic axis) are gaps.
function drawable(values, log) {
  return values.map((value) => (value !== null && Number.isFinite(value) && (!log || value > 0) ? value : null));
}

class Chart {
  constructor(spec, stage, smoothing) {
    this.spec = spec;
    this.lines = spec.figures.flatMap(([name, label], colour) =>
      RUNS.map((run, number) => {
        const points = pointsOf(run, stage, name);
        return points && { name, label, colour, number, run, ...points, hidden: false };
      }).filter(Boolean),
    );
    const positive = this.lines.some((line) => line.raw.some((value) => value > 0));
    const zeros = this.lines.some((line) => line.raw.some((value) => value <= 0 && value !== null));
    this.log = spec.log && positive && !zeros;
    this.smoothing = smoothing;
    this.marks = rlMarks(stage);
    this.index = null; // the point that is read, null: the last of every line
    this.box = el("figure", { class: "chart", data: { chart: spec.id } });
    this.canvas = el("div", {
      class: "canvas",
      tabindex: 0,
      role: "slider",
      "aria-label": `${spec.title}: arrow keys read the steps`,
      onkeydown: (event) => this.onKey(event),
    });
    const title = el("figcaption", {}, el("strong", {}, spec.title), el("small", {}, spec.help));
    this.legend = el("div", { class: "legend" });
    this.step = el("span", { class: "step" });
    this.box.append(title, this.canvas, this.legend, el("p", { class: "remark" }, this.remarks()));
  }

  // Attach before drawing: the width is the parent's.
  draw() {
    const join = uPlot.join(this.lines.map((line) => [line.xs, drawable(line.raw, this.log)]));
    this.xs = join[0];
    const smooth = this.lines.map((line, i) => (this.isSmooth(line) ? this.smoothed(join[i + 1]) : null));
    this.data = [...join, ...smooth.filter(Boolean)];
    const series = this.lines.map((line, i) => this.series(line, smooth[i] ? 0.35 : 1));
    const means = this.lines.filter((_, i) => smooth[i]).map((line) => this.series(line, 1));
    this.plot = new uPlot(this.options([...series, ...means]), this.data, this.canvas);
    new ResizeObserver(() => this.fit()).observe(this.canvas);
    this.fillLegend();
    this.read(null);
    DRAWN.add(this);
    return this;
  }

  // A curve of few points (dev readings) is left as it is.
  isSmooth(line) {
    return this.smoothing > 1 && line.xs.length >= 3 * this.smoothing;
  }

  // Means of a curve on the common axis, within each stage; where it has no point (undefined) there stays none.
  smoothed(values) {
    const all = new Array(values.length).fill(undefined);
    const starts = this.marks.length ? this.marks.map(({ from }) => from) : [-Infinity];
    starts.forEach((start, n) => {
      const end = starts[n + 1] ?? Infinity;
      const places = values.flatMap((value, i) =>
        value !== undefined && this.xs[i] >= start && this.xs[i] < end ? [i] : [],
      );
      const means = movingMean(
        places.map((i) => values[i]),
        this.smoothing,
      );
      places.forEach((place, i) => (all[place] = means[i]));
    });
    return all;
  }

  series(line, opacity) {
    const few = line.xs.length <= 12;
    return {
      label: line.label,
      stroke: () => css(`--series-${line.colour % 6}`),
      alpha: opacity,
      width: 1.6,
      dash: line.number ? [6, 4] : undefined,
      points: { show: few, size: 5 },
      gaps: (plot, _index, _from, _to, gaps) => [...gaps, ...this.breaks(plot, line)].sort((a, b) => a[0] - b[0]),
    };
  }

  // Between the last point of a stage and the first of the next there is no line, in pixels of the canvas.
  breaks(plot, line) {
    return this.marks.flatMap(({ from }) => {
      const after = line.xs.findIndex((x) => x >= from);
      if (after <= 0) return [];
      return [[line.xs[after - 1], line.xs[after]].map((x) => Math.round(plot.valToPos(x, "x", true)))];
    });
  }

  options(series) {
    const soft = () => css("--soft");
    const grid = { stroke: () => css("--line"), width: 1 };
    const font = "11px system-ui, sans-serif";
    const axis = { stroke: soft, grid, ticks: { show: false }, font };
    return {
      width: Math.max(200, this.canvas.clientWidth),
      height: CHART_HEIGHT,
      legend: { show: false },
      padding: [this.marks.length ? 18 : 8, 16, 0, 0],
      scales: {
        x: { time: false, range: (_, low, high) => (low === high ? [low - 1, high + 1] : [low, high]) },
        y: this.log ? { distr: 3 } : { range: (_, low, high) => rangeOf(low, high) },
      },
      axes: [
        {
          ...axis,
          size: 24,
          incrs: [1, 2, 5].flatMap((n) => [n, n * 10, n * 100, n * 1e3, n * 1e4, n * 1e5]).sort((a, b) => a - b),
        },
        {
          ...axis,
          size: 54,
          values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : figure(Number(tick.toPrecision(6))))),
        },
      ],
      series: [{}, ...series],
      cursor: {
        y: false,
        sync: { key: "steps", scales: ["x", null] },
        points: { size: 6 },
        drag: { x: true, y: false },
      },
      hooks: {
        setCursor: [(plot) => this.read(plot.cursor.left >= 0 ? plot.cursor.idx : null)],
        draw: [(plot) => this.drawMarks(plot)],
      },
    };
  }

  // Where a stage begins, when several share the axis.
  drawMarks(plot) {
    const context = plot.ctx;
    context.save();
    context.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
    context.fillStyle = css("--soft");
    context.strokeStyle = css("--soft");
    context.textAlign = "left";
    context.textBaseline = "alphabetic";
    const right = plot.bbox.left + plot.bbox.width;
    const places = this.marks.map(({ from }) => plot.valToPos(from, "x", true));
    this.marks.forEach(({ stage }, i) => {
      const x = Math.max(places[i], plot.bbox.left);
      if (x > right || (places[i + 1] ?? right) <= plot.bbox.left) return;
      context.beginPath();
      context.setLineDash([2, 3]);
      context.moveTo(x, plot.bbox.top);
      context.lineTo(x, plot.bbox.top + plot.bbox.height);
      context.stroke();
      const room = Math.min(places[i + 1] ?? right, right) - x;
      if (context.measureText(stage).width < room) context.fillText(stage, x, plot.bbox.top - 5 * devicePixelRatio);
    });
    context.restore();
  }

  fillLegend() {
    this.keys = this.lines.map((line, i) =>
      el(
        "button",
        {
          type: "button",
          "aria-pressed": "true",
          data: { series: line.name, run: LETTERS[line.number] },
          onclick: () => this.toggle(i),
        },
        el("span", {
          class: `swatch${line.number ? " dashed" : ""}`,
          style: { "--colour": `var(--series-${line.colour % 6})` },
        }),
        COMPARING ? el("span", { class: "letter" }, LETTERS[line.number]) : null,
        el("span", { class: "label" }, line.label),
        el("output", {}),
      ),
    );
    this.legend.append(this.step, ...this.keys);
  }

  toggle(i) {
    const line = this.lines[i];
    line.hidden = !line.hidden;
    this.keys[i].setAttribute("aria-pressed", String(!line.hidden));
    this.plot.setSeries(i + 1, { show: !line.hidden });
    if (this.isSmooth(line)) {
      const mean = this.lines.slice(0, i).filter((one) => this.isSmooth(one)).length;
      this.plot.setSeries(this.lines.length + 1 + mean, { show: !line.hidden });
    }
  }

  // Show the values at a point of the common axis (an index), or the last of every line.
  read(index) {
    if (!this.keys) return;
    this.index = index;
    const x = index === null ? null : this.xs[index];
    this.lines.forEach((line, i) => {
      const place = x === null ? line.xs.length - 1 : line.xs.indexOf(x);
      const value = place < 0 ? null : line.raw[place];
      const output = this.keys[i].querySelector("output");
      output.textContent = figure(value);
      output.dataset.value = value === null || value === undefined ? "" : String(value);
      output.dataset.step = place < 0 ? "" : String(line.xs[place]);
    });
    const lasts = this.lines.map((line) => line.xs.at(-1));
    const last = Math.max(...lasts);
    const newest = lasts.every((step) => step === last) ? `last: ${this.stepName(last)}` : "last of every curve";
    this.step.textContent = x === null ? newest : this.stepName(x);
    const words = this.lines.map((line, i) => `${line.label} ${this.keys[i].querySelector("output").textContent}`);
    const set = (name, value) => this.canvas.setAttribute(`aria-${name}`, value);
    set("valuemin", this.xs[0] ?? 0);
    set("valuemax", this.xs.at(-1) ?? 0);
    set("valuenow", x ?? last);
    set("valuetext", `${this.step.textContent}: ${words.join(", ")}`);
  }

  stepName(x) {
    const mark = this.marks.findLast(({ from }) => x >= from) ?? this.marks[0];
    return mark
      ? `${mark.stage}, step ${(x - mark.from).toLocaleString("en-US")}`
      : `step ${x.toLocaleString("en-US")}`;
  }

  onKey(event) {
    const last = this.xs.length - 1;
    const at = this.index ?? last + 1;
    const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, PageUp: at - 10, PageDown: at + 10, Home: 0, End: last };
    if (event.key === "Escape") {
      this.plot.setCursor({ left: -10, top: -10 }, true, true);
      return;
    }
    if (!(event.key in moves)) return;
    event.preventDefault();
    const index = Math.max(0, Math.min(last, moves[event.key]));
    // told to the charts of the other figures, too
    this.plot.setCursor({ left: this.plot.valToPos(this.xs[index], "x"), top: 0 }, true, true);
  }

  // What a reader must know to trust the curve.
  remarks() {
    const bad = this.lines.reduce((sum, line) => sum + line.bad, 0);
    const thin = this.lines.filter((line) => line.xs.length < line.total);
    const notes = [];
    if (bad) notes.push(`${count(bad, "value is", "values are")} not finite (NaN or infinite): gaps.`);
    if (thin.length) {
      const [most] = [...thin].sort((a, b) => b.total - a.total);
      notes.push(
        `Thinned: ${most.xs.length.toLocaleString("en-US")} of ${count(most.total, "point")}, ` +
          "the least and the most of every stretch of steps.",
      );
    }
    if (this.spec.log && !this.log) notes.push("Some value is 0: the axis is linear.");
    return notes.join(" ");
  }

  fit() {
    const width = this.canvas.clientWidth;
    if (width > 0 && width !== this.plot.width) this.plot.setSize({ width, height: CHART_HEIGHT });
  }

  remove() {
    DRAWN.delete(this);
    this.plot.destroy();
  }
}

function drawCurves() {
  const box = section("curves");
  const stages = curveStages();
  if (!stages.length) {
    box.append(notice("No figures yet: metrics.jsonl is empty or not there."));
    return;
  }
  const state = { stage: firstStage(stages), smoothing: 1 };
  const grid = el("div", { class: "charts", data: { curves: "" } });
  const more = el(
    "details",
    { ontoggle: () => more.open && fill(moreGrid, chartsOf(state.stage).more) },
    el("summary", {}, "More figures of this stage"),
  );
  const moreGrid = el("div", { class: "charts" });
  more.append(moreGrid);
  const fill = (place, specs) => {
    [...DRAWN].filter((chart) => place.contains(chart.box)).forEach((chart) => chart.remove());
    const charts = specs.map((spec) => new Chart(spec, state.stage, state.smoothing));
    place.replaceChildren(...charts.map((chart) => chart.box));
    charts.forEach((chart) => chart.draw());
  };
  const draw = () => {
    const { main, more: others } = chartsOf(state.stage);
    fill(grid, main);
    more.hidden = !others.length;
    fill(moreGrid, more.open ? others : []);
  };
  const names = stages.map((stage) => [stage, stage === ALL_RL ? "all RL stages, one after another" : stage]);
  const widths = [1, 5, 20, 100].map((width) => [String(width), width === 1 ? "none" : `mean of ${width} points`]);
  const stage = select("Stage", names, (value) => ((state.stage = value), draw()), state.stage);
  const smoothing = select("Smoothing", widths, (value) => ((state.smoothing = Number(value)), draw()), "1");
  const help = el(
    "p",
    { class: "help" },
    "Point at a curve or give it the focus and use the arrow keys to read values. Drag to zoom, double-click to see all. A legend’s button hides its curve.",
  );
  box.append(el("div", { class: "controls" }, stage.field, smoothing.field), help, grid, more);
  draw();
}
