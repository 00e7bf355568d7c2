"The lines of Python in README work in an empty folder, with nothing but the package."

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("steps", [20, pytest.param(300, marks=pytest.mark.nightly)])
def test_the_lines_in_readme_train_a_model(tmp_path, steps):
    [lines] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len([line for line in lines.splitlines() if line.strip()]) <= 10
    assert "max_steps=300" in lines and "held_out=100" in lines
    short = lines.replace("max_steps=300", f"max_steps={steps}")
    short = short.replace("held_out=100", f"held_out={steps // 3}")
    names = {"TUNIX_RT_ROOT", "TUNIX_RT_RUN"}
    environment = {key: value for key, value in os.environ.items() if key not in names}
    done = subprocess.run(
        [sys.executable, "-c", short], cwd=tmp_path, capture_output=True, text=True, timeout=600,
        env=environment | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "validation_loss" in done.stdout
    assert "<answer>" in done.stdout or steps < 300, "it has not even learned the form"
    assert "untrained" in done.stdout and "trained" in done.stdout  # heads of the comparison
    runs = [path.name.split("-")[0] for path in (tmp_path / "outputs/runs").iterdir()]
    assert sorted(runs) == ["evaluate", "evaluate", "train"]


def test_importing_the_package_brings_nothing_heavy(tmp_path):
    code = (
        "import sys; import tunix_rt; "
        "print([name for name in ('jax', 'numpy', 'pandas') if name in sys.modules]); "
        "print(tunix_rt.Trace.__name__, 'jax' in sys.modules)"
    )
    heavy, later = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
    ).stdout.splitlines()  # fmt: skip
    assert (heavy, later) == ("[]", "Trace False")


def test_what_the_package_does_not_have_is_an_attribute_error():
    import tunix_rt

    assert not hasattr(tunix_rt, "no_such_thing")
    assert {"sft", "evaluate", "Model"} <= set(dir(tunix_rt))
