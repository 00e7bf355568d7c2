"""`lm_eval` asks one model through the endpoint and in-process, and finds what `rt.evaluate` finds.

It needs an environment with the extra lm_eval, such as nightly makes:
pip install -e '.[serve,lm_eval]' pytest nbval
"""

import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_model import talking_model

pytest.importorskip("lm_eval", reason="lm_eval is not installed; see the top of this file")
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
IN_PROCESS = ["-c", "from tunix_rt.lm_eval import main; main()"]
SHOTS, LIMIT = 2, 60
STEPS, RATE = 150, 0.02

# As the tasks of GSM8K in lm_eval, but on files of this machine.
GENERATE = r"""
output_type: generate_until
training_split: train
fewshot_split: train
fewshot_config: {sampler: first_n}
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\nQuestion:"], do_sample: false, max_gen_toks: LIMIT}
filter_list:
  - name: strict-match
    filter: [{function: regex, regex_pattern: "#### (\\-?[0-9\\.\\,]+)"}, {function: take_first}]
  - name: flexible-extract
    filter:
      - {function: regex, group_select: -1, regex_pattern: "(-?[$0-9.,]{2,})|(-?[0-9]+)"}
      - {function: take_first}
metric_list:
  - {metric: exact_match, regexes_to_ignore: [",", "\\$", "(?s).*#### ", "\\.$"]}
"""
KINDS = {
    "plain": GENERATE + 'num_fewshot: SHOTS\ndoc_to_text: "Question: {{question}}\\nAnswer:"',
    "chat": GENERATE + 'num_fewshot: 0\ndoc_to_text: "{{question}}"',
    "choice": "output_type: multiple_choice\n"
    'doc_to_text: "Question: {{question}}\\nAnswer:"\n'
    'doc_to_choice: ["0", "1"]\ndoc_to_target: "{{gold}}"\nmetric_list: [{metric: acc}]',
    "rolling": "output_type: loglikelihood_rolling\n"
    'doc_to_text: ""\ndoc_to_target: "{{answer}}"\nmetric_list: [{metric: byte_perplexity}]',
}


def leftover(number: int):
    "Make a question whose answer is 0 or 1."
    from tunix_rt.traces.schema import Trace

    steps = [{"i": 0, "type": "look", "content": f"{number} ends in {number % 10}"}]
    prompt = f"{number} socks are sorted into pairs. How many are left?"
    return Trace(prompt=prompt, steps=steps, final_answer=str(number % 2), meta={"source": "test"})


def begins_every_text(folder: Path) -> None:
    "Let a tokenizer put <bos> before a text, as that of Gemma does."
    path = folder / "tokenizer.json"
    words = json.loads(path.read_text())
    bos = next(each["id"] for each in words["added_tokens"] if each["content"] == "<bos>")
    words["post_processor"]["single"].insert(0, {"SpecialToken": {"id": "<bos>", "type_id": 0}})
    known = {"<bos>": {"id": "<bos>", "ids": [bos], "tokens": ["<bos>"]}}
    words["post_processor"]["special_tokens"] = known
    path.write_text(json.dumps(words))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    "Folder with a model that was trained for a moment, tasks, and our own evaluations of it."
    folder = tmp_path_factory.mktemp("lm_eval")
    talking_model(folder / "fresh")
    begins_every_text(folder / "fresh")
    made = subprocess.run(
        [sys.executable, __file__], cwd=folder, env=os.environ | OFFLINE | here(folder), text=True,
        capture_output=True,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return folder


def here(folder: Path) -> dict[str, str]:
    return {"TUNIX_RT_ROOT": str(folder)}


def perplexity(model, texts: list[str]) -> float:
    "Measure texts by a plain forward pass, with nothing of the engine: perplexity of a byte."
    import jax.numpy as jnp

    from tunix_rt.training.logprobs import batch_logprobs

    total = 0.0
    for text in texts:
        tokens = model.tokenizer(text, add_special_tokens=False).input_ids
        row = jnp.array([[model.tokenizer.bos_token_id, *tokens]])
        at = jnp.arange(row.shape[1])[None]
        total += float(batch_logprobs(model.module, row, at, jnp.ones_like(row)).logprobs.sum())
    return math.exp(-total / sum(len(text.encode()) for text in texts))


def prepare() -> None:
    "Train the model, evaluate it, and write the tasks; runs in a process of its own."
    import tunix_rt as rt
    from tunix_rt.evaluation.prompts import choose_examples
    from tunix_rt.models.weights import save_model
    from tunix_rt.traces.render import join_steps

    held_out = [number for number in range(20, 80) if number % 5 in (0, 3)]
    known = [number for number in range(20, 80) if number not in held_out]
    train = rt.make_dataset(map(leftover, known), name="socks-train")
    test = rt.make_dataset(map(leftover, held_out), name="socks-test")
    model = rt.load_model("fresh")
    rt.sft(model, train, max_steps=STEPS, batch_size=4, seq_length=256, learning_rate=RATE)
    save_model(Path("reasoner"), model.module, model.tokenizer)
    ours = {}
    for style, shots in (("plain", SHOTS), ("chat", 0)):
        given = {"prompt_style": style, "shots": shots, "max_new_tokens": LIMIT}
        given |= {"shots_dataset": train.key} if shots else {}
        found = rt.evaluate("reasoner", test, **given, run_dir=style)
        ours[style] = found.scores["answer_lenient"].mean
    asked = list(test.traces())
    shown = choose_examples(train.train_traces(), asked, shots=SHOTS, seed=0)
    for name, part in (("train", shown), ("test", asked)):
        lines = [
            {
                "question": trace.prompt, "gold": int(trace.final_answer),
                "answer": f"{join_steps(step.content for step in trace.steps)}\n"
                f"#### {trace.final_answer}",
            }
            for trace in part
        ]  # fmt: skip
        Path(f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ours["rolling"] = perplexity(model, [line["answer"] for line in lines])  # of the questions
    Path("ours.json").write_text(json.dumps(ours))
    Path("tasks").mkdir()
    for name, text in KINDS.items():
        text = text.replace("SHOTS", str(SHOTS)).replace("LIMIT", str(LIMIT))
        files = {split: str(Path(f"{split}.jsonl").resolve()) for split in ("train", "test")}
        head = f"task: socks_{name}\ndataset_path: json\ntest_split: test\n"
        head += f"dataset_kwargs: {json.dumps({'data_files': files})}\n"
        Path(f"tasks/{name}.yaml").write_text(head + text.strip() + "\n")


@pytest.fixture(scope="module")
def address(root):
    start = ["-c", "from tunix_rt.cli.app import main; main()"]
    log = root / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *start, "serve-model", "reasoner", "--port", "0"],
            env=os.environ | OFFLINE | here(root), stderr=file, cwd=root,
        )  # fmt: skip
    for _ in range(900):
        if found := re.search(r"listening on (http://\S+)", log.read_text()):
            break
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    yield found[1]
    process.kill()
    process.wait()


