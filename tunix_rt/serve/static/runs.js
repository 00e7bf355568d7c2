// Runs: ticking, overlaid curves, keys on predictions. Every page can be read without this file.
"use strict";

// The table: how many runs are selected.
document.querySelectorAll("[data-ticks]").forEach((form) => {
  const button = form.querySelector("[data-compare]");
  const count = form.querySelector("[data-count]");
  const update = () => {
    const selected = form.querySelectorAll("[name=run]:checked").length;
    button.disabled = selected < 1;
    button.classList.toggle("main", selected > 1);
    button.textContent = selected > 1 ? `Compare ${selected} runs` : "Compare";
    count.textContent = selected > 10 ? "Ten fit beside each other." : selected > 1 ? "" : "Select two or more.";
  };
  form.addEventListener("change", update);
  update();
  addEventListener("pageshow", update); // back from the comparison, the boxes are still selected
});

// A field that narrows a list of names.
document.querySelectorAll("[data-narrows]").forEach((field) => {
  field.addEventListener("keydown", (event) => event.key === "Enter" && event.preventDefault());
  field.addEventListener("input", () => {
    const wanted = field.value.trim().toLowerCase();
    for (const each of document.querySelectorAll(field.dataset.narrows)) {
      const words = `${each.textContent} ${each.querySelector("[title]")?.title ?? ""}`;
      each.hidden = !words.toLowerCase().includes(wanted);
    }
  });
});

document.querySelectorAll("[data-copy]").forEach((button) => {
  if (!navigator.clipboard) return;
  button.hidden = false;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(button.previousElementSibling.textContent);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
});

// Overlaid curves: one chart for each metric, one curve for each run, drawn when they come into view.
function smoothed(values, weight) {
  if (!weight) return values;
  let last = 0;
  let seen = 0;
  return values.map((value) => {
    if (value == null) return null;
    last = last * weight + (1 - weight) * value;
    seen += 1;
    return last / (1 - weight ** seen); // without it, the first values would be drawn to 0
  });
}

function overlaid(host, curves, runs, knobs) {
  const style = getComputedStyle(document.documentElement);
  const tone = (name) => style.getPropertyValue(name).trim();
  const ids = Object.keys(runs).filter((id) => curves[id]);
  const joined = uPlot.join(ids.map((id) => [curves[id].map((p) => p[0]), curves[id].map((p) => p[1])]));
  const usable = (value) => (knobs.log && value != null && value <= 0 ? null : value);
  const raw = joined.slice(1).map((row) => Array.from(row, usable));
  const axis = { stroke: tone("--quiet"), grid: { stroke: tone("--line"), width: 1 }, ticks: { show: false } };
  const number = (value) => (value == null ? "–" : Number(value).toPrecision(4));
  const ticks = (_, values) => values.map((value) => (value == null ? "" : String(Number(value.toPrecision(3)))));
  const series = [{ label: "step" }];
  const data = [joined[0]];
  ids.forEach((id, place) => {
    const stroke = tone(`--run-${Object.keys(runs).indexOf(id)}`);
    const points = { show: curves[id].length < 3 };
    if (knobs.smooth) {
      series.push({ label: "", stroke: stroke + "55", width: 1, spanGaps: true, points: { show: false }, class: "raw" });
      data.push(raw[place]);
    }
    series.push({ label: runs[id], stroke, width: 1.8, spanGaps: true, value: (_, v) => number(v), points });
    data.push(smoothed(raw[place], knobs.smooth));
  });
  const logarithmic = knobs.log && raw.some((row) => row.some((value) => value > 0));
  return new uPlot(
    {
      width: Math.max(220, host.clientWidth),
      height: 210,
      scales: { x: { time: false }, y: logarithmic ? { distr: 3 } : {} },
      axes: [axis, { ...axis, size: 62, values: ticks }],
      series,
      legend: { live: true },
      cursor: { sync: { key: "runs" }, y: false },
    },
    data,
    host,
  );
}

