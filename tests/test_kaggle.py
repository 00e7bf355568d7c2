"""To Kaggle and back: a session from a bundle, cut and resumed; a push to a stand-in."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from uuid import UUID

import numpy as np
import orbax.checkpoint as ocp
import pytest
from kaggle_machine import COMPILED, Machine, dress, is_gone, make_image
from kaggle_server import KEY, Kaggle
from packaging.utils import canonicalize_name

import tunix_rt
from tunix_rt.core.settings import settings
from tunix_rt.kaggle.metadata import FRAMEWORKS, KaggleError, faults, slug_of
from tunix_rt.runs.folder import Run

TOY = {
    "model": "tiny", "method": "lora", "lora_rank": 4, "train_traces": 32, "held_out": 2,
    "max_steps": 40, "checkpoint_every": 2, "batch_size": 2, "seq_length": 128, "eval_limit": 2,
    "max_new_tokens": 8,
}  # fmt: skip
MADE = {
    "model", "hackathon", "predictions.jsonl", "evaluation.json", "report.html", "image.txt",
}  # fmt: skip
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A folder of links to what Kaggle's image has, with a frozen list beside it."
    return make_image(tmp_path_factory.mktemp("usr") / "image")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory, image: Path) -> Path:
    "The bundle that such an image needs, from the package index."
    from tunix_rt.kaggle.wheels import make_bundle

    into, frozen = tmp_path_factory.mktemp("made") / "wheels", image.with_suffix(".txt")
    made = make_bundle(into, python=PYTHON, image=frozen)
    carried = {wheel["name"] for wheel in made.facts["wheels"]}
    assert {"tunix-rt", "math-verify", "pydantic-settings"} <= carried
    assert not {"sqlalchemy", "alembic", "optuna"} & carried, "no session needs the database"
    assert not carried & set(made.facts["image"]), "it carries what the image has"
    return made.folder


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "The submission as it leaves for Kaggle."
    from tunix_rt.kaggle.submission import render

    return render(TOY, tmp_path_factory.mktemp("rendered"))


def lines_of(run: Path) -> list[tuple[int, float, float | None]]:
    "What must not depend on luck in a run's metrics."
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line.get("validation_loss")) for line in lines]


def cut(machine: Machine, notebook: Path) -> Path:
    "Run the notebook until something is saved, then cut the power; returns the run folder."
    process, deadline = machine.start(notebook), time.monotonic() + 600
    found: list[Path] = []
    while not found:
        assert process.poll() is None, process.communicate()[0].decode()[-3000:]
        assert time.monotonic() < deadline, "it never came to the place where it was to be cut"
        time.sleep(0.05)
        saved = machine.runs.glob("*-train/checkpoints/*")
        found = [path for path in saved if path.name.isdigit()]  # not one that is being written
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    train = found[0].parent.parent
    while not is_gone(process, train):
        assert time.monotonic() < deadline, "somebody still works in a run that was killed"
        time.sleep(0.05)
    return train.with_name(train.name.removesuffix("-train"))


def finish(process: subprocess.Popen[bytes]) -> str:
    "Wait for a session, which must come to a good end with what the bundle brought."
    said = process.communicate(timeout=900)[0].decode()
    assert process.returncode == 0, said[-3000:]
    assert f"installed tunix_rt-{tunix_rt.__version__}-py3-none-any.whl beside jax" in said
    assert "PyTorch is not installed here" in said
    return said


def test_a_session_trains_a_model_with_nothing_but_its_bundle(
    tmp_path: Path, image: Path, wheels: Path
) -> None:
    from tunix_rt.kaggle.submission import render
    from tunix_rt.runs.folder import read_run

    machine = dress(tmp_path / "machine", image)
    machine.attach(wheels, "tunix-rt-wheels")
    few = TOY | {"max_steps": 2, "eval_limit": 1, "max_new_tokens": 4}
    finish(machine.start(render(few, tmp_path)))
    (train,) = machine.runs.glob("*-train")
    run = train.with_name(train.name.removesuffix("-train"))
    done = read_run(run)
    assert done.status == "completed" and done.results["steps"] == 2
    assert MADE <= {path.name for path in run.glob("[!.]*")}
    judges_can_restore(run)


@pytest.mark.nightly
def test_a_session_cut_and_resumed_ends_as_if_it_had_not_been(
    tmp_path: Path, image: Path, wheels: Path, notebook: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunix_rt.kaggle.session import save_session
    from tunix_rt.kaggle.tunix_export import compare_with_transformers
    from tunix_rt.runs.execute import execute
    from tunix_rt.runs.folder import read_run

    machine = dress(tmp_path / "machine", image)
    machine.attach(wheels, "tunix-rt-wheels")
    run = cut(machine, notebook)
    assert read_run(run).status == "interrupted" and not (run / "model").exists()
    save_session(read_run(run), tmp_path / "saved")

    machine.attach(tmp_path / "saved", "my-session")
    machine.new_session()
    assert f"going on with {run.name}" in finish(machine.start(notebook))
    assert compare_with_transformers(run / "model", "Is 7 odd?").startswith("transformers computes")

    done, trained = read_run(run), read_run(Path(f"{run}-train"))
    assert done.status == "completed" and len(done.facts["sessions"]) == 2
    assert len(trained.facts["resumed_at"]) == 1
    found = re.search(r"resumed from step (\d+)", trained.log.read_text())
    assert found is not None and 0 < int(found[1]) < 40
    assert MADE <= {path.name for path in run.glob("[!.]*")}
    assert done.results["steps"] == 40 and done.results["before"] is not None

    for name in (*COMPILED, "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.setenv(name, machine.variables()[name])
    monkeypatch.setenv("TUNIX_RT_ROOT", str(machine.working))
    settings.cache_clear()
    whole = execute("train", trained.parameters, tmp_path / "whole", echo=False)
    settings.cache_clear()
    assert lines_of(whole.folder) == lines_of(trained.folder)
    weights = [(r.model / "model.safetensors").read_bytes() for r in (whole, done)]
    assert weights[0] == weights[1]
    judges_can_restore(run)


@pytest.mark.nightly
def test_a_bundle_for_an_image_that_nobody_has_seen_installs_into_the_barest(
    tmp_path: Path, notebook: Path
) -> None:
    from tunix_rt.kaggle.wheels import KNOWN, make_bundle

    image = make_image(tmp_path / "usr/image", [*KNOWN["tpu"], "ipykernel", "torch", "pip"])
    made = make_bundle(tmp_path / "wheels", python=PYTHON, accelerator="tpu")
    carried = {wheel["name"] for wheel in made.facts["wheels"]}
    assert {"transformers", "pandas", "ipykernel"} <= carried
    machine = dress(tmp_path / "machine", image)
    machine.attach(made.folder, "tunix-rt-wheels")
    process = machine.start(notebook)
    said = process.communicate(timeout=900)[0].decode()
    assert process.returncode == 0, said[-3000:]
    assert "transformers computes the same logits" in said and "restored as the judges do" in said
    site = next(machine.disk.glob("opt/lib/python*/site-packages"))
    brought = {canonicalize_name(path.name.split("-")[0]) for path in site.glob("*.dist-info")}
    assert brought and brought <= carried - set(KNOWN["tpu"])


def judges_can_restore(run: Path) -> None:
    "Restore the hackathon's layout with nothing but Orbax, and see that it holds what was learnt."
    told = json.loads((run / "hackathon/lora.json").read_text())
    folder = run / f"hackathon/actor/{told['step']}/model_params"
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.restore(folder.absolute())
    layer = found["layers"]["0"]
    assert set(layer["attn"]) == {"q_einsum", "kv_einsum", "attn_vec_einsum"}
    learnt = layer["attn"]["q_einsum"]["w_lora_b"]["value"]
    assert learnt.shape[0] == told["rank"] == 8 and np.abs(learnt).max() > 0


def test_a_session_without_wheels_fails_in_its_first_cell(
    tmp_path: Path, image: Path, notebook: Path
) -> None:
    machine = dress(tmp_path / "machine", image)
    process = machine.start(notebook)
    said = process.communicate(timeout=300)[0].decode()
    assert process.returncode != 0 and "attach the dataset with the wheels" in said
    assert not machine.runs.exists()


def test_a_bundle_that_does_not_fit_is_refused_and_jax_stays(
    tmp_path: Path, image: Path, notebook: Path
) -> None:
    machine = dress(tmp_path / "machine", image)
    cells = json.loads(notebook.read_text())["cells"]
    (cell,) = ("".join(c["source"]) for c in cells if "def install(" in "".join(c["source"]))

    def installing(*needs: str, python: str = PYTHON) -> str:
        shutil.rmtree(machine.disk / "kaggle/input")
        machine.attach(bundle_of(tmp_path / str(len(needs)) / python, *needs, python=python), "w")
        place = {"cwd": machine.working, "env": machine.variables()}
        words = [str(machine.python), "-c", cell]
        said = subprocess.run(words, capture_output=True, text=True, **place)
        assert said.returncode == 1, said.stdout
        return said.stderr

    said = installing(python="3.9")
    assert f"made for Python 3.9, and this is {PYTHON}" in said and "--python" in said
    said = installing("jax>=99", "optuna>=98")
    assert "does not install beside jax" in said and "jax>=99" in said
    assert "optuna>=98" in installing("optuna>=98")
    left = list(machine.disk.glob("opt/lib/python*/site-packages/*"))
    assert [path.name for path in left] == ["image.pth"], "something was installed all the same"


@pytest.fixture
def kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kaggle:
    "A stand-in server, and a root of one's own."
    server = Kaggle()
    for name, value in server.variables(tmp_path / "config").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TUNIX_RT_ROOT", str(tmp_path / "root"))
    settings.cache_clear()
    yield server
    server.server.shutdown()
    monkeypatch.undo()
    settings.cache_clear()


def typed(line: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    "Type a line after `tunix-rt kaggle`."
    from tunix_rt.cli.app import main

    code = 0
    try:
        main(["kaggle", *line])
    except SystemExit as end:
        code = int(end.code or 0)
    said = capsys.readouterr()
    assert KEY not in said.out + said.err, "a credential was printed"
    return code, said.out + said.err


def bundle_of(folder: Path, *needs: str, python: str = "3.12") -> Path:
    "A bundle with one wheel in it, as far as anybody can tell who does not import it."
    from tunix_rt.core.files import sha256_file, write_json

    folder.mkdir(parents=True)
    wheel = folder / "tunix_rt-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        lines = ["Metadata-Version: 2.1", "Name: tunix_rt", "Version: 0.1.0"]
        lines += [f"Requires-Dist: {need}" for need in needs]
        archive.writestr("tunix_rt-0.1.0.dist-info/METADATA", "\n".join(lines) + "\n\n")
        archive.writestr("tunix_rt-0.1.0.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        archive.writestr("tunix_rt-0.1.0.dist-info/RECORD", "")
    facts = {"python": python, "wheels": [], "sha256": {wheel.name: sha256_file(wheel)}}
    write_json(folder / "bundle.json", facts)
    return folder


def finished(folder: Path, model: str) -> Run:
    "A submission that is complete, as far as an upload can tell."
    from tunix_rt.kaggle.session import SUBMISSION
    from tunix_rt.runs.folder import start_run

    run = start_run(SUBMISSION, folder, {"model": model})
    run.model.mkdir()
    (run.model / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    run.finish({"answer_correctness": 0.5})
    return run


def test_push_through_kaggles_own_client(
    kaggle: Kaggle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tunix_rt.data.datasets import build_dataset
    from tunix_rt.data.generators import generate_traces
    from tunix_rt.kaggle.session import SUBMISSION
    from tunix_rt.runs.folder import start_run
    from tunix_rt.runs.lock import release

    build_dataset(generate_traces("golden")[0], name="mine", version="v1")
    run = start_run(SUBMISSION, tmp_path / "root/outputs/runs/first", {"model": "tiny"})
    release(run.folder)
    whole = finished(tmp_path / "root/outputs/runs/whole", "google/gemma-2-2b")
    wheels = bundle_of(tmp_path / "wheels")
    line = ["push", "--title", "Gemma shows its work", "-p", "dataset=mine-v1", "-p"]
    line += ["max_steps=50", "--bundle", str(wheels), "--session", str(run.folder)]
    line += ["--publish", str(whole.folder)]

    code, said = typed([*line, "--dry-run", "--output", str(tmp_path / "dry")], capsys)
    assert code == 0 and not kaggle.calls, said
    assert sorted(path.name for path in (tmp_path / "dry").iterdir()) == [
        "data-dataset", "model", "notebook", "session", "wheels"]  # fmt: skip
    written = sorted(path.relative_to(tmp_path / "dry") for path in tmp_path.glob("dry/**/*-meta*"))
    assert [str(path) for path in written] == [
        "data-dataset/dataset-metadata.json",
        "model/instance/model-instance-metadata.json",
        "model/model-metadata.json",
        "notebook/kernel-metadata.json",
        "session/dataset-metadata.json",
        "wheels/dataset-metadata.json",
    ]

    code, said = typed(line, capsys)
    assert code == 0 and "version 1, https://www.kaggle.com/code/ada/gemma-shows-its-work" in said
    sent = kaggle.last("SaveKernel")
    refs = [f"ada/gemma-shows-its-work-{part}" for part in ("wheels", "data", "session")]
    assert sent["datasetDataSources"] == refs and set(kaggle.datasets) == set(refs)
    assert sent["modelDataSources"] == ["google/gemma-2/transformers/gemma-2-2b/2"]
    assert (sent["machineShape"], sent["enableInternet"]) == ("TpuV5E8", False)
    assert sent["sessionTimeoutSeconds"] == 9 * 3600 and "max_steps = 50" in sent["text"]
    assert kaggle.names_of(kaggle.datasets[refs[0]]["files"]) == {
        "bundle.json",
        "tunix_rt-0.1.0-py3-none-any.whl",
    }
    assert kaggle.names_of(kaggle.datasets[refs[2]]["files"]) == {"session.json", "session.tar"}
    assert all(body["isPrivate"] for body in kaggle.datasets.values())
    assert kaggle.last("CreateModel")["isPrivate"]
    variation = kaggle.last("CreateModelInstance")["body"]
    assert variation["baseModelInstance"] == "google/gemma-2/transformers/gemma-2-2b"
    assert kaggle.names_of(variation["files"]) == {"README.md"}
    order = [name for name, _ in kaggle.calls if name.startswith(("Create", "SaveKernel"))]
    assert order[-3:] == ["CreateModel", "CreateModelInstance", "SaveKernel"]

    assert typed(line, capsys)[0] == 0 and kaggle.last("CreateDatasetVersion")[
        "datasetSlug"
    ].endswith("session")


def test_plug_ins_travel_with_a_push(
    kaggle: Kaggle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tunix_rt.core.plugins import PLUGIN_FOLDERS, load_plugin
    from tunix_rt.kaggle.environment import NotebookEnvironment
    from tunix_rt.kaggle.plugins import use_attached_plugins

    home = tmp_path / "home"
    home.mkdir()
    (home / "limits.py").write_text("SHORT = 20\n")
    mine = home / "mine.py"
    mine.write_text(
        "import limits\n\ndef brevity(completions, **kwargs):\n"
        "    return [float(len(text) < limits.SHORT) for text in completions]\n\n"
        "def halves(count, seed):\n    return []\n"
    )
    spec = f"{mine}:brevity"
    line = ["push", "--title", "Gemma shows its work", "--bundle", str(bundle_of(tmp_path / "w"))]
    line += ["-p", f"reward_funcs=correct, {spec}", "-p", f"dataset={mine}:halves"]
    code, said = typed([*line, "--output", str(tmp_path / "out")], capsys)
    assert code == 0, said
    ref = "ada/gemma-shows-its-work-plugins"
    assert ref in kaggle.last("SaveKernel")["datasetDataSources"]
    assert kaggle.names_of(kaggle.datasets[ref]["files"]) == {
        "limits.py",
        "mine.py",
        "plugins.json",
    }

    shutil.copytree(tmp_path / "out/plugins", tmp_path / "kaggle/input/datasets/ada/plugins")
    shutil.rmtree(home)
    monkeypatch.setenv(PLUGIN_FOLDERS, "")
    use_attached_plugins(NotebookEnvironment("batch", tmp_path, tmp_path, (), False))
    assert load_plugin("rewards", spec)(["short", "as long as can be imagined"]) == [1.0, 0.0]

    line[-3] = f"reward_funcs={tmp_path}/nowhere.py:brevity"
    code, said = typed([*line, "--dry-run"], capsys)
    assert code and "nowhere.py does not exist" in said


def test_what_kaggle_leaves_out_is_an_error(
    kaggle: Kaggle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["push", "--title", "Gemma shows its work", "--internet"]
    code, said = typed(line, capsys)
    assert code == 1 and "the session installs tunix_rt from wheels" in said and not kaggle.calls
    line += ["--dataset-source", "ada/wheels"]
    kaggle.unknown = ["google/gemma-2/transformers/gemma-2-2b/2"]
    code, said = typed(line, capsys)
    assert code == 1 and "without model google/gemma-2/transformers/gemma-2-2b/2" in said
    kaggle.refused = {"tunix_rt-0.1.0-py3-none-any.whl"}
    code, said = typed([*line, "--bundle", str(bundle_of(tmp_path / "wheels"))], capsys)
    assert code == 1 and "tunix_rt-0.1.0-py3-none-any.whl" in said and "Traceback" not in said
    left_out = "is on Kaggle without some of its files"  # up to 2.2.4 the client only says so
    assert left_out in said or "Kaggle did not take the dataset ada/" in said


def test_results_come_home_and_go_onto_the_leaderboard(
    kaggle: Kaggle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tunix_rt.jobs.queue import get_queued
    from tunix_rt.store.engine import open_store

    far = tmp_path / "far/outputs/runs/first"
    run = finished(far, "tiny")
    (far / "checkpoints/2").mkdir(parents=True)
    (far / "checkpoints/2/state").write_text("large")
    kaggle.output = tmp_path / "far"

    assert typed(["status", "ada/gemma-shows-its-work"], capsys) == (
        0,
        "ada/gemma-shows-its-work: complete\n",
    )
    code, said = typed(
        ["pull", "ada/gemma-shows-its-work", "--output", str(tmp_path / "home")], capsys
    )
    assert code == 0 and f"is run {run.run_id}" in said
    assert not list((tmp_path / "home").rglob("checkpoints"))
    store = open_store()
    assert get_queued(store, UUID(run.run_id)).status == "completed"
    store.close()

    words = ["save", str(far), "--as", "model", "--title", "Gemma shows its work", "--upload"]
    code, said = typed(words, capsys)
    assert code == 0 and "ada/gemma-shows-its-work/transformers/main: a new variation" in said
    assert kaggle.last("CreateModel")["description"] == "# A model"
    assert kaggle.names_of(kaggle.last("CreateModelInstance")["body"]["files"]) == {"README.md"}


def test_our_rules_are_those_of_kaggles_client() -> None:
    from kaggle.api.kaggle_api_extended import KaggleApi
    from kagglesdk.models.types.model_enums import ModelFramework
    from slugify import slugify

    for title in ("Gemma shows its work", "Ünï-cödé: 2B (v3)", "What's 2+2?", "a_b  c"):
        assert slug_of(title) == slugify(title)
    none, read = ModelFramework.MODEL_FRAMEWORK_UNSPECIFIED, KaggleApi().lookup_enum
    known = {read(ModelFramework, none, name) for name in FRAMEWORKS}
    assert len(known) == len(FRAMEWORKS) == len(ModelFramework) - 1


def test_a_bundle_never_carries_jax(tmp_path: Path) -> None:
    from tunix_rt.kaggle.wheels import check_bundle

    folder = bundle_of(tmp_path / "wheels")
    assert check_bundle(folder).facts["python"] == "3.12"
    for name in ("jaxlib-0.10.2", "libtpu-0.0.44", "jax_cuda12_plugin-0.10.2"):
        stem, _, version = name.rpartition("-")
        wheel = folder / f"{name}-py3-none-any.whl"
        shutil.copy(folder / "tunix_rt-0.1.0-py3-none-any.whl", wheel)
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"{name}.dist-info/METADATA", f"Name: {stem}\nVersion: {version}\n\n")
        with pytest.raises(KaggleError, match="would replace"):
            check_bundle(folder)
        wheel.unlink()


def test_faults_are_all_found_at_once() -> None:
    assert (
        len(list(faults("kernel", {"title": "x", "id": "X/y", "language": "perl", "more": 1}))) >= 6
    )
