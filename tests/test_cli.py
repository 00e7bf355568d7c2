"The command line as people type it: in a folder of their own, by exit code and by what is printed."

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from serving import accept_ctrl_c

from tunix_rt.cli.app import main
from tunix_rt.cli.pipelines import run_notebook
from tunix_rt.core.settings import settings
from tunix_rt.runs.execute import execute
from tunix_rt.runs.folder import read_run
from tunix_rt.runs.pipelines import check_parameters

ASK = 'steps: int = 3  # How far to count\nrun_dir: str = ""  # The run folder'
OPEN = (
    "from tunix_rt.runs.folder import open_run\nrun = open_run('count', run_dir, {'steps': steps})"
)


Typed = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    "A folder of its own, as a person has who starts."
    write(tmp_path / "count.ipynb", ASK, OPEN, "run.finish({'each': 60 // steps})")
    monkeypatch.setenv("TUNIX_RT_ROOT", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    settings.cache_clear()
    yield tmp_path
    settings.cache_clear()


@pytest.fixture
def typed(root: Path, capfd: pytest.CaptureFixture[str]) -> Typed:
    "Type a line in this process: exit code, output, errors. Whatever is raised fails the test."

    def run(line: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = 0
        try:
            main(line.split())
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capfd.readouterr()

    return run


def write(path: Path, ask: str, *cells: str) -> None:
    first = new_code_cell(ask, metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[first, *map(new_code_cell, cells)]), path)


def start(root: Path, *words: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", "from tunix_rt.cli.app import main; main()", *words],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=accept_ctrl_c,
    )


def alone(root: Path, line: str) -> tuple[int, str, str]:
    "Type a line in a process of its own."
    process = start(root, *line.split())
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def test_help_lists_the_commands(root: Path):
    code, output, _ = alone(root, "--help")
    assert code == 0
    for command in ("generate", "ingest", "build", "export", "run", "compare", "show", "doctor"):
        assert f"\n  {command} " in output


def test_from_a_recipe_to_a_file(root: Path, typed: Typed):
    code, output, _ = typed("generate golden --version v2")
    assert code == 0 and "golden-v2: 100 traces" in output
    assert typed("build golden-v2 --name ten --limit 10 --selection random --seed 1")[0] == 0
    code, output, _ = typed("export ten-v1 --format messages")
    assert code == 0 and len(output.splitlines()) == 10
    code, output, _ = typed("show golden-v2:7")
    assert code == 0 and output.lstrip().startswith("prompt")
    assert "a line number from 1" in typed("show golden-v2:0")[2]
    assert "its first trace" in typed("show ten-v1")[1]
    assert not list(root.rglob("*.tmp-*"))


def test_refusals_are_one_paragraph_without_a_traceback(root: Path, typed: Typed):
    (root / "bad.jsonl").write_text('{"prompt": "2 + 2"}\n')
    (root / "sums.csv").write_text("question,answer\n2 + 2,4\n")
    refused = {
        "build bad.jsonl --name bad": "bad.jsonl:1: steps: it is missing",
        "generate nonsense": "there is no recipe 'nonsense'; choose from golden, dev-reasoning",
        "ingest sums.csv --source x": "It looks like csv: use --format csv",
        "export golden-v9": "there is no dataset 'golden-v9'",
        "run count.ipynb -p step=3": "did you mean 'steps'?",
        "run count.ipynb -p steps=many": "steps should be int",
        "run nowhere.ipynb": "there is no notebook",
        "show nobody": "nothing is called 'nobody'",
    }
    for line, reason in refused.items():
        code, output, errors = typed(line)
        assert code == 1 and reason in errors and "Traceback" not in errors, (line, errors)
    assert not (root / "outputs").exists() and not (root / "data/datasets/bad-v1").exists()
    code, _, errors = alone(root, "show nobody")
    assert code == 1 and refused["show nobody"] in errors and "Traceback" not in errors
    assert "Traceback" in alone(root, "show nobody --debug")[2]


def test_typing_errors_show_the_usage(typed: Typed):
    for line in ("show", "generate", "fly", "run count.ipynb -p steps", "export golden --formt x"):
        code, _, errors = typed(line)
        assert code == 2 and "Usage:" in errors, line


def test_run_then_show(root: Path, typed: Typed):
    code, output, _ = typed("run count.ipynb -p steps=4 --run-dir outputs/four")
    assert code == 0 and "each" in output and "15" in output
    assert read_run(root / "outputs/four").parameters == {"steps": 4}
    code, output, _ = typed("show outputs/four")
    assert code == 0 and "status    completed" in output
    code, _, errors = typed("run count.ipynb -p steps=4 --run-dir outputs/four")
    assert code == 1 and "is not overwritten" in errors


def test_a_run_is_checked_once_and_executed_once(root: Path, count_calls):
    checks, entries = count_calls(check_parameters), count_calls(execute)
    run_notebook("count.ipynb", {"steps": "4"}, run_dir="outputs/given")
    assert (len(checks), len(entries)) == (1, 1)
    run_notebook("count.ipynb", {"steps": "4"}, resume=True)  # it looks for an unfinished one
    assert (len(checks), len(entries)) == (2, 2)


def test_failed_run_says_why_and_how_to_go_on_and_a_full_disk_is_explained(
    root: Path, typed: Typed
):
    waits = f"import os, time\nos.path.exists({str(root / 'wait')!r}) and time.sleep(60)"
    write(root / "talk.ipynb", ASK, OPEN, f"print('not for long')\n{waits}\n60 // steps")
    line = "run talk.ipynb -p steps=0 --run-dir outputs/zero"
    code, _, errors = typed(line)
    assert code == 1 and "ZeroDivisionError" in errors and "Traceback" not in errors
    going_on = f"tunix-rt run {root}/talk.ipynb -p steps=0 --run-dir {root}/outputs/zero"
    assert going_on in typed("show outputs/zero")[1]

    if not Path("/dev/full").exists():
        pytest.skip("the rest needs a disk that is always full")
    (root / "outputs/zero/log.txt").unlink()
    (root / "outputs/zero/log.txt").symlink_to("/dev/full")
    (root / "wait").touch()  # or it could come to its own bad end before it is stopped
    code, _, errors = alone(root, line)
    assert code == 1 and "No space left" in errors and "Traceback" not in errors
    assert read_run(root / "outputs/zero").status == "interrupted"


def test_ctrl_c_cancels(root: Path):
    wait = "import time; print('begun', flush=True); time.sleep(600)"
    write(root / "long.ipynb", ASK, OPEN, wait)
    process = start(root, "run", "long.ipynb", "--run-dir", "outputs/long")
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)  # longer than the grace that it is given
    assert process.returncode == 130 and "cancelled; to resume it" in errors
    assert read_run(root / "outputs/long").status == "cancelled"


