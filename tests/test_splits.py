"The test split of a dataset can be evaluated, and what was trained on cannot."

from contextlib import closing

import pytest

import tunix_rt as rt
from tunix_rt.core.errors import DatasetError
from tunix_rt.core.settings import settings
from tunix_rt.data.datasets import build_dataset, part_fingerprint
from tunix_rt.data.generators import generate_traces
from tunix_rt.runs.lookup import list_runs
from tunix_rt.store.engine import open_store
from tunix_rt.tracking.evaluations import evaluate_run
from tunix_rt.tracking.import_run import import_run
from tunix_rt.tracking.leaderboard import leaderboard


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNIX_RT_ROOT", str(tmp_path))
    monkeypatch.delenv("DATABASE_URL", raising=False)
    settings.cache_clear()
    yield tmp_path
    settings.cache_clear()


def test_a_split_is_trained_on_and_another_one_evaluated(root):
    traces, _ = generate_traces("arithmetic-steps", train=30, held_out=0, seed=1)
    data = build_dataset(traces, name="mixed", version="v1", splits={"train": 26, "test": 4})
    model = rt.create_model("tiny", data)
    trained = rt.sft(model, data, evaluation_set=data, max_steps=2, batch_size=2, seq_length=128)
    assert trained.results["steps"] == 2

    short = {"max_new_tokens": 4, "name": "mixed"}
    tested = rt.evaluate(model, data, split="test", **short)
    assert (tested.dataset_key, tested.prompts) == ("mixed-v1:test", 4)
    assert tested.dataset_fingerprint == part_fingerprint(data.fingerprint, "test")
    for split in ("", "train"):
        with pytest.raises(DatasetError, match="would measure memory"):
            rt.evaluate(model, data, split=split, **short)
    with pytest.raises(DatasetError, match="has no split 'tests'; it has train, test"):
        rt.evaluate(model, data, split="tests", **short)

    other = rt.evaluate(model.untrained(), data, **short)  # Was trained on nothing
    assert (other.dataset_key, other.prompts) == ("mixed-v1", 30)

    with closing(open_store()) as store:
        statuses = [run.status for run in list_runs() if run.pipeline == "evaluate"]
        assert sorted(statuses) == ["completed"] * 2 + ["failed"] * 3
        done = [run for run in list_runs() if run.completed and run.pipeline == "evaluate"]
        runs = [import_run(store, run.folder) for run in done]
        kept = {evaluate_run(store, run.id).evaluation_set for run in runs}
        assert kept == {"mixed-v1", "mixed-v1:test"}
        board = leaderboard(store, evaluation_set="mixed-v1:test")
        assert len(board.rows) == 1
