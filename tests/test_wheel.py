"What travels in the wheel, and whether it works where there is no checkout."

import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
DATASETS = ("dev-reasoning-v1", "golden-v2")
NEEDED = ("tunix_rt", "nbs/pipelines", "settings.ini", "setup.py", "pyproject.toml", "README.md")
NEEDED += tuple(f"data/datasets/{key}" for key in DATASETS)


def can_build_here() -> bool:
    "Whether this environment has what pyproject.toml asks for to build."
    there = find_spec("setuptools") and find_spec("wheel")
    return bool(there) and int(version("setuptools").split(".")[0]) >= 77


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "Build the source archive and the wheel from it in a copy, so that the checkout stays clean."
    copy, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("out")
    for name in (*NEEDED, "MANIFEST.in", "LICENSE"):
        source, target = CHECKOUT / name, copy / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, target)
    here = ["--no-isolation"] if can_build_here() else []
    command = [sys.executable, "-m", "build", *here, "--outdir", str(out), str(copy)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(out / "site")
    return out / "site"


def test_pipelines_travel_from_one_source(unpacked: Path):
    written = {path.name: path.read_bytes() for path in CHECKOUT.glob("nbs/pipelines/*.ipynb")}
    packed = {path.name: path.read_bytes() for path in unpacked.glob("tunix_rt/pipelines/*.ipynb")}
    assert packed == written
    assert not (CHECKOUT / "tunix_rt" / "pipelines").exists()  # copies are made, never kept


def test_frozen_datasets_travel_from_one_source(unpacked: Path):
    for key in DATASETS:
        written = {path.name: path.read_bytes() for path in CHECKOUT.glob(f"data/datasets/{key}/*")}
        packed = {
            path.name: path.read_bytes() for path in unpacked.glob(f"tunix_rt/_datasets/{key}/*")
        }
        assert packed == written and "manifest.json" in packed
    assert {path.name for path in unpacked.glob("tunix_rt/_datasets/*")} == {*DATASETS}
    assert not (CHECKOUT / "tunix_rt" / "_datasets").exists()


def test_what_the_wheel_says_of_itself(unpacked: Path):
    (path,) = unpacked.glob("*.dist-info/METADATA")
    metadata = message_from_bytes(path.read_bytes())
    assert metadata["License-Expression"] == "Apache-2.0"
    assert list(path.parent.glob("licenses/LICENSE"))
    assert not [line for line in metadata.get_all("Classifier") if line.startswith("License ::")]
    links = dict(line.split(", ") for line in metadata.get_all("Project-URL"))
    assert {"Documentation", "Source", "Issues", "Changelog"} <= set(links)
    assert {"serve", "postgres", "kaggle", "lab", "dev", "docs"} <= {
        *metadata.get_all("Provides-Extra")
    }
    database = ("sqlalchemy", "alembic", "optuna")
    needs = [line for line in metadata.get_all("Requires-Dist") if line.startswith(database)]
    assert len(needs) == 3 and all('extra == "serve"' in line for line in needs)
    cited = (CHECKOUT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {metadata['Version']}\n" in cited
    assert (unpacked / "tunix_rt" / "py.typed").is_file()  # so that mypy reads our types


def test_every_module_and_the_command_are_there(unpacked: Path):
    modules = {path.relative_to(CHECKOUT) for path in CHECKOUT.glob("tunix_rt/**/*.py")}
    assert modules == {path.relative_to(unpacked) for path in unpacked.glob("tunix_rt/**/*.py")}
    (entry,) = unpacked.glob("*.dist-info/entry_points.txt")
    assert "tunix-rt = tunix_rt.cli.app:main" in entry.read_text()
    strangers = {path.name for path in unpacked.iterdir()} - {"tunix_rt", entry.parent.name}
    assert not strangers


def test_it_finds_its_pipelines_in_an_empty_folder(unpacked: Path, tmp_path: Path):
    look = (
        "import tunix_rt, json\n"
        "from tunix_rt.core.settings import settings\n"
        "from tunix_rt.runs.pipelines import list_pipelines\n"
        "print(tunix_rt.__file__); print(settings().root)\n"
        "for name, path in list_pipelines().items(): print(name, path)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", look],
        cwd=tmp_path,
        env={"PYTHONPATH": str(unpacked), "PATH": ""},
        capture_output=True,
        text=True,
    )
    home, root, *pipelines = answer.stdout.splitlines()
    assert home == str(unpacked / "tunix_rt" / "__init__.py") and root == str(tmp_path.resolve())
    assert len(pipelines) == len(list(CHECKOUT.glob("nbs/pipelines/*.ipynb")))
    assert all(str(unpacked) in line for line in pipelines)


def test_it_finds_its_datasets_in_an_empty_folder(unpacked: Path, tmp_path: Path):
    look = (
        "from tunix_rt.data.datasets import SHIPPED, dataset_names, load_dataset\n"
        "for key in SHIPPED: print(load_dataset(key).folder)\n"
        "print(dataset_names())"
    )
    answer = subprocess.run(
        [sys.executable, "-c", look],
        cwd=tmp_path,
        env={"PYTHONPATH": str(unpacked), "PATH": ""},
        capture_output=True,
        text=True,
    )
    *folders, names = answer.stdout.splitlines()
    assert folders == [str(unpacked / "tunix_rt" / "_datasets" / key) for key in DATASETS]
    assert names == f"none yet; shipped with tunix_rt: {', '.join(DATASETS)}"
    assert not list(tmp_path.iterdir())