def test_doctor_finds_this_machine_well(root: Path, typed: Typed):
    code, output, _ = typed("doctor")
    assert "cpu" in output and str(root) in output
    assert code == (0 if "missing  nothing" in output else 1)


def test_ingest_writes_over_nothing_unasked(root: Path, typed: Typed):
    line = {"prompt": "1 + 1?", "final_answer": "2"}
    line["steps"] = [{"i": 0, "type": "sum", "content": "1 + 1 = 2"}]
    for name in ("a", "b"):
        (root / name).mkdir()
        (root / name / "train.jsonl").write_text(json.dumps(line | {"prompt": f"{name}: 1 + 1?"}))
    kept = root / "data/traces/train.jsonl"
    assert typed("ingest a/train.jsonl --source a")[0] == 0
    before = kept.read_bytes()
    code, _, said = typed("ingest b/train.jsonl --source b")
    assert code == 1 and "exists already" in said and kept.read_bytes() == before
    code, _, said = typed("ingest data/traces/train.jsonl --source a --replace")
    assert code == 1 and "is the file that is read" in said and kept.read_bytes() == before
    code, _, said = typed("ingest a/train.jsonl --source a --output data")
    assert code == 1 and "is a folder" in said
    assert "is not a file" in typed("ingest . --source a")[2]
    assert typed("ingest b/train.jsonl --source b --replace")[0] == 0
    assert b"b: 1 + 1?" in kept.read_bytes()


def test_what_the_system_says_is_a_sentence(root: Path, typed: Typed):
    (root / "file").write_text("x")
    code, _, said = typed(f"backup {root}")
    assert code == 1 and "Traceback" not in said and "is a folder" in said.lower()
    code, _, said = typed("db upgrade 9999")
    assert code == 1 and "there is no version '9999'" in said
