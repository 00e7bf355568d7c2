// What keeps a page up to date. Everything on it can be read without this file.
"use strict";

const MOST = 400_000; // Characters of a log that stay on the page

// Characters that cannot be seen, and change what is seen, as escapes; as `visible` does on the server.
const UNSEEN =
  /[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2064\u2066-\u2069\ufeff\u{e0000}-\u{e007f}]/gu;

const COLOR = /\x1b\[[0-9;?]*[A-Za-z]/g; // what colors a terminal

function visible(text) {
  return text.replaceAll("\r\n", "\n").replace(UNSEEN, (character) => {
    const code = character.codePointAt(0);
    const [start, size] = code > 0xffff ? ["\\U", 8] : code > 0xff ? ["\\u", 4] : ["\\x", 2];
    return start + code.toString(16).padStart(size, "0");
  });
}

// The log of a run at work: pieces as they come, and a fresh page when the run has ended. A carriage
// return overwrites its line, as in a terminal: a bar of progress is one line, and not hundreds.
function overwritten(line) {
  const written = line.split("\r").filter((part) => part.trim());
  return written.length ? visible(written[written.length - 1].replace(COLOR, "")) : "";
}

function follow(log) {
  const source = new EventSource(log.dataset.log);
  const open = new Map(); // The last line of each span, with its carriage returns
  source.addEventListener("log", (event) => {
    const piece = JSON.parse(event.data);
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    let span = log.lastElementChild;
    if (!span || span.className !== piece.stream || span.textContent.length > 20_000) {
      span = document.createElement("span");
      span.className = piece.stream;
      log.append(span);
    }
    const before = span.textContent.lastIndexOf("\n") + 1;
    const last = open.get(span) ?? span.textContent.slice(before);
    const lines = (last + piece.chunk).replaceAll("\r\n", "\n").split("\n");
    span.textContent = span.textContent.slice(0, before) + lines.map(overwritten).join("\n");
    open.clear();
    open.set(span, lines[lines.length - 1].slice(-10_000));
    while (log.childNodes.length > 1 && log.textContent.length > MOST) log.firstChild.remove();
    if (atEnd) log.scrollTop = log.scrollHeight;
  });
  source.addEventListener("status", () => {
    source.close();
    location.reload();
  });
}

// Curves: drawn again with a cursor that reads values off, and kept up to date while the run lasts.
function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function plot(host, title, curves) {
  const names = Object.keys(curves);
  const strokes = names.length > 1 ? ["--quiet", "--accent", "--bad"] : ["--accent"];
  const tables = names.map((name) => [
    curves[name].map((point) => point[0]),
    curves[name].map((point) => point[1]),
  ]);
  const place = (end) => names.findIndex((name) => name.endsWith(end)) + 1;
  const [low, high] = [place(", low"), place(", high")]; // ends of an interval: a band
  const bands = low && high ? [{ series: [high, low], fill: colour("--accent") + "30" }] : [];
  const edge = (name) => bands.length && /, (low|high)$/.test(name);
  const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 } };
  const ticks = (_, values) => values.map((value) => String(Number(value.toPrecision(3))));
  const shown = (_, value) => (value == null ? "–" : Number(value).toPrecision(4));
  const series = names.map((name, position) => ({
    label: name,
    stroke: colour(bands.length ? "--accent" : strokes[position % strokes.length]),
    width: edge(name) ? 0.6 : 1.8,
    spanGaps: true,
    value: shown,
    points: { show: curves[name].length < 3 },
  }));
  return new uPlot(
    {
      width: host.clientWidth,
      height: 230,
      scales: { x: { time: false } },
      axes: [axis, { ...axis, size: 64, values: ticks }],
      series: [{ label: "step" }, ...series],
      bands,
    },
    uPlot.join(tables),
    host,
  );
}

async function draw(charts, drawn) {
  const answer = await fetch(charts.dataset.curves, { headers: { Accept: "application/json" } });
  if (!answer.ok) return;
  for (const [title, curves] of Object.entries(await answer.json())) {
    const old = drawn.get(title);
    if (old && old.series.length === Object.keys(curves).length + 1) {
      old.setData(uPlot.join(Object.values(curves).map((c) => [c.map((p) => p[0]), c.map((p) => p[1])])));
      continue;
    }
    if (!drawn.size) charts.replaceChildren();
    old?.root.parentElement.remove();
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    caption.textContent = visible(title);
    figure.append(caption);
    charts.append(figure);
    drawn.set(title, plot(figure, title, curves));
  }
}

