"What happens to a run when one of its processes dies, and how it goes on."

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import nbclient
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tunix_rt.runs.execute import RunFailed, execute
from tunix_rt.runs.folder import read_run, start_run
from tunix_rt.runs.lock import held, owner

pytestmark = pytest.mark.usefixtures("own_kernels")

CALLER = """
import sys
from tunix_rt.runs.execute import execute
execute(sys.argv[1], {}, sys.argv[2])
"""

# Training in small: it adds a number a step, keeps a checkpoint, and goes on from it.
ADDING = """
from tunix_rt.core.files import append_json, read_json, write_json
from tunix_rt.runs.folder import open_run
import os, time
run = open_run("add", run_dir, {"steps": steps})
run.record(kernel=os.getpid())
saved = run.checkpoints / "last.json"
step, total = read_json(saved) if saved.exists() else (0, 0)
if run.metrics_path.exists():  # killed between the two writes of a step, it does the step again
    lines = run.metrics_path.read_text().splitlines(keepends=True)
    run.metrics_path.write_text("".join(lines[:step]))
"""
LOOP = """
try:
    while step < steps:
        step, total = step + 1, total + step + 1
        append_json(run.metrics_path, {"step": step, "total": total})
        write_json(saved, [step, total])
        print("step", step, flush=True)
        if not run.facts["resumed_at"]:
            time.sleep(0.12)
except KeyboardInterrupt:
    (run.folder / "interrupted.txt").write_text("asked to stop")
    raise
"""
STEPS = 100  # Some twelve seconds, if nobody interferes


def notebook(folder: Path, name: str, *cells: str) -> Path:
    ask = new_code_cell(cells[0], metadata={"tags": ["parameters"]})
    rest = [new_code_cell(cell) for cell in cells[1:]]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(new_notebook(cells=[ask, *rest], metadata={"kernelspec": kernel}), folder / name)
    return folder / name


@pytest.fixture
def adding(tmp_path: Path) -> Path:
    ask = f'steps: int = {STEPS}  # How many\nrun_dir: str = ""  # Where'
    return notebook(tmp_path, "add.ipynb", ask, ADDING, LOOP, "run.finish({'total': total})")


