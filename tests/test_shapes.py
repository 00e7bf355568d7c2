"Files from elsewhere, taken in through the command line."

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunix_rt.cli.app import main
from tunix_rt.core.settings import settings
from tunix_rt.data.datasets import freeze_recipe
from tunix_rt.data.exports import export_file
from tunix_rt.data.formats import FORMATS_IN, import_file
from tunix_rt.data.length_stats import by_domain, lengths
from tunix_rt.traces.schema import read_traces


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    "A root with one evaluation set in it."
    monkeypatch.setenv("TUNIX_RT_ROOT", str(tmp_path))
    settings.cache_clear()
    freeze_recipe("golden", version="v2")
    yield tmp_path
    monkeypatch.undo()
    settings.cache_clear()


@pytest.mark.parametrize("shape", ["messages", "prompt_completion"])
def test_what_we_export_comes_back_as_the_same_traces(root: Path, shape: str):
    (dataset,) = freeze_recipe("dev-reasoning", version="v1")
    export_file(dataset, root / "out.jsonl", format=shape)
    taken = import_file(root / "out.jsonl", shape, source="ours", into=root / "back.jsonl")
    assert (taken.accepted, taken.bad) == (len(dataset), 0)
    ours, back = (
        [t.final_answer for t in traces] for traces in (dataset, read_traces(root / "back.jsonl"))
    )
    assert back == ours
    steps = [
        [[s.content for s in t.steps] for t in x]
        for x in (dataset, read_traces(root / "back.jsonl"))
    ]
    assert steps[0] == steps[1]


def test_a_public_file_from_the_command_line(root: Path, capsys: pytest.CaptureFixture[str]):
    exam = next(read_traces(root / "data/datasets/golden-v2/traces.jsonl"))
    sums = [
        {
            "question": f"{n} + {n}?",
            "answer": f"{n}+{n}=<<{n}+{n}={2 * n}>>{2 * n}\n#### {2 * n}",
            "category": "sums",
        }
        for n in range(30)
    ]
    lines = [*sums, sums[0], {"question": exam.prompt.upper(), "answer": "x\n#### 1"}]
    (root / "gsm.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = [
        "ingest",
        "gsm.jsonl",
        "--source",
        "gsm8k",
        "--format",
        "gsm8k",
        "--decontaminate",
        "golden-v2",
    ]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--max-tokens", "20"])
    assert not ended.value.code
    said = capsys.readouterr().out
    assert "30 traces taken in, 1 copies" in said and "1 questions of the evaluation set" in said
    assert "sums" in said and "too long" in said
    taken = list(read_traces(root / "data/traces/gsm.jsonl"))
    assert taken[3].steps[0].content == "3+3=6" and taken[3].category == "sums"
    assert by_domain(lengths(taken), 10).loc["sums", "traces"] == 30


def test_refusals_name_shape_and_line(root: Path, capsys: pytest.CaptureFixture[str]):
    (root / "bad.csv").write_text('question,answer\n"2 + 2?",<think>2+2</think>4\n"3?",3\n')
    for line, reason in {
        "ingest bad.csv --source x --format csv": "bad.csv:3: nothing separates the reasoning",
        "ingest bad.csv --source x --format excel": "there is no format 'excel'",
        "ingest none.csv --source x --format csv": "is not a file",
    }.items():
        with pytest.raises(SystemExit) as ended:
            main(line.split())
        assert ended.value.code == 1 and reason in capsys.readouterr().err
    assert not (root / "data/traces").exists() or not list((root / "data/traces").iterdir())


@pytest.mark.parametrize("shape", sorted(set(FORMATS_IN) - {"csv"}))
def test_hostile_lines_are_refused_one_by_one(root: Path, shape: str):
    lines = ["[]", "null", '{"question": 1, "answer": []}', '{"messages": [{"role": 1}]}']
    lines += ["{" * 200, '{"prompt": "a", "completion": "<think>\\u0000</think>b"}', '{"a": NaN}']
    (root / "bad.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(Exception, match=f"{len(lines)} of its lines cannot be used"):
        import_file(root / "bad.jsonl", shape, source="x", into=root / "none.jsonl")
    assert not (root / "none.jsonl").exists()