function watch(charts) {
  const drawn = new Map();
  const fit = () => {
    for (const chart of drawn.values()) {
      const width = chart.root.parentElement.clientWidth;
      if (width !== chart.width) chart.setSize({ width, height: 230 });
    }
  };
  const show = () => draw(charts, drawn).then(fit); // a chart is wider until it has a neighbor
  show();
  if ("live" in charts.dataset) setInterval(show, 2000);
  addEventListener("resize", fit);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const chart of drawn.values()) chart.destroy();
    drawn.clear(); // they are drawn again, in the colours of the other scheme
    show();
  });
}

document.querySelectorAll("[data-log]").forEach((log) => {
  log.scrollTop = log.scrollHeight;
  if (log.dataset.log) follow(log);
});
document.querySelectorAll("[data-curves]").forEach(watch);

// Traces, and what helps on every page: copying, ticking, keys, names that are remembered.
function copyFrom(button) {
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
    const words = button.textContent;
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = words), 1500);
  });
}

function tickAll(all) {
  const boxes = [...all.form.querySelectorAll("input[name=ids]")];
  const told = all.form.querySelector("[data-selected]");
  const tell = () => {
    const count = boxes.filter((box) => box.checked).length;
    all.checked = count === boxes.length;
    all.indeterminate = count > 0 && !all.checked;
    told.textContent = count ? `${count} selected` : "";
  };
  all.addEventListener("change", () => {
    for (const box of boxes) box.checked = all.checked;
    tell();
  });
  for (const box of boxes) box.addEventListener("change", tell);
  tell();
}

function remember(field) {
  const key = `tunix_rt ${field.dataset.remember}`;
  field.value ||= localStorage.getItem(key) ?? "";
  field.addEventListener("change", () => {
    localStorage.setItem(key, field.value);
    for (const other of document.querySelectorAll(`[data-remember=${field.dataset.remember}]`)) {
      other.value = field.value;
    }
  });
}

function followKeys(event) {
  if (event.target.closest("input, textarea, select") || event.ctrlKey || event.metaKey || event.altKey) return;
  const way = { j: "next", k: "prev" }[event.key];
  if (way) document.querySelector(`[data-keys] a[rel=${way}]`)?.click();
}

// What scrolls can be scrolled with the keyboard.
function letScroll() {
  for (const each of document.querySelectorAll(".scroll, pre, .charts, .tunix-answers")) {
    const overflows = each.scrollWidth > each.clientWidth + 1 || each.scrollHeight > each.clientHeight + 1;
    if (overflows && getComputedStyle(each).overflow !== "visible") each.tabIndex = 0;
  }
}

document.querySelectorAll("[data-copy]").forEach(copyFrom);
document.querySelectorAll("[data-tick-all]").forEach(tickAll);
document.querySelectorAll("[data-remember]").forEach(remember);
if (document.querySelector("[data-keys]")) addEventListener("keydown", followKeys);
if (matchMedia("(min-width: 60rem)").matches) document.querySelectorAll("[data-wide-open]").forEach((each) => (each.open = true));
else document.querySelectorAll("[data-wide-open]").forEach((each) => (each.open = false));
letScroll();
addEventListener("resize", letScroll);

// Forms that queue or take in: a file is sent as it is, and its answer is said beside the button.
async function sendFile(form, event) {
  event.preventDefault();
  const file = form.elements.file.files[0];
  const said = form.querySelector("output");
  const fields = [...new FormData(form)].filter(([name, value]) => name !== "file" && value);
  form.querySelector("button").disabled = true;
  said.textContent = `Sending ${file.name} …`;
  try {
    const answer = await fetch(`${form.dataset.upload}?${new URLSearchParams(fields)}`, {
      method: "POST",
      body: file,
      headers: { "Content-Type": "application/x-ndjson", Accept: "application/json" },
    });
    const told = await answer.json();
    said.textContent = answer.ok
      ? `${told.ingested_count} traces stored; ${told.duplicates} repeated, ${told.already_stored} there already.`
      : told.detail;
    said.classList.toggle("error", !answer.ok);
  } catch (error) {
    said.textContent = `Not sent: ${error.message}`;
  }
  form.querySelector("button").disabled = false;
}
document.querySelectorAll("[data-upload]").forEach((form) => {
  form.addEventListener("submit", (event) => sendFile(form, event));
});