def call(source: Path, folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", CALLER, str(source), str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.12)


def steps_done(folder: Path) -> int:
    metrics = folder / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


def test_second_caller_is_refused_by_name_and_sigterm_lets_the_notebook_clean_up(
    adding: Path, tmp_path: Path
):
    folder = tmp_path / "run"
    first = call(adding, folder)
    until(lambda: steps_done(folder) > 2)
    assert owner(folder) == first.pid
    second = call(adding, folder)
    output, _ = second.communicate(timeout=30)
    assert f"in use by process {first.pid}" in output and second.returncode == 1
    assert read_run(folder).status == "running"  # the first was not disturbed

    first.terminate()
    first.communicate(timeout=30)
    run = read_run(folder)
    assert run.status == "cancelled" and run.facts["duration_seconds"] > 0
    assert (folder / "interrupted.txt").exists()
    assert "KeyboardInterrupt" in run.notebook.read_text()
    assert not held(folder)


def test_killed_kernel_is_a_failure_that_says_why(adding: Path, tmp_path: Path):
    folder = tmp_path / "run"
    caller = call(adding, folder)
    until(lambda: steps_done(folder) > 2)
    os.kill(read_run(folder).facts["kernel"], signal.SIGKILL)
    output, _ = caller.communicate(timeout=60)
    run = read_run(folder)
    assert run.status == "failed" and "memory ran out" in run.facts["error"]["message"]
    assert "memory ran out" in output


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the parent of a process in /proc")
def test_killed_executor_is_a_failure_and_leaves_nobody_behind(adding: Path, tmp_path: Path):
    folder = tmp_path / "run"
    caller = call(adding, folder)
    until(lambda: steps_done(folder) > 2)
    kernel = read_run(folder).facts["kernel"]
    executor = int(Path(f"/proc/{kernel}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(executor, signal.SIGKILL)
    caller.communicate(timeout=60)
    run = read_run(folder)
    assert run.status == "failed" and "signal 9" in run.facts["error"]["message"]
    assert not held(folder)


def test_kernel_that_is_slow_to_close_says_nothing_of_it(tmp_path: Path):
    source = notebook(
        tmp_path,
        "slow.ipynb",
        'run_dir: str = ""  # Where',
        "import atexit, sys, time\nfrom tunix_rt.runs.folder import open_run\n"
        "run = open_run('slow', run_dir, {})\n"
        "def close():\n    sys.stderr = sys.__stderr__\n    time.sleep(60)\n"
        "atexit.register(close)",  # Jupyter sends SIGTERM long before it is done
        "run.finish({})\nprint('the end')",
    )
    run = execute(source, {}, tmp_path / "run", echo=False)
    assert run.completed and run.log.read_text() == "the end\n"


def test_failure_keeps_partial_metrics_traceback_and_notebook(tmp_path: Path):
    source = notebook(
        tmp_path,
        "break.ipynb",
        'run_dir: str = ""  # Where',
        "from tunix_rt.core.files import append_json\nfrom tunix_rt.runs.folder import open_run\n"
        "run = open_run('break', run_dir, {})\nappend_json(run.metrics_path, {'step': 1})",
        "print('about to fail')\nraise OSError('the disk is full')",
        "run.finish({})",
    )
    with pytest.raises(RunFailed, match="the disk is full"):
        execute(source, {}, tmp_path / "run", echo=False)
    run = read_run(tmp_path / "run")
    assert run.status == "failed" and run.facts["error"]["name"] == "OSError"
    assert "raise OSError" in run.facts["error"]["traceback"]
    assert steps_done(run.folder) == 1
    assert "about to fail" in run.log.read_text()
    assert "the disk is full" in run.notebook.read_text()


def test_run_all_in_jupyterlab_leaves_the_same_record(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TUNIX_RT_ROOT", str(tmp_path))
    source = notebook(
        tmp_path,
        "lab.ipynb",
        'steps: int = 0  # How many\nrun_dir: str = ""  # Where',
        "from tunix_rt.runs.folder import open_run, parameters_in\n"
        "run = open_run('lab', run_dir, parameters_in(globals()))",
        "run.finish({'each': 60 // steps})",
    )
    with pytest.raises(nbclient.exceptions.CellExecutionError):
        nbclient.NotebookClient(nbformat.read(source, as_version=4)).execute()
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    run = read_run(folder)
    assert folder.name.startswith("lab-") and run.parameters == {"steps": 0}
    assert run.status == "failed" and run.facts["error"]["name"] == "ZeroDivisionError"


def test_killed_caller_takes_all_down_and_the_same_call_skips_what_is_done_and_goes_on(
    adding: Path, tmp_path: Path
):
    short = notebook(
        tmp_path,
        "short.ipynb",
        "value: int = 1  # Any\nrun_dir: str = ''  # Where",
        "from tunix_rt.runs.folder import open_run\n"
        "run = open_run('short', run_dir, {'value': value})\n"
        "with open(run.folder.parent / 'calls.txt', 'a') as file:\n    file.write(f'{value} ')",
        "run.finish({'double': 2 * value})",
    )
    both = notebook(
        tmp_path,
        "both.ipynb",
        "run_dir: str = ''  # Where",
        "from tunix_rt.runs.execute import execute\n"
        "from tunix_rt.runs.folder import open_run\nrun = open_run('both', run_dir, {})",
        f"first = execute({str(short)!r}, {{'value': 3}}, run.folder / 'first', reuse=True)",
        f"second = execute({str(adding)!r}, {{}}, run.folder / 'second', reuse=True)",
        "run.finish({**first.results, **second.results})",
    )
    folder = tmp_path / "run"
    caller = call(both, folder)
    until(lambda: steps_done(folder / "second") > 5)
    caller.kill()
    when = datetime.now(UTC)
    killed = [read_run(part) for part in (folder, folder / "second")]
    for run in killed:
        assert run.facts["status"] == "running"
        nbformat.read(run.notebook, as_version=4)  # whole, although it was killed at work

    run = execute(both, {}, folder, echo=False)  # at once: it waits for the dying to be gone
    assert run.completed and run.results == {"double": 6, "total": STEPS * (STEPS + 1) // 2}
    assert (folder / "calls.txt").read_text() == "3 "
    second = read_run(folder / "second")
    assert second.facts["parent_run_id"] == run.run_id
    assert [run.run_id, second.run_id] == [each.run_id for each in killed]
    assert [len(each.facts["resumed_at"]) for each in (run, second)] == [1, 1]
    assert (datetime.fromisoformat(run.facts["resumed_at"][0]) - when).total_seconds() < 5
    lines = [json.loads(line)["step"] for line in second.metrics_path.read_text().splitlines()]
    assert lines == list(range(1, STEPS + 1))  # the dying have not written among them
    assert second.log.read_text().count("step 3\n") == 1


def test_what_a_model_wrote_cannot_spoil_the_record(tmp_path: Path):
    run = start_run("add", tmp_path / "run", {"steps": 1})
    run.fail(ValueError("bad \0 text \ud800"))
    assert read_run(run.folder).facts["error"]["message"] == "bad \ufffd text \ufffd"
    run = start_run("add", tmp_path / "run", {"steps": 1})
    run.finish({"a\0b": "c\0d"})
    assert read_run(run.folder).results == {"a\ufffdb": "c\ufffdd"}
