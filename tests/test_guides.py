"A name that moves, followed through the queue, a worker and the command line."

from contextlib import closing

import nbformat
import pytest

from tunix_rt.core.errors import RunError
from tunix_rt.core.settings import settings
from tunix_rt.jobs.queue import enqueue, get_queued
from tunix_rt.jobs.worker import work
from tunix_rt.registry.model_refs import pin_spec
from tunix_rt.registry.models import create_registered_model, set_alias
from tunix_rt.runs.execute import execute
from tunix_rt.runs.folder import read_run
from tunix_rt.runs.run_spec import make_spec
from tunix_rt.store.engine import open_store
from tunix_rt.store.tables import ModelVersion, RunRow

DEFAULTS = 'model: str = "tiny"  # Where to start from\nrun_dir: str = ""  # Everything lands here'
BODY = """
from tunix_rt.runs.folder import open_run, parameters_in
run = open_run("begin", run_dir, parameters_in(globals()))
run.finish({"length": len(model)})
"""


def begin_notebook(root) -> str:
    "A pipeline that only says where it would start from."
    cells = [nbformat.v4.new_code_cell(DEFAULTS), nbformat.v4.new_code_cell(BODY)]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), root / "begin.ipynb")
    return "begin.ipynb"


def test_a_moved_alias_does_not_change_a_run_that_waits(root, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{root / 'moved.db'}")
    settings.cache_clear()
    pipeline = begin_notebook(root)
    with closing(open_store()) as store:
        source = RunRow(pipeline="train", status="completed")
        model = create_registered_model(store, "adder")
        with store.writing() as session:
            session.add(source)
        versions = {}
        for label, digit in (("v1", "1"), ("v2", "2")):
            row = ModelVersion(model_id=model.id, version=label, source_run_id=source.id)
            row.storage_uri, row.sha256, row.size_bytes = "outputs/models", digit * 64, 0
            (root / "outputs" / "models" / row.sha256).mkdir(parents=True)
            with store.writing() as session:
                session.add(row)
            versions[label] = row.id
        set_alias(store, model.id, "champion", versions["v1"])
        moving = make_spec(pipeline, {"model": "adder@champion"})
        for start in (lambda: enqueue(store, moving), lambda: execute(moving, echo=False)):
            with pytest.raises(RunError, match="Resolve it first"):
                start()
        waiting = enqueue(store, pin_spec(moving, store))
        set_alias(store, model.id, "champion", versions["v2"])
        assert work(store, once=True) == 1

        done = get_queued(store, waiting.id)
        assert (done.status, done.model_id) == ("completed", "adder@v1"), done.message
        facts = read_run(done.path).facts
        assert facts["parameters"]["model"] == "outputs/models/" + "1" * 64
        assert facts["model_version"]["asked"] == "adder@champion"
        assert facts["model_version"]["sha256"] == "1" * 64

        at_once = execute(pin_spec(moving), echo=False)
        assert at_once.facts["model_version"]["version"] == "adder@v2"
        assert at_once.parameters["model"] == "outputs/models/" + "2" * 64
