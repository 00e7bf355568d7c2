"A package with a plug-in of every kind, and each of them used from the command line."

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tunix_rt.core.files import read_json, sha256_file
from tunix_rt.core.plugins import load_plugin, plugin_source
from tunix_rt.runs.pipelines import find_pipeline
from tunix_rt.serve.run_requests import checked_rewards

KIT = """
from pathlib import Path

from tunix_rt.traces.schema import Step, Trace

notebook = Path(__file__).with_name("counting.ipynb")


def brevity(completions, **kwargs):
    return [len(text) % 7 / 7 for text in completions]


def shortness(trace, prediction):
    "Share of responses of at most 40 characters"
    return float(len(prediction.output) <= 40)


def leniency(trace, prediction):
    return 1.0


def halves(count, seed):
    for n in range(seed, seed + count):
        step = Step(i=0, type="work", content=f"{2 * n} / 2 = {n}")
        yield Trace(prompt=f"What is half of {2 * n}?", steps=(step,), final_answer=str(n))


def quiz(record):
    step = Step(i=0, type="work", content=record["how"])
    return Trace(prompt=record["q"], steps=(step,), final_answer=str(record["a"]))
"""
NAMES = {
    "rewards": "brevity = kit:brevity",
    "scorers": "shortness = kit:shortness",
    "judges": "leniency = kit:leniency",
    "generators": "halves = kit:halves",
    "importers": "quiz = kit:quiz",
    "pipelines": "counting = kit:notebook",
}
COUNT = """from tunix_rt.runs.folder import open_run
run = open_run('counting', run_dir, {'steps': steps})
run.finish({'each': 60 // steps})"""