def harness(root: Path, how: list[str], model: str, args: str, tasks: list[str], *more: str):
    "Run the harness as its users do: samples by task and question, and its scores."
    out = root / f"{model}-{tasks[0]}"
    named = ",".join(f"socks_{task}" for task in tasks)
    done = subprocess.run(
        [sys.executable, *how, "--model", model, "--model_args", args, "--include_path", "tasks",
         "--tasks", named, "--log_samples", "--output_path", str(out), *more],
        cwd=root, env=os.environ | OFFLINE | here(root), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = out.rglob("results_*.json")
    samples = {}
    for path in out.rglob("samples_*.jsonl"):
        for line in path.read_text().splitlines():
            each = json.loads(line)
            task = next(task for task in tasks if f"socks_{task}_" in path.name)
            samples[task, each["doc"]["question"]] = each["resps"]
    return samples, json.loads(results.read_text())["results"]


def said(root: Path, style: str) -> dict[tuple[str, str], str]:
    "What the model answered when we asked it."
    lines = (root / style / "predictions.jsonl").read_text().splitlines()
    return {(style, each["prompt"]): each["output"] for each in map(json.loads, lines)}


def same(ours: dict, samples: dict) -> bool:
    "Whether the harness got the responses that we got."
    theirs = {key: samples[key][0][0] for key in ours}
    return {k: v.strip() for k, v in theirs.items()} == {k: v.strip() for k, v in ours.items()}


@pytest.fixture(scope="module")
def inside(root):
    tasks = ["plain", "choice", "rolling"]
    return harness(root, IN_PROCESS, "tunix_rt", "pretrained=reasoner", tasks)


def test_plain_prompts_give_the_same_responses_and_scores(root, address, inside):
    args = (
        f"model=reasoner,base_url={address}/v1/completions,tokenizer={root}/reasoner,"
        "tokenizer_backend=huggingface,add_bos_token=True,max_length=512,num_concurrent=4"
    )
    tasks = ["plain", "choice", "rolling"]
    samples, scores = harness(root, ["-m", "lm_eval"], "local-completions", args, tasks)
    measured = json.loads((root / "ours.json").read_text())
    ours = measured["plain"]
    assert 0 < ours < 1, "every question has the same score, so equal scores would say nothing"
    assert same(said(root, "plain"), samples) and same(said(root, "plain"), inside[0])
    for each in (scores, inside[1]):
        assert each["socks_plain"]["exact_match,flexible-extract"] == pytest.approx(ours)
    assert scores["socks_choice"] == inside[1]["socks_choice"]
    for key, answers in inside[0].items():
        if key[0] != "plain":
            numbers = [float(each[0][0]) for each in answers if key[0] == "choice"]
            other = [float(each[0][0]) for each in samples[key] if key[0] == "choice"]
            assert numbers == pytest.approx(other, abs=1e-3)
    # The endpoint's figure is another: with add_bos_token the harness puts a second <bos> there.
    found = inside[1]["socks_rolling"]["byte_perplexity,none"]
    assert found == pytest.approx(measured["rolling"], rel=1e-3)


def test_conversations_give_the_same_responses_and_scores(root, address):
    args = f"model=reasoner,base_url={address}/v1/chat/completions,num_concurrent=4"
    asked = (["chat"], "--apply_chat_template")
    outside = harness(root, ["-m", "lm_eval"], "local-chat-completions", args, *asked)
    within = harness(root, IN_PROCESS, "tunix_rt", "pretrained=reasoner", *asked)
    ours = json.loads((root / "ours.json").read_text())["chat"]
    for samples, scores in (outside, within):
        assert same(said(root, "chat"), samples)
        found = scores["socks_chat"]["exact_match,flexible-extract"]
        assert found == pytest.approx(ours)


if __name__ == "__main__":
    prepare()
