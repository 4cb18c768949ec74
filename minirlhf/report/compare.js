// The curves of a comparison: one colour for each variant, its seeds thin, their mean thick.

const palette = ["--c0", "--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7"];
const hue = (i) => palette[i % palette.length];
const steps = [...new Set(data.variants.flatMap((v) => v.seeds.flatMap((s) => s.steps)))].sort((a, b) => a - b);

// Values of a run at all steps, null where it has none.
function over(seed, name) {
  const at = new Map(seed.steps.map((step, i) => [step, (seed.metrics[name] || [])[i] ?? null]));
  return steps.map((step) => at.get(step) ?? null);
}

const mean = (rows) => steps.map((_, i) => {
  const there = rows.map((row) => row[i]).filter((x) => x !== null);
  return there.length ? there.reduce((a, b) => a + b) / there.length : null;
});

function draw(box, name, height) {
  const values = [], series = [], seeds = new Map();
  for (const [i, variant] of data.variants.entries()) {
    const rows = variant.seeds.map((seed) => over(seed, name));
    values.push(mean(rows));
    series.push({ label: variant.label, colour: hue(i), width: 2.4, dash: i < palette.length ? undefined : [8, 4], points: { show: false } });
  }
  for (const [i, variant] of data.variants.entries()) {
    seeds.set(i + 1, variant.seeds.map((_, k) => values.length + 1 + k));
    for (const seed of variant.seeds) {
      values.push(over(seed, name));
      series.push({ label: `seed ${seed.seed}`, colour: hue(i), width: 0.8, alpha: 0.45, points: { show: false } });
    }
  }
  const onSeries = (u, i, change) => {  // hiding a variant hides its seeds, too
    if (change.show !== undefined) for (const k of seeds.get(i) ?? []) u.setSeries(k, { show: change.show });
  };
  const plot = chart(box, [steps, ...values], series, { height, onSeries, least: data.least[name] });
  const lines = plot.root.querySelectorAll(".u-legend .u-series");
  for (let k = 1 + data.variants.length; k < lines.length; k++) lines[k].hidden = true;  // the seeds are not in the legend
  return plot;
}

for (const swatch of document.querySelectorAll(".swatch")) {
  const paint = () => { swatch.style.backgroundColor = colour(hue(Number(swatch.dataset.variant))); };
  document.addEventListener("theme", paint);
  paint();
}

const shown = [];
for (const [title, what, name] of data.shown) {
  const box = make("figure");
  byId("curves").append(box);
  box.append(make("h3", {}, title), make("figcaption", {}, what));
  shown.push(draw(box, name, 220));
}
walkable(byId("curves"), shown, steps);

let any = null;
function drawAny() {
  if (any) { charts.splice(charts.indexOf(any), 1); any.destroy(); }
  any = draw(byId("any"), byId("metric").value, 300);
}
for (const name of data.names) byId("metric").append(make("option", {}, name));
byId("metric").addEventListener("change", drawAny);
if (data.names.length) drawAny();
