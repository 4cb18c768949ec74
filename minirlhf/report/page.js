"use strict";
// Shared by all pages: the data, elements, colours, the theme, and curves with a common cursor.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const short = (x) => x === null || x === undefined ? "-" : String(Number(Number(x).toPrecision(4)));

// Make an element with attributes and children. A child that is a string becomes a text node, never markup.
function make(tag, attributes, ...inside) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  element.append(...inside);
  return element;
}

const charts = [];
const whole = [1, 2, 5].flatMap((x) => [0, 1, 2, 3, 4, 5, 6].map((e) => x * 10 ** e)).sort((a, b) => a - b);

// Range of an axis: that of the values with their error bars, widened to its least span; values within 0 to 1 stay there.
function spanned(least, series) {
  return (plot, low, high) => {
    if (low === null) return [low, high];
    series.forEach((s, k) => (s.errors || []).forEach((error, i) => {
      const value = plot.data[k + 1][i];
      if (value !== null && plot.series[k + 1].show) { low = Math.min(low, value - 2 * error); high = Math.max(high, value + 2 * error); }
    }));
    const lack = Math.max(0, (least || 0) - (high - low)) / 2, share = low >= 0 && high <= 1;
    const shift = share ? Math.max(0, lack - low) - Math.max(0, high + lack - 1) : 0;
    return uPlot.rangeNum(low - lack + shift, high + lack + shift, 0.1, true);
  };
}

// Error bars, two standard errors to each side.
function bars(plot, series) {
  const across = (x) => plot.valToPos(x, "x", true), down = (y) => plot.valToPos(y, "y", true), pen = plot.ctx;
  pen.save();
  series.forEach((s, k) => {
    if (!s.errors || !plot.series[k + 1].show) return;
    pen.strokeStyle = colour(s.colour);
    pen.lineWidth = 1.5 * devicePixelRatio;
    s.errors.forEach((error, i) => {
      const x = across(plot.data[0][i]), value = plot.data[k + 1][i], cap = 4 * devicePixelRatio;
      if (value === null || !error) return;
      const ends = [down(value - 2 * error), down(value + 2 * error)];
      pen.beginPath();
      pen.moveTo(x, ends[0]); pen.lineTo(x, ends[1]);
      for (const end of ends) { pen.moveTo(x - cap, end); pen.lineTo(x + cap, end); }
      pen.stroke();
    });
  });
  pen.restore();
}

// Draw one chart in `box`. series: [{label, colour: "--c0", width, dash, points, errors}]; a click calls click(index).
function chart(box, values, series, more = {}) {
  const last = (i) => values[i].findLast((x) => x !== null);  // shown in the legend while there is no cursor
  const line = (s) => ({
    label: s.label, stroke: () => colour(s.colour), width: s.width ?? 1.6, dash: s.dash, show: s.show ?? true,
    spanGaps: true, alpha: s.alpha ?? 1, paths: s.dots ? () => null : undefined,
    points: s.dots ? { show: true, size: 6, fill: () => colour(s.colour) } : { fill: () => colour("--paper"), ...s.points },
    value: (_, x, i, at) => short(at === null ? last(i) : x),
  });
  const axis = { stroke: () => colour("--soft"), grid: { stroke: () => colour("--line"), width: 1 }, ticks: { show: false } };
  const plot = new uPlot({
    width: box.clientWidth || 360, height: more.height ?? 190,
    scales: { x: { time: false }, y: { range: spanned(more.least, series) } },
    cursor: more.alone ? { drag: { x: true, y: true } } : { y: false, sync: { key: "iterations" }, drag: { x: true, y: false } },
    hooks: { setSeries: more.onSeries ? [more.onSeries] : [], draw: [(plot) => bars(plot, series)] },
    axes: [{ ...axis, incrs: more.alone ? undefined : whole, label: more.x, labelSize: more.x ? 18 : 0, labelFont: "12px system-ui", size: 32 },
           { ...axis, label: more.y, labelSize: more.y ? 18 : 0, labelFont: "12px system-ui", size: 56,
             values: (_, ticks) => ticks.map(short) }],
    series: [{ label: more.name ?? "iteration", value: (_, x, i, at) => short(at === null ? last(i) : x) }, ...series.map(line)],
    legend: { show: more.legend ?? true },
  }, values, box);
  if (more.click) {
    let pressed = 0;
    plot.over.addEventListener("mousedown", (event) => { pressed = event.clientX; });
    plot.over.addEventListener("mouseup", (event) => {
      if (Math.abs(event.clientX - pressed) < 3 && plot.cursor.idx !== null) more.click(plot.cursor.idx);
    });
  }
  new ResizeObserver(() => {
    const width = Math.floor(box.clientWidth);
    if (width && width !== plot.width) plot.setSize({ width, height: plot.height });
  }).observe(box);
  charts.push(plot);
  return plot;
}

// The arrow keys left and right move the cursor of all charts of a group by one iteration.
function walkable(group, plots, steps) {
  let at = -1;
  group.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || event.target !== group) return;
    event.preventDefault();
    at = Math.min(steps.length - 1, Math.max(0, at + by));
    for (const plot of plots) plot.setCursor({ left: plot.valToPos(steps[at], "x"), top: 20 }, false);
  });
}

const redraw = () => charts.forEach((plot) => plot.redraw(false, true));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
byId("theme").addEventListener("change", (event) => {
  if (event.target.value === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = event.target.value;
  redraw();
  document.dispatchEvent(new Event("theme"));
});
