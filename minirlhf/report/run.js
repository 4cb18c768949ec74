// The report of a run: its curves, score against KL, before and after, and the token view.

const palette = ["--c0", "--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7"];
let showStep = () => {};

// ---- curves

const shown = [];
for (const [index, one] of data.curves.entries()) {
  const box = make("figure");
  byId("curves").append(box);
  box.append(make("h3", {}, one.title), make("figcaption", {}, one.what));
  const values = one.names.map((name) => data.metrics[name]);
  const series = one.names.map((name, i) => ({ label: name, colour: palette[(one.names.length > 1 ? i : index) % palette.length] }));
  if (one.target !== undefined) {
    values.push(data.steps.map(() => one.target));
    series.push({ label: "target", colour: "--soft", dash: [6, 4], width: 1, points: { show: false } });
  }
  shown.push(chart(box, [data.steps, ...values], series,
    { click: (i) => showStep(data.steps[i]), least: Math.max(...one.names.map((name) => data.least[name])) }));
}
walkable(byId("curves"), shown, data.steps);

let any = null;
function drawAny() {
  if (any) { charts.splice(charts.indexOf(any), 1); any.destroy(); }
  const name = byId("metric").value;
  any = chart(byId("any"), [data.steps, data.metrics[name]], [{ label: name, colour: "--c0" }], { height: 240, least: data.least[name] });
}
for (const name of Object.keys(data.metrics)) byId("metric").append(make("option", {}, name));
byId("metric").addEventListener("change", drawAny);
if (byId("metric").options.length) drawAny();

// ---- score against KL

(function () {
  const kl = data.metrics["objective/kl"] || [], score = data.metrics["objective/scores"] || [];
  const seen = (data.frontier.iterations ? kl : []).map((x, i) => [x, score[i]]).filter(([x, y]) => x !== null && y !== null).sort((a, b) => a[0] - b[0]);
  const there = ([x, y]) => x !== null && y !== null;
  const best = data.frontier.best_of_n.filter(there), ended = [data.frontier.policy].filter(there);
  const tables = [seen, best, ended].filter((points) => points.length);
  if (!tables.length) return;
  const every = tables.flat().sort((a, b) => a[0] - b[0]);
  const at = (points) => every.map((point) => points.includes(point) ? point[1] : null);
  const series = [];
  const errors = (points) => every.map((point) => points.includes(point) ? point[2] ?? 0 : 0);
  const sizes = { seen: data.frontier.responses, best: data.frontier.few, ended: data.frontier.prompts };
  const named = (name, count, what) => count ? `${name} (${count} ${what})` : name;
  if (seen.length) series.push({ label: named("iteration", sizes.seen, "responses"), colour: "--c0", dots: true });
  if (best.length) series.push({ label: named("best of n", sizes.best, "held-out prompts"), colour: "--c2", points: { show: true }, errors: errors(best) });
  if (ended.length) series.push({ label: named("policy", sizes.ended, "held-out prompts"), colour: "--c1", points: { show: true, size: 13, width: 3 }, errors: errors(ended) });
  chart(byId("frontier"), [every.map(([x]) => x), ...tables.map(at)], series,
    { height: 300, alone: true, x: "KL, nats per sequence", y: "score", name: "KL" });
})();

// ---- before and after

if (byId("beside")) {
  const body = byId("beside").tBodies[0], rows = [...body.rows], most = 8;
  const before = (row) => parseFloat(row.dataset.before), after = (row) => parseFloat(row.dataset.after);
  const keys = {
    gain: (row) => after(row) - before(row), loss: (row) => before(row) - after(row),
    policy: after, long: (row) => row.cells[3].textContent.length,
  };
  let all = rows.length <= most;
  const arrange = () => {
    const key = keys[byId("order").value];
    const value = (row) => Number.isFinite(key(row)) ? key(row) : -Infinity;
    rows.sort((a, b) => value(b) - value(a)).forEach((row, i) => { row.hidden = !all && i >= most; body.append(row); });
    byId("more").hidden = rows.length <= most;
    byId("more").textContent = all ? `show ${most}` : `show all ${rows.length}`;
  };
  byId("order").addEventListener("change", arrange);
  byId("more").addEventListener("click", () => { all = !all; arrange(); });
  arrange();
}

// ---- token by token

const glyphs = (text) => text.replaceAll("\n", "⏎\n").replaceAll("\t", "⇥");

