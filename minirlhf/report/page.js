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

// Draw one chart in `box`. series: [{label, colour: "--c0", width, dash, points}]; a click calls click(index).
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
    scales: { x: { time: false } },
    cursor: more.alone ? { drag: { x: true, y: true } } : { y: false, sync: { key: "iterations" }, drag: { x: true, y: false } },
    hooks: { setSeries: more.onSeries ? [more.onSeries] : [] },
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