def install(site: Path, name: str, module: str, entries: dict[str, str]) -> None:
    "Write a package and its metadata into a folder, as `pip install --target` would."
    (site / f"{name}.py").write_text(module)
    info = site / f"{name}-2.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.5\n")
    (info / "top_level.txt").write_text(f"{name}\n")
    groups = [f"[tunix_rt.{kind}]\n{entry}\n" for kind, entry in entries.items()]
    (info / "entry_points.txt").write_text("".join(groups))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A folder of packages: the kit, and one that is broken and claims names of others."
    folder = tmp_path_factory.mktemp("site")
    install(folder, "kit", KIT, NAMES)
    taken = {"rewards": "correct = torn:x\nbroken = torn:x", "scorers": "shortness = torn:x"}
    install(folder, "torn", "import a_module_that_nobody_has\n", taken)
    ask = 'steps: int = 3  # How far to count\nrun_dir: str = ""  # The run folder'
    cells = [
        new_code_cell(ask, metadata={"tags": ["parameters"]}),
        new_code_cell(COUNT),
    ]
    nbformat.write(new_notebook(cells=cells), folder / "counting.ipynb")
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A folder of its own, as a person has who starts."
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def typed(root: Path, site: Path):
    "Type a line in a process that has the packages: exit code and everything that is printed."
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    added = {"PYTHONPATH": os.pathsep.join(paths), "TUNIX_RT_ROOT": str(root), "COLUMNS": "200"}

    def run(line: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-c", "from tunix_rt.cli.app import main; main()", *line.split()],
            cwd=root, env={**os.environ, **added}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    return run


def sources(folder: Path) -> list[dict[str, str]]:
    "The plug-ins that a run records."
    return list(read_json(folder / "run.json")["plugins"])


def test_the_doctor_lists_all_and_names_the_broken_ones(typed):
    code, output = typed("doctor")
    assert code == 0, output
    for kind, entry in NAMES.items():
        assert f"{kind} {entry.partition(' ')[0]} (kit 2.5)" in output
    assert "torn:x: reward 'broken': torn can't be imported" in output
    assert "tunix_rt and torn 2.5 both have a reward 'correct'" in output
    assert output.count("kit 2.5 and torn 2.5 both bring a scorer 'shortness'") == 2


def test_a_recipe_and_its_dataset(root: Path, typed, site: Path):
    code, output = typed("generate halves --train 8 --held-out 4 --seed 1")
    assert code == 0 and "halves-held-out-v1: 4 traces" in output, output
    [source] = read_json(root / "data/datasets/halves-v1/manifest.json")["provenance"]["plugins"]
    assert source["distribution"] == "kit" and source["version"] == "2.5"
    assert source["sha256"] == sha256_file(site / "kit.py")


def test_an_importer(root: Path, typed):
    (root / "quiz.jsonl").write_text('{"q": "2 + 2?", "how": "two and two", "a": 4}\n')
    code, output = typed("ingest quiz.jsonl --source quiz --format quiz")
    assert code == 0 and "1 traces taken in" in output, output
    code, output = typed("ingest quiz.jsonl --source quiz --format quizz --replace")
    assert code == 1 and "choose from trace, " in output and ", quiz, or name" in output


def test_a_pipeline_here_and_in_the_queue(root: Path, typed):
    code, output = typed("run counting -p steps=2 --run-dir outputs/runs/counted")
    assert code == 0 and "30" in output, output
    [source] = sources(root / "outputs/runs/counted")
    assert (source["kind"], source["spec"], source["version"]) == ("pipelines", "counting", "2.5")
    assert typed("db upgrade")[0] == 0
    code, output = typed("queue counting -p steps=4")
    assert code == 0, output
    code, output = typed("worker --once")
    assert code == 0, output
    folders = {path.parent for path in (root / "outputs").rglob("run.json")}
    [queued] = folders - {root / "outputs/runs/counted"}
    assert read_json(queued / "run.json")["results"] == {"each": 15} and sources(queued)


def test_a_scorer_and_a_judge(root: Path, typed, site: Path):
    asked = "evaluate -p dataset=halves-held-out-v1 -p max_new_tokens=4 --run-dir outputs/runs/read"
    code, output = typed(f"{asked} -p scorers=shortness")
    assert code == 1 and "both bring a scorer 'shortness'" in output, output
    code, output = typed(f"{asked}-2 -p scorers={site}/kit.py:shortness")
    assert code == 0, output
    read = root / "outputs/runs/read-2"
    assert "shortness" in json.loads((read / "evaluation.json").read_text())["scorers"]
    [source] = sources(read)
    assert source["sha256"] == sha256_file(site / "kit.py") and "version" not in source
    assert typed("import-run outputs/runs/read-2")[0] == 0
    code, output = typed("score read-2 --judge leniency")
    assert code == 0 and "100.0" in output, output


def test_a_reward(root: Path, typed):
    code, output = typed(
        "grpo -p dataset=halves-v1 -p reward_funcs=brevity -p max_steps=1 -p prompts_per_step=2 "
        "-p num_generations=4 -p validation_traces=2 -p max_new_tokens=8 -p min_mixed=0 "
        "--run-dir outputs/runs/practiced"
    )
    assert code == 0, output
    [source] = sources(root / "outputs/runs/practiced")
    assert source["distribution"] == "kit" and source["spec"] == "brevity"


def test_a_module_belongs_to_its_distribution(site: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(site))
    assert load_plugin("rewards", "kit:brevity")(completions=["1234567"]) == [0.0]
    source = plugin_source("rewards", "kit:brevity")
    del sys.modules["kit"]
    assert (source["distribution"], source["version"]) == ("kit", "2.5")


def test_over_http_only_names_are_taken(site: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(site))
    assert checked_rewards("correct, brevity") == "correct, brevity"
    for foreign in ("kit:brevity", f"{site}/kit.py:brevity", "brevity()", "wit"):
        with pytest.raises(Exception, match="over HTTP a reward has to be"):
            checked_rewards(foreign)
    with pytest.raises(Exception, match="there is no pipeline"):
        find_pipeline("kit:notebook")
    assert "kit" not in sys.modules
