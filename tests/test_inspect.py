"""`inspect eval` asks a served model as its users do, and gets the responses that we get.

Inspect lives in an environment of its own, because it needs nothing of ours. Name its command:

    python -m venv /tmp/inspect && /tmp/inspect/bin/pip install inspect_ai openai
    INSPECT=/tmp/inspect/bin/inspect python -m pytest tests/test_inspect.py
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
from small_model import talking_model

INSPECT = shutil.which(os.environ.get("INSPECT", "inspect"))
pytestmark = pytest.mark.skipif(not INSPECT, reason="inspect is not installed; see the top")
TOKENS = 12
QUESTIONS = ["What is 47 plus 86?", "What is 7 plus 6?", "carry 1", "Ones?"]
TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

@task
def sums():
    samples = [Sample(input=text, target=target) for text, target in SAMPLES]
    config = GenerateConfig(temperature=0, max_tokens=TOKENS, seed=7)
    return Task(dataset=samples, solver=generate(), scorer=includes(), config=config)
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    "Folder with a model that knows nothing, and the address that serves it."
    folder = tmp_path_factory.mktemp("inspect")
    talking_model(folder / "reasoner")
    log, start = folder / "log", ["-c", "from tunix_rt.cli.app import main; main()"]
    env = os.environ | {"TUNIX_RT_ROOT": str(folder), "JAX_PLATFORMS": "cpu"}
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *start, "serve-model", "reasoner", "--port", "0"],
            env=env, stderr=file, cwd=folder,
        )  # fmt: skip
    for _ in range(1800):
        if found := re.search(r"listening on (http://\S+)", log.read_text()):
            break
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    yield folder, found[1]
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def ours(served):
    "What the model says when we ask it, in Python."
    import tunix_rt as rt

    model = rt.load_model(str(served[0] / "reasoner"), trainable=False)
    return [rt.generate(model, text, max_new_tokens=TOKENS)[0].text for text in QUESTIONS]


def test_inspect_gets_our_responses_and_scores_them(served, ours):
    folder, address = served
    targets = [ours[0][:3], ours[1][:3], "no such text", ours[3][:3]]
    samples = list(zip(QUESTIONS, targets, strict=True))
    task = TASK.replace("SAMPLES", repr(samples)).replace("TOKENS", str(TOKENS))
    (folder / "sums.py").write_text(task)
    env = os.environ | {"TUNIX_API_KEY": "none", "TUNIX_BASE_URL": f"{address}/v1"}
    done = subprocess.run(
        [os.path.abspath(str(INSPECT)), "eval", "sums.py", "--model", "openai-api/tunix/reasoner",
         "--log-dir", "logs", "--log-format", "json", "--display", "plain"],
        cwd=folder, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (path,) = (folder / "logs").glob("*.json")
    found = json.loads(path.read_text())
    assert found["status"] == "success", found.get("error")
    said = {each["input"]: each["output"]["completion"] for each in found["samples"]}
    assert [said[text].strip() for text in QUESTIONS] == [text.strip() for text in ours]
    used = found["samples"][0]["output"]["usage"]
    assert used["input_tokens"] > 0 and 0 < used["output_tokens"] <= TOKENS
    (score,) = found["results"]["scores"]
    assert score["metrics"]["accuracy"]["value"] == pytest.approx(3 / 4)