async function overlay(charts) {
  const answer = await fetch(charts.dataset.overlay, { headers: { Accept: "application/json" } });
  if (!answer.ok) return;
  const { runs, metrics } = await answer.json();
  const names = Object.keys(metrics);
  if (!names.length) return;
  const address = new URLSearchParams(location.search);
  const knobs = { log: address.has("log"), smooth: Math.min(0.99, Number(address.get("smooth")) || 0) };
  const drawn = new Map();
  charts.replaceChildren();

  const row = document.createElement("div");
  row.className = "knob-row";
  const knob = (type, words, value) => {
    const label = document.createElement("label");
    const input = document.createElement("input");
    input.type = type;
    if (type === "checkbox") input.checked = value;
    else input.value = value;
    label.append(...(type === "checkbox" ? [input, words] : [words, input]));
    row.append(label);
    return input;
  };
  const log = knob("checkbox", "Logarithmic", knobs.log);
  const smooth = knob("range", "Smoothing", 0);
  Object.assign(smooth, { min: 0, max: 0.99, step: 0.01 });
  smooth.value = knobs.smooth;
  const shown = document.createElement("output");
  smooth.after(shown);
  const find = knob("search", "Metrics", "");
  find.placeholder = "find a name";
  charts.append(row);

  const figures = names.map((name) => {
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    caption.textContent = visible(name);
    const plot = document.createElement("div");
    plot.className = "plot";
    figure.append(caption, plot);
    charts.append(figure);
    return { name, figure, plot };
  });
  const paint = ({ name, plot }) => {
    drawn.get(name)?.destroy();
    plot.replaceChildren();
    drawn.set(name, overlaid(plot, metrics[name], runs, knobs));
    for (const line of plot.querySelectorAll(".u-series.raw")) line.hidden = true;
  };
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const each = figures.find((one) => one.plot === entry.target);
      if (entry.isIntersecting && !drawn.has(each.name)) paint(each);
    }
  }, { rootMargin: "300px" });
  figures.forEach((each) => watcher.observe(each.plot));
  const again = () => {
    knobs.log = log.checked;
    knobs.smooth = Number(smooth.value);
    shown.textContent = knobs.smooth ? knobs.smooth.toFixed(2) : "off";
    const kept = new URL(location);
    if (knobs.log) kept.searchParams.set("log", "1"); else kept.searchParams.delete("log");
    if (knobs.smooth) kept.searchParams.set("smooth", String(knobs.smooth)); else kept.searchParams.delete("smooth");
    history.replaceState(null, "", kept);
    figures.filter((each) => drawn.has(each.name)).forEach(paint);
  };
  shown.textContent = knobs.smooth ? knobs.smooth.toFixed(2) : "off";
  log.addEventListener("change", again);
  smooth.addEventListener("input", again);
  find.addEventListener("input", () => {
    const wanted = find.value.trim().toLowerCase();
    for (const each of figures) each.figure.hidden = !each.name.toLowerCase().includes(wanted);
  });
  addEventListener("resize", () => {
    for (const each of figures) {
      drawn.get(each.name)?.setSize({ width: Math.max(220, each.plot.clientWidth), height: 210 });
    }
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
}
document.querySelectorAll("[data-overlay]").forEach(overlay);

// Predictions: j and k go down and up, n to the next wrong one, / to the search.
document.querySelectorAll("[data-answers]").forEach((list) => {
  const entries = [...list.querySelectorAll(":scope > details")];
  let place = entries.findIndex((each) => `#${each.id}` === location.hash);
  if (place >= 0) entries[place].open = true;
  const follow = () => {
    const next = document.querySelector(".pager [rel=next]");
    if (next) location.href = next.href;
  };
  const go = (to, open) => {
    if (to < 0) return;
    if (to >= entries.length) return follow();
    if (open && entries[place]) entries[place].open = false;
    place = to;
    const summary = entries[place].querySelector("summary");
    if (open) entries[place].open = true;
    summary.focus({ preventScroll: true });
    entries[place].scrollIntoView({ block: open ? "start" : "nearest" });
  };
  list.addEventListener("focusin", (event) => {
    const found = entries.indexOf(event.target.closest("details"));
    if (found >= 0) place = found;
  });
  addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, select, textarea, [contenteditable]");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "j") go(place + 1, false);
    else if (event.key === "k") go(place - 1, false);
    else if (event.key === "n") {
      const next = entries.findIndex((each, n) => n > place && each.dataset.right === "no");
      go(next < 0 ? entries.length : next, true);
    } else if (event.key === "/") {
      document.querySelector("[data-search]")?.focus();
    } else return;
    event.preventDefault();
  });
});
