"""The pipelines on model folders as Hugging Face publishes them.

Everything runs through the command line, in processes of their own, on tiny random models. What
comes out is read by `transformers` and `peft`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compile_fast import COMPILE_FAST
from flax import nnx
from hugging_face import VOCABULARY, make, publish, scores
from safetensors.numpy import load_file, save_file

from tunix_rt.core.errors import ModelError
from tunix_rt.core.files import read_jsonl_log
from tunix_rt.data.datasets import freeze_recipe
from tunix_rt.models.gemma import Gemma, hidden_states, logits
from tunix_rt.models.lora import LoraConfig, add_lora, trainable_filter
from tunix_rt.models.peft import load_any, save_adapter
from tunix_rt.models.tokenizer import encode_prompts, encode_responses, load_tokenizer

CHECKOUT = Path(__file__).resolve().parent.parent
TOKENS = np.random.default_rng(0).integers(6, VOCABULARY, (2, 24))

EXAM = "arithmetic-steps-held-out-v1"
ROWS = {"dataset": "golden-v2", "seq_length": 64, "batch_size": 8}
ROWS |= {"validation_traces": 4, "log_every": 1}
TUNED = ROWS | {"optimizer": "adamw", "learning_rate": 0.01, "warmup_steps": 2}
LORA = TUNED | {"max_steps": 3, "lora_rank": 4, "export": "both", "validate_every": 3}
FULL = TUNED | {"max_steps": 40, "dtype": "bfloat16", "remat": "dots", "scan_layers": "true"}


def start(root: Path, verb: str, given: dict[str, Any], run: Path, devices: int = 1) -> Any:
    "Start `tunix-rt` as if on so many devices."
    words = [word for name, value in given.items() for word in ("-p", f"{name}={value}")]
    flags = f"--xla_force_host_platform_device_count={devices} {COMPILE_FAST}"
    here = {"TUNIX_RT_ROOT": str(root), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-c", "from tunix_rt.cli.app import main; main()"]
    return subprocess.Popen(
        [*command, verb, *words, "--run-dir", str(run)],
        cwd=root,
        env={**os.environ, **here},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: Any, code: int = 0) -> str:
    "Wait for the end, which must be the one that is expected."
    output, _ = process.communicate(timeout=600)
    assert process.returncode == code, output[-3000:]
    return output


def stop_at_work(process: Any, run: Path) -> str:
    "Send SIGTERM as soon as something was learnt."
    while not (run / "metrics.jsonl").is_file() or not (run / "metrics.jsonl").read_text():
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    return finish(process, 130)


def spoilt(good: Path, folder: Path, spoil: Any) -> Path:
    "Copy a model folder and change its tensors."
    shutil.copytree(good, folder)
    (folder / "model.safetensors.index.json").unlink()
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
        file.unlink()
    spoil(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def strange(tensors: dict[str, np.ndarray]) -> None:
    "Take one tensor away and add another."
    tensors["model.layers.9.mlp.up_proj.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")


def bent(tensors: dict[str, np.ndarray]) -> None:
    "Cut one tensor short."
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1]


def poisoned(tensors: dict[str, np.ndarray]) -> None:
    "Put something that is not a number where only some rows will read it."
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = np.nan


class Story:
    "All runs of this file, two at a time, each started when those it needs are done."

    def __init__(self, root: Path):
        self.root, self.pool = root, ThreadPoolExecutor(2)
        shutil.copytree(CHECKOUT / "data/datasets/golden-v2", root / "data/datasets/golden-v2")
        home = root / "data/datasets"
        freeze_recipe("arithmetic-steps", version="v1", train=1, held_out=4, home=home)
        self.second = publish(make("second-short"), root / "second")
        self.third = publish(make("third-short"), root / "third", max_shard_size="40KB")
        lora, full = LORA | {"model": self.third}, FULL | {"model": self.second}
        self.parts: dict[str, Future[str]] = {}
        self.add("lora", lambda: self.train("lora", lora))
        self.add("whole", lambda: self.train("whole", full))
        self.add("cut", lambda: self.cut(full))
        self.add("moved", lambda: self.train("moved", full, continue_from=self.wait("attached")))
        self.add("again", lambda: self.train("cut", full))
        block = {"mesh_data": 2, "mesh_fsdp": 2, "mesh_tensor": 2}
        self.add("mesh", lambda: self.train("mesh", lora | block, devices=8))
        self.add("hosts", lambda: self.hosts(lora))
        self.add("asked", self.ask)
        for name, spoil in {"strange": strange, "poisoned": poisoned}.items():
            self.add(name, lambda name=name, spoil=spoil: self.refused(name, spoil, lora))

    def add(self, name: str, act: Any) -> None:
        self.parts[name] = self.pool.submit(act)

    def wait(self, name: str) -> Any:
        "Wait for a part; `attached` is the folder of the one that was cut."
        told = self.parts["cut" if name == "attached" else name].result()
        return self.root / "attached" if name == "attached" else told

    def run(self, name: str) -> Path:
        return self.root / "outputs/runs" / name

    def facts(self, name: str) -> dict[str, Any]:
        return json.loads((self.run(name) / "run.json").read_text())

    def train(self, name: str, given: dict[str, Any], devices: int = 1, **more: Any) -> str:
        if name == "cut":
            self.wait("cut")
        return finish(start(self.root, "train", given | more, self.run(name), devices))

    def cut(self, given: dict[str, Any]) -> str:
        told = stop_at_work(start(self.root, "train", given, self.run("cut")), self.run("cut"))
        shutil.copytree(self.run("cut"), self.root / "attached")
        return told

    def hosts(self, given: dict[str, Any]) -> str:
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            given = given | {"coordinator": f"127.0.0.1:{listening.getsockname()[1]}"}
        both = [
            start(self.root, "train", given | {"processes": 2, "process": n}, self.run(f"host-{n}"))
            for n in range(2)
        ]
        return "".join(map(finish, both))

    def ask(self) -> str:
        self.wait("lora")
        given = {"model": self.run("lora") / "adapter", "dataset": EXAM, "max_new_tokens": 8}
        return finish(start(self.root, "evaluate", given, self.run("asked")))

    def refused(self, name: str, spoil: Any, given: dict[str, Any]) -> str:
        folder = spoilt(self.third, self.root / name, spoil)
        return finish(start(self.root, "train", given | {"model": folder}, self.run(name)), 1)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Any:
    "Start all runs; tests wait for those that they speak of."
    told = Story(tmp_path_factory.mktemp("root"))
    yield told
    told.pool.shutdown(cancel_futures=True)


def losses(run: Path) -> list[tuple[int, float, float | None]]:
    "The part of metrics.jsonl that must not depend on luck."
    lines = read_jsonl_log(run / "metrics.jsonl")
    return [(line["step"], line["loss"], line.get("validation_loss")) for line in lines]


def learnt(run: Path) -> list[float]:
    "The losses alone."
    return [loss for _, loss, _ in losses(run)]


@jax.jit
def compiled_scores(model: Gemma) -> jax.Array:
    places = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)
    hidden = hidden_states(model, jnp.asarray(TOKENS), places, jnp.ones_like(places))
    return logits(model, hidden)


def ours(model: Gemma) -> np.ndarray:
    "The logits of our decoder."
    return np.asarray(compiled_scores(model))


def test_adapters_of_a_run_do_in_peft_what_they_do_here(story: Story) -> None:
    from peft import AutoPeftModelForCausalLM

    told = story.wait("lora")
    assert "xla: the fastest on a cpu" in told and "of them are trained" in told
    assert len(list(story.third.glob("*.safetensors"))) > 2, "it should come in several files"
    adapter = story.run("lora") / "adapter"
    theirs = AutoPeftModelForCausalLM.from_pretrained(adapter, attn_implementation="eager")
    model, _ = load_any(adapter)
    np.testing.assert_allclose(scores(theirs, TOKENS), ours(model), atol=1e-4)
    assert np.abs(ours(model) - ours(load_any(story.third)[0])).max() > 0.01, "nothing was learnt"


@pytest.mark.parametrize("case", ["second", "third-eyes"])
def test_adapters_find_their_places_in_every_family(case: str, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    below = publish(make(case), tmp_path / "below")
    model, words = load_any(below)
    add_lora(
        model, LoraConfig(rank=3, alpha=9.0, targets=("q_proj", "o_proj", "up_proj")), nnx.Rngs(0)
    )
    state = nnx.state(model, trainable_filter(model))
    nnx.update(
        model,
        jax.tree.map(lambda x: 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), state),
    )
    save_adapter(tmp_path / "adapter", model, words, base=str(below))
    eager = {"attn_implementation": "eager"}
    theirs = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", **eager)
    np.testing.assert_allclose(scores(theirs, TOKENS), ours(model), atol=1e-4)
    assert np.abs(ours(model) - ours(load_any(below)[0])).max() > 0.1


def test_the_merged_model_of_a_run_is_the_same_model(story: Story) -> None:
    from transformers import AutoModelForCausalLM

    story.wait("lora")
    run = story.run("lora")
    theirs = AutoModelForCausalLM.from_pretrained(run / "model", attn_implementation="eager")
    model, _ = load_any(run / "adapter")
    np.testing.assert_allclose(scores(theirs, TOKENS), ours(model), atol=1e-4)


def test_cards_say_what_was_done(story: Story) -> None:
    story.wait("lora")
    whole, adapter = (story.run("lora") / name / "README.md" for name in ("model", "adapter"))
    for card in (whole.read_text(), adapter.read_text()):
        for fact in ("golden-v2", "| rank | 4 |", "xla: the fastest on a cpu", str(story.third)):
            assert fact in card
    assert "AutoPeftModelForCausalLM" in adapter.read_text()
    assert 'library_name: "transformers"' in whole.read_text()


def test_adapters_can_be_examined(story: Story) -> None:
    told = story.wait("asked")
    assert "2 layers" in told
    assert (story.run("asked") / "predictions.jsonl").read_text().count("\n") == 4


def test_the_chat_template_renders_the_same_tokens(story: Story) -> None:
    from transformers import AutoTokenizer

    story.wait("lora")
    theirs = AutoTokenizer.from_pretrained(story.run("lora") / "model")
    said = [{"role": "user", "content": " 1+1? "}, {"role": "assistant", "content": "2\n"}]
    words = load_tokenizer(story.third)
    [asked], [answered] = encode_prompts(words, [" 1+1? "]), encode_responses(words, ["2\n"])
    written = "<bos><start_of_turn>user\n1+1?<end_of_turn>\n<start_of_turn>model\n"
    whole = theirs.apply_chat_template(said, return_dict=False)
    assert (
        theirs.apply_chat_template(said[:1], tokenize=False, add_generation_prompt=True) == written
    )
    assert [*asked, *answered] == whole[: len(asked) + len(answered)]
    assert theirs.decode(whole[len(asked) + len(answered) :]) == "\n"


def test_what_stops_with_a_signal_is_saved_and_goes_on(story: Story) -> None:
    told = story.wait("cut")
    assert "then stopping" in told and "to resume it" in told
    attached = story.wait("attached")
    record = json.loads((attached / "run.json").read_text())
    assert record["status"] == "cancelled" and "continues" in record["error"]["message"]
    assert not (attached / "model").exists()
    stopped = max(int(path.name) for path in (attached / "checkpoints").glob("[0-9]*"))
    assert 0 < stopped < FULL["max_steps"]

    story.wait("again"), story.wait("whole")
    assert losses(story.run("cut")) == losses(story.run("whole"))
    weights = [story.run(name) / "model/model.safetensors" for name in ("cut", "whole")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert story.facts("cut")["status"] == "completed"


def test_an_attached_folder_is_gone_on_from_and_left_alone(story: Story) -> None:
    told = story.wait("moved")
    assert "resumed from step" in told
    assert losses(story.run("moved")) == losses(story.run("whole"))
    attached = story.wait("attached")
    newest = max(path.stat().st_mtime for path in attached.rglob("*"))
    begun = (story.run("moved") / "run.json").stat().st_ctime
    assert newest < begun, "something was written to it"


def test_full_fine_tuning_keeps_float32_beneath_bfloat16(story: Story) -> None:
    story.wait("whole")
    first, *_, last = learnt(story.run("whole"))
    assert last < first - 0.5
    kept = load_file(story.run("whole") / "model/model.safetensors")
    rounded = [(x == x.astype(jnp.bfloat16).astype("f4")).mean() for x in kept.values()]
    assert {x.dtype.name for x in kept.values()} == {"float32"} and max(rounded) < 0.5


def test_eight_devices_learn_what_one_does(story: Story) -> None:
    told = story.wait("mesh")
    story.wait("lora")
    assert "data 2 x fsdp 2 x tensor 2" in told
    assert learnt(story.run("mesh")) == pytest.approx(learnt(story.run("lora")), abs=1e-4)
    ends = [load_any(story.run(name) / "model")[0] for name in ("mesh", "lora")]
    np.testing.assert_allclose(ours(ends[0]), ours(ends[1]), atol=1e-2)


def test_two_processes_learn_what_one_does_and_write_once(story: Story) -> None:
    told = story.wait("hosts")
    story.wait("lora")
    assert "process 1 of 2, 1 of 2 devices" in told
    assert "on data 2" in told, "beside adapters each device should hold all of the base"
    assert learnt(story.run("host-0")) == pytest.approx(learnt(story.run("lora")), abs=1e-4)
    assert (story.run("host-0") / "model/model.safetensors").is_file()
    assert not (story.run("host-1") / "model").exists()
    assert not (story.run("host-1") / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("strange", ["1 missing (model.layers.1.mlp.up_proj", "1 unknown (model.layers.9.mlp"]),
        ("poisoned", ["NaN or infinite", "copy the file again"]),
    ],
)
def test_a_spoilt_model_is_refused_by_name(story: Story, name: str, words: list[str]) -> None:
    told = story.wait(name)
    for word in words:
        assert word in told
    assert "Traceback" not in told
    assert story.facts(name)["error"]["refused"] is True


def test_a_misshapen_tensor_is_refused_by_name(story: Story) -> None:
    folder = spoilt(story.third, story.root / "bent", bent)
    with pytest.raises(ModelError, match=r"norm.weight has shape \(47,\), and .* \(48,\)"):
        load_any(folder)
