"""Commands in odd surroundings: modules of our names in the working folder, no UTF-8 locale."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from tunix_rt.core.files import read_json

MAIN = "import sys; sys.path.pop(0); from tunix_rt.cli.app import main; main()"
PROGRAM = (
    "import json, random, helper\n"
    "from pathlib import Path\n"
    "from tunix_rt.runs.folder import open_run\n"
    "Path('written.txt').write_text('2 → 3')\n"
    "print('counting → é')\n"
    "run = open_run('count', run_dir, {})\n"
    "run.finish({'from': helper.NAME, 'read': Path('written.txt').read_text()})"
)


def notebook(root: Path) -> Path:
    "Write a pipeline that imports from the library and from the working folder."
    given = nbformat.v4.new_code_cell("run_dir: str = ''  # Where it lands")
    given.metadata.tags = ["parameters"]
    title = nbformat.v4.new_markdown_cell("# Count\n\n> Counts.")
    cells = [title, given, nbformat.v4.new_code_cell(PROGRAM)]
    path = root / "count.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_formulas_are_compared_beside_a_json_py(tmp_path: Path) -> None:
    for name in ("json", "resource", "logging", "sympy"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('of the working folder')")
    asked = "from tunix_rt.scoring.math_verify import same_formula as s; print(s('x+1', '1+x'))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", asked], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "True\n", done.stderr


@pytest.mark.usefixtures("own_kernels")
@pytest.mark.parametrize(
    "locale",
    [
        {},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["as it is", "C", "POSIX"],
)
def test_a_run_finds_the_library_and_writes_utf_8(locale: dict[str, str], tmp_path: Path) -> None:
    for name in ("json", "random", "select", "numpy", "papermill"):
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('{name} of the working folder')")
    (tmp_path / "helper.py").write_text("NAME = 'the working folder'")
    path = notebook(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "run", str(path), "--run-dir", "outputs/one"],
        cwd=tmp_path,
        env={**os.environ, "TUNIX_RT_ROOT": str(tmp_path), "JAX_PLATFORMS": "cpu", **locale},
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    assert "counting → é" in done.stdout.decode("utf-8")
    facts = read_json(tmp_path / "outputs/one/run.json")
    assert facts["results"] == {"from": "the working folder", "read": "2 → 3"}
    assert (tmp_path / "written.txt").read_bytes() == "2 → 3".encode()