(function () {
  const { texts, rows } = data.tokens;
  if (!rows.length) return;
  const steps = [...new Set(rows.map((row) => row.step))];
  const centre = (key) => key === "ratio" ? 1 : 0;
  const scales = {};
  for (const [key] of data.quantities) {
    const sizes = rows.flatMap((row) => row[key]).filter((x) => x !== null).map((x) => Math.abs(x - centre(key))).sort((a, b) => a - b);
    scales[key] = sizes[Math.min(sizes.length - 1, Math.floor(0.98 * sizes.length))] || 0;
    byId("quantity").append(make("option", { value: key }, data.quantities.find((q) => q[0] === key)[1]));
  }
  for (const step of steps) byId("step").append(make("option", {}, String(step)));
  byId("step").value = String(steps[steps.length - 1]);
  let token = 0;

  const here = () => rows.filter((row) => row.step === Number(byId("step").value));
  const current = () => here()[byId("response").selectedIndex];

  function listResponses() {
    const before = Math.max(0, byId("response").selectedIndex);
    byId("response").replaceChildren(...here().map((row, i) =>
      make("option", {}, `${i + 1}, score ${short(row.score)}`)));
    byId("response").selectedIndex = Math.min(before, here().length - 1);
    token = 0;
    draw();
  }

  function draw(focus) {
    const row = current(), key = byId("quantity").value, scale = scales[key];
    byId("prompt").textContent = row.prompt;
    byId("score").textContent = `score ${short(row.score)}${row.ended ? "" : ", cut off at the longest length"}`;
    byId("meaning").textContent = data.quantities.find((q) => q[0] === key)[2];
    byId("jump").textContent = `tokens of iteration ${row.step}`;
    byId("low").textContent = short(centre(key) - scale);
    byId("high").textContent = short(centre(key) + scale);
    const spans = row.tokens.map((number, i) => {
      const text = texts[number], last = row.ended && i === row.tokens.length - 1;
      const span = make("span", { class: "token", role: "option", tabindex: i === token ? "0" : "-1", "aria-selected": String(i === token) });
      span.append(last ? make("span", { class: "glyph" }, "⟨eos⟩") : text === "" ? make("span", { class: "glyph" }, "·") : glyphs(text));
      if (row.clipped && row.clipped.includes(i)) span.classList.add("clipped");
      const value = row[key][i];
      if (value !== null && scale > 0) {
        const share = Math.max(-1, Math.min(1, (value - centre(key)) / scale));
        span.style.backgroundColor = `rgba(var(${share < 0 ? "--minus" : "--plus"}), ${(0.65 * Math.abs(share)).toFixed(3)})`;
      }
      span.setAttribute("title", `${short(value)}`);
      span.addEventListener("click", () => { token = i; draw(true); });
      span.addEventListener("mouseenter", () => describe(row, i));
      span.addEventListener("mouseleave", () => describe(row, token));
      return span;
    });
    byId("tokens").replaceChildren(...spans);
    if (focus) spans[token].focus({ preventScroll: true });
    describe(row, token);
  }

  function describe(row, at) {
    const noted = (name) => name ? [" ", make("code", { class: "soft" }, name)] : [];
    const lines = data.quantities.map(([key, name, what, notes]) => {
      const line = make("tr", {}, make("th", { scope: "row" }, name, ...noted(notes)), make("td", { class: "num" }, short(row[key][at])));
      line.setAttribute("title", what);
      return line;
    });
    const held = row.clipped === null ? "-" : row.clipped.includes(at) ? "yes" : "no";
    lines.push(make("tr", {}, make("th", { scope: "row" }, "held back by the clip"), make("td", { class: "num" }, held)));
    byId("numbers").replaceChildren(make("table", {}, make("caption", {}, `token ${at + 1} of ${row.tokens.length}`), make("tbody", {}, ...lines)));
    const choices = row.likeliest[at].map(([number, p, q]) => {
      const bar = (kind, x) => {
        const share = make("span", { class: `share ${kind}` });
        share.style.width = `${Math.max(0.05, 7 * Math.exp(x ?? -99))}rem`;
        return make("td", {}, share, ` ${(100 * Math.exp(x ?? -99)).toFixed(1)} %`);
      };
      return make("tr", {}, make("th", { scope: "row", class: "text" }, JSON.stringify(texts[number]), number === row.tokens[at] ? " ← taken" : ""), bar("policy", p), bar("reference", q));
    });
    const head = make("tr", {}, ...["most likely here", "policy", "reference"].map((x, i) => make("th", { scope: "col" }, x, ...noted(i ? "all_probs" : ""))));
    byId("alternatives").replaceChildren(make("table", {}, make("thead", {}, head), make("tbody", {}, ...choices)));
  }

  function choose(list, by) {
    const next = Math.min(list.options.length - 1, Math.max(0, list.selectedIndex + by));
    if (next !== list.selectedIndex) { list.selectedIndex = next; list.dispatchEvent(new Event("change")); }
  }

  byId("step").addEventListener("change", listResponses);
  byId("response").addEventListener("change", () => { token = 0; draw(); });
  byId("quantity").addEventListener("change", () => draw());
  document.addEventListener("theme", () => draw());
  byId("tokens").addEventListener("keydown", (event) => {
    const count = current().tokens.length;
    const moves = {
      ArrowLeft: () => { token = Math.max(0, token - 1); }, ArrowRight: () => { token = Math.min(count - 1, token + 1); },
      Home: () => { token = 0; }, End: () => { token = count - 1; },
      ArrowUp: () => choose(byId("response"), -1), ArrowDown: () => choose(byId("response"), 1),
      "[": () => choose(byId("step"), -1), "]": () => choose(byId("step"), 1),
      q: () => { byId("quantity").selectedIndex = (byId("quantity").selectedIndex + 1) % byId("quantity").options.length; },
    };
    const move = event.ctrlKey || event.metaKey || event.altKey ? undefined : moves[event.key];
    if (!move) return;
    event.preventDefault();
    move();
    draw(true);
  });
  showStep = (wanted) => {
    const near = steps.reduce((a, b) => Math.abs(b - wanted) < Math.abs(a - wanted) ? b : a);
    byId("step").value = String(near);
    listResponses();
  };
  listResponses();
})();
