// The playground: a question to one model or two, as any client of OpenAI would ask it.
"use strict";

const form = document.getElementById("play");
const stopButton = document.getElementById("stop");
const sides = [...document.querySelectorAll(".side")];
let stopping = null;

// The events of a stream, one object each.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
    }
  }
}

function clear(side) {
  side.querySelector(".written").hidden = false;
  for (const part of side.querySelectorAll(".reasoning, .answer, .figures")) part.textContent = "";
  side.querySelector(".written a")?.remove();
  side.said = { reasoning: "", answer: "" }; // as the model wrote it; the page shows it visibly
  const keep = side.querySelector(".keep");
  [keep.hidden, keep.disabled, keep.textContent] = [true, false, "Keep as trace"];
  side.classList.remove("bad");
}

function fail(side, words) {
  side.classList.add("bad");
  side.querySelector(".figures").textContent = words;
}

// Ask one model, and show its words as they come.
async function ask(side, question, settings, signal) {
  const model = side.querySelector("select").value;
  if (!model) return;
  clear(side);
  const [thought, answer, figures] = [".reasoning", ".answer", ".figures"].map((name) => side.querySelector(name));
  figures.textContent = "…";
  const system = settings.system ? [{ role: "system", content: settings.system }] : [];
  const body = {
    model,
    messages: [...system, { role: "user", content: question }],
    temperature: settings.temperature,
    max_tokens: settings.max_tokens,
    seed: settings.seed,
    stream: true,
    stream_options: { include_usage: true },
    separate_reasoning: true,
  };
  const begun = performance.now();
  const response = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok) {
    const told = await response.json().catch(() => ({}));
    return fail(side, told.error?.message ?? `the server answered ${response.status}`);
  }
  let reason = "";
  for await (const event of events(response)) {
    if (event.error) return fail(side, event.error.message);
    const choice = event.choices?.[0];
    const [more, said] = [choice?.delta?.reasoning_content ?? "", choice?.delta?.content ?? ""];
    side.said.reasoning += more;
    side.said.answer += said;
    thought.append(visible(more));
    answer.append(visible(said));
    reason = choice?.finish_reason ?? reason;
    if (event.usage) {
      const seconds = (performance.now() - begun) / 1000;
      const cut = reason === "length" ? ", cut off" : "";
      figures.textContent = `${event.usage.completion_tokens} tokens in ${seconds.toFixed(1)} s${cut}`;
    }
  }
  side.dataset.model = model;
  side.dataset.question = settings.system ? `${settings.system}\n\n${question}` : question;
  side.querySelector(".keep").hidden = !answer.textContent;
}

form?.addEventListener("submit", async (event) => {
  event.preventDefault();
  stopping?.abort();
  stopping = new AbortController();
  const mine = stopping;
  const given = new FormData(form);
  const settings = { system: given.get("system").trim() };
  for (const name of ["temperature", "max_tokens", "seed"]) settings[name] = Number(given.get(name));
  stopButton.hidden = false;
  await Promise.all(
    sides.map((side) =>
      ask(side, given.get("question").trim(), settings, mine.signal).catch((error) =>
        fail(side, error.name === "AbortError" ? "stopped" : `no answer: ${error.message}`),
      ),
    ),
  );
  if (mine === stopping) stopButton.hidden = true;
});

form?.querySelector("textarea").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    form.requestSubmit();
  }
});

stopButton?.addEventListener("click", () => stopping?.abort());

// One click makes a trace of what is on the page.
async function keepTrace(side, button) {
  button.disabled = true;
  const answer = side.said.answer.trim();
  const lines = side.said.reasoning.split("\n").filter((line) => line.trim());
  const steps = lines.map((content, i) => ({ i, type: "reasoning", content }));
  const trace = {
    trace_version: "1.0",
    prompt: side.dataset.question,
    steps,
    final_answer: answer,
    meta: { source: "playground", model: side.dataset.model },
  };
  const response = await fetch("/api/traces", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(trace),
  });
  const told = await response.json();
  if (!response.ok) {
    button.disabled = false;
    return fail(side, told.detail);
  }
  const link = document.createElement("a");
  [link.href, link.textContent] = [`/traces/${told.id}`, "Kept as a trace"];
  button.hidden = true;
  button.after(link);
}

for (const side of sides) {
  side.querySelector(".keep").addEventListener("click", (event) => keepTrace(side, event.target));
}
