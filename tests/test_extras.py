"What works where the extra `serve` was not installed, and what the rest of the commands say."

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
# Every process takes this up when it starts, kernels too: the three packages are not to be found.
SITE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("sqlalchemy", "alembic", "optuna"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
for name in ("sqlalchemy", "alembic", "optuna"):
    sys.modules[name] = None
"""
ASKED = {
    "leaderboard", "runs", "models", "tuning", "queue demo", "worker --once", "db upgrade",
    "backup all.zip", "import-run outputs/short", "gate x main", "promote reasoner x",
    "delete log", "delete run x",
}  # fmt: skip
TOY = "-p batch_size=2 -p seq_length=64"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "An empty folder, and beside it what makes Python forget the packages."
    root = tmp_path_factory.mktemp("alone")
    (root / ".site").mkdir()
    (root / ".site" / "sitecustomize.py").write_text(SITE)
    return root


def typed(root: Path, line: str) -> tuple[int, str, str]:
    "Type a line in a process of its own."
    path = os.pathsep.join([str(root / ".site"), str(CHECKOUT)])
    left_out = ("DATABASE_URL", "TUNIX_RT_TEST_KERNELS")  # Forked kernels have imported already
    variables = {name: v for name, v in os.environ.items() if name not in left_out}
    done = subprocess.run(
        [sys.executable, "-c", "from tunix_rt.cli.app import main; main()", *line.split()],
        cwd=root,
        env=variables | {"PYTHONPATH": path, "TUNIX_RT_ROOT": str(root)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done.returncode, done.stdout, done.stderr


def test_generating_training_evaluating_and_comparing_need_no_database(root: Path):
    lines = (
        "generate arithmetic-steps --version v1 --train 40 --held-out 4",
        f"train -p dataset=arithmetic-steps-v1 -p max_steps=3 {TOY} --run-dir outputs/short",
        *(
            f"evaluate -p model=outputs/short -p dataset=golden-v2 -p limit=4 -p max_new_tokens=8 "
            f"--run-dir outputs/{name}"
            for name in ("first", "second")
        ),
        "compare outputs/first outputs/second",
        "show outputs/short",
        "show golden-v2",
    )
    for line in lines:
        code, output, errors = typed(root, line)
        assert code == 0, (line, output[-2000:], errors[-2000:])


def test_the_doctor_says_what_is_not_there_and_is_content(root: Path):
    code, output, errors = typed(root, "doctor")
    assert code == 0, output + errors
    assert "sqlalchemy, alembic, optuna not installed" in output
    assert "pip install 'tunix_rt[serve]'" in output and output.endswith("missing  nothing\n")


@pytest.mark.parametrize("line", sorted(ASKED))
def test_what_needs_the_database_says_so_in_one_sentence(root: Path, line: str):
    code, output, errors = typed(root, line)
    assert code == 1 and not output
    assert errors == (
        "tunix-rt: this command needs the database, and sqlalchemy is not installed: "
        "pip install 'tunix_rt[serve]'\n"
    )
    assert "Traceback" in typed(root, f"{line} --debug")[2]
