"Files as people have them: each comes in as the trace it holds, or is refused with its reason."

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tunix_rt.cli.app import main
from tunix_rt.core.errors import DatasetError, TraceError
from tunix_rt.core.settings import settings
from tunix_rt.data.datasets import build_dataset, load_dataset
from tunix_rt.data.exports import FORMATS, export_file
from tunix_rt.data.formats import FORMATS_IN, detect_format, import_file
from tunix_rt.data.importers import ingest
from tunix_rt.scoring.predictions import make_prediction
from tunix_rt.scoring.scorers import answer_correctness
from tunix_rt.traces.rubric import NO_REFERENCE
from tunix_rt.traces.schema import Trace, read_traces, write_traces

FILES = Path(__file__).parent / "data/formats"
Q = "A shelf holds 3 rows of 4 jars. How many jars are there?"
S1, S2 = "Each row has 4 jars and there are 3 rows.", "So there are 3 * 4 = 12 jars."
BOX = "**Final Answer**\n\n\\boxed{12}"
CODE = "```python\nfor row in rows:\n\tfor jar in row:\n\t\tprint(jar)\n\n\tprint()\n```"
TASK, POEM = "Write two lines about a jar.", "A jar of clay,\nput away."
RUBRIC = [
    {"criterion": "It has two lines.", "weight": 4.0},
    {"criterion": "It names a jar.", "weight": 2.0},
    {"criterion": "It is rude.", "weight": -3.0},
]
OPTIONS = "A)7\nB)12\nC)16\nD)34\nE)43"


def take(tmp_path: Path, name: str, shape: str = "reasoning", **more):
    "Take in one of the files: the traces, and the notes."
    into = tmp_path / "taken.jsonl"
    taken = import_file(FILES / name, shape, source="here", into=into, **more)
    return list(read_traces(into)), taken.notes


# File and shape: question, steps and answer of its first trace, and what of `meta` is worth a look
READ = {
    ("limo.jsonl", "reasoning"): (Q, [S1, S2, "**Final Answer**", "\\boxed{12}"], "12", {}),
    ("numina.jsonl", "reasoning"): (
        Q, [S1, S2], "12", {"category": "Algebra", "original_source": "olympiads"},
    ),
    ("math.jsonl", "reasoning"): (
        Q, [S1, f"{S2} The answer is $\\boxed{{12}}$."], "12",
        {"category": "Prealgebra", "level": "Level 1"},
    ),
    ("openmathinstruct2.jsonl", "reasoning"): (
        Q, [S1, f"{S2} That is \\boxed{{12}}."], "12", {"problem_source": "augmented_gsm8k"},
    ),
    ("metamath.jsonl", "reasoning"): (Q, [S1, S2], "12", {"category": "GSM_AnsAug"}),
    ("aqua.jsonl", "reasoning"): (f"{Q}\n\n{OPTIONS}", [S1, S2, "Answer: B"], "B", {}),
    ("medical_o1.json", "reasoning"): (
        "Which vitamin does sunlight give?",
        ["Sunlight acts on the skin.", "The skin makes vitamin D of it."],
        "Vitamin D, which the skin makes in sunlight.", {},
    ),
    ("s1k.jsonl", "reasoning"): (
        Q, [S1, S2], "12", {"response": "Three rows of four make \\boxed{12}.", "solution": "12"},
    ),
    ("s1k_1_1.jsonl", "reasoning"): (
        Q, [S1, S2], "12", {"deepseek_grade": "No", "deepseek_attempt": "\\boxed{7}"},
    ),
    ("nemotron.jsonl", "reasoning"): (
        Q, [S1, S2], "12",
        {
            "system_prompt": "detailed thinking on", "reasoning": "on", "category": "math",
            "response": "There are \\boxed{12} jars.",
        },
    ),
    ("nemotron_post_training.jsonl", "messages"): (Q, [S1, S2], "12", {"reasoning": "on"}),
    ("dolphin_r1.jsonl", "messages"): (
        f"Count with care.\n\n{Q}", [S1, S2], "12", {"model": "DeepSeek-R1"},
    ),
    ("prm800k.jsonl", "reasoning"): (Q, [S1, S2], "12", {"ratings": [None, 1]}),
    ("processbench.jsonl", "reasoning"): (
        Q, [S1, f"{S2} That is \\boxed{{12}}."], "12", {"label": -1, "id": "gsm8k-1"},
    ),
    ("openr1.jsonl", "messages"): (Q, [S1, S2], "12", {"answer": "12", "solution": S2}),
    ("reasoning_content.jsonl", "messages"): (Q, [S1, S2], "12", {}),
    ("content_parts.jsonl", "messages"): (Q, [S1, S2], "12", {}),
    ("developer.jsonl", "messages"): (f"Count with care.\n\n{Q}", [S1, S2], "12", {}),
    ("think_closed.jsonl", "prompt_completion"): (Q, [S1, S2], "12", {}),
    ("think_by_template.jsonl", "prompt_completion"): (Q, [S1, S2], "12", {}),
    ("think_twice.jsonl", "prompt_completion"): (Q, [S1, "Or so:", S2], "12", {}),
    ("think_and_answer_tag.jsonl", "prompt_completion"): (Q, [S1, S2], "12", {}),
    ("alpaca.jsonl", "reasoning"): (
        "Count the jars.\n\nA shelf holds 3 rows of 4 jars.", [S1, S2], "12", {},
    ),
    ("context.jsonl", "reasoning"): (
        "How many jars are there?\n\nA shelf holds 3 rows of 4 jars.", [S1, S2], "12", {},
    ),
    ("tabs.jsonl", "reasoning"): (
        "Write a loop over the rows.",
        ["Go over the rows:", CODE, "The inner loop is indented twice."],
        "for row in rows:\n\tprint(row)", {},
    ),
    ("cpp.jsonl", "reasoning"): (
        "Print 1 << 2 in C++.",
        [
            "std::cout << (1 << 2) << std::endl; std::cin >> x;",
            "The shift gives 4, as <<4>> says.",
        ],
        "4", {},
    ),
    ("end_tokens.jsonl", "prompt_completion"): (Q, [S1, S2], "12", {}),
    ("two_boxes.jsonl", "prompt_completion"): (
        Q, [S1, "In one row \\boxed{4}.", "In all \\boxed{12}."], "12", {},
    ),
    ("gsm8k.jsonl", "gsm8k"): (Q, [S1, S2], "12", {}),
    ("unused_fields.jsonl", "reasoning"): (Q, [S1, S2], "12", {}),
    ("cp1252.csv", "csv"): (
        "Was kostet der Kaffee im Café, wenn 2 Tassen 7 € kosten?",
        ["Eine Tasse kostet die Hälfte von 7 €."], "3,50 €", {},
    ),
    **{
        (name, "csv"): (Q, [S1, S2], "12", {})
        for name in (
            "bom.csv", "semicolon.csv", "tab.tsv", "double_header.csv", "double_unused_column.csv",
            "excel.csv",
        )
    },
    ("capitals.csv", "csv"): (Q, [S1, S2], "12", {"ID": "7"}),
    ("rubric.jsonl", "rubric"): (
        TASK, [], NO_REFERENCE,
        {
            "match": "rubric", "category": "writing",
            "rubric": [{"criterion": "It has two lines, and names a jar.", "weight": 1.0}],
        },
    ),
    ("rubric_points.jsonl", "reasoning"): (
        TASK, [], NO_REFERENCE, {"match": "rubric", "rubric": RUBRIC, "prompt_id": "7"},
    ),
    ("rubric.csv", "csv"): (TASK, [], NO_REFERENCE, {"match": "rubric", "rubric": RUBRIC}),
    ("rubric_titles.jsonl", "rubric"): (
        TASK, [], POEM,
        {
            "rubric": [
                {"criterion": "Essential Criteria: It has two lines.", "weight": 5.0},
                {"criterion": "Pitfall Criteria: It is rude.", "weight": -1.0},
            ],
        },
    ),
    ("rubric_chat.jsonl", "messages"): (
        TASK, ["Clay rhymes with away."], POEM, {"match": "rubric"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "shape"), READ, ids=lambda part: str(part))
def test_a_file_comes_in_as_the_trace_it_holds(tmp_path: Path, name: str, shape: str):
    prompt, steps, answer, meta = READ[name, shape]
    trace = take(tmp_path, name, shape)[0][0]
    assert (trace.prompt, [step.content for step in trace.steps]) == (prompt, steps)
    assert trace.final_answer == answer
    assert {key: trace.meta.get(key) for key in meta} == meta
    assert trace.meta["source"] == "here"
    assert detect_format(FILES / name) is not None


REFUSED = {
    ("numina_proof.jsonl", "reasoning"): "its answer is 'proof'",
    ("openmathinstruct1_wrong.jsonl", "reasoning"): "marked wrong (is_correct is false)",
    ("prm800k_given_up.jsonl", "reasoning"): "finish_reason is 'found_error'",
    ("processbench_wrong.jsonl", "reasoning"): "marked wrong (final_answer_correct is false)",
    ("picture.jsonl", "messages"): "a part of type 'image_url'",
    ("think_cut_off.jsonl", "prompt_completion"): "the thought is cut off",
    ("think_no_answer.jsonl", "prompt_completion"): "nothing follows the thought",
    ("weight_zero.jsonl", "messages"): "weight 0",
    ("end_token_inside.jsonl", "prompt_completion"): "is in the middle of a text",
    ("double_column.csv", "csv"): "two different values for 'answer'",
    ("limo_cut.jsonl.gz", "reasoning"): "damaged or cut off",
    ("limo_array_cut.json", "reasoning"): "limo_array_cut.json:2: it is not JSON",
    ("sheet.xlsx", "reasoning"): "save the sheet as CSV",
    ("rubric_weightless.jsonl", "rubric"): "criterion 1 of the rubric weighs 'much'",
    ("rubric_faults.jsonl", "reasoning"): "name something that a good answer has",
    ("limo.jsonl", "rubric"): "there is no rubric under rubric, rubrics",
}


@pytest.mark.parametrize(("name", "shape"), REFUSED, ids=lambda part: str(part))
def test_a_file_is_refused_with_its_reason(tmp_path: Path, name: str, shape: str):
    with pytest.raises(DatasetError) as refusal:
        take(tmp_path, name, shape)
    assert REFUSED[name, shape] in str(refusal.value)
    assert not (tmp_path / "taken.jsonl").exists()


@pytest.mark.parametrize(
    "name",
    ["limo.jsonl.gz", "limo.jsonl.bz2", "limo.jsonl.xz", "limo.jsonl.zst", "limo.parquet"]
    + ["limo_array.json"],
)
def test_the_packing_makes_no_difference(tmp_path: Path, name: str):
    if name.endswith((".zst", ".parquet")):
        pytest.importorskip("zstandard" if name.endswith(".zst") else "pyarrow")
    (plain,), _ = take(tmp_path, "limo.jsonl")
    (packed,), _ = take(tmp_path, name)
    assert packed.fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    ("name", "module"), [("limo.jsonl.zst", "zstandard"), ("limo.parquet", "pyarrow.parquet")]
)
def test_a_missing_reader_is_named(tmp_path: Path, monkeypatch, name: str, module: str):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DatasetError, match=f"pip install {module.split('.')[0]}$"):
        take(tmp_path, name)


def test_a_cut_zstandard_file_is_refused(tmp_path: Path):
    pytest.importorskip("zstandard")
    with pytest.raises(DatasetError, match="damaged or cut off"):
        take(tmp_path, "limo_cut.jsonl.zst")


def test_nothing_is_dropped_without_a_word(tmp_path: Path):
    _, notes = take(tmp_path, "unused_fields.jsonl")
    assert notes == {
        f"the field {name!r} is left out": 1 for name in ("big", "half", "embedding")
    } | {"the field 'tag' is kept in meta": 1}
    assert "different boxes" in "".join(take(tmp_path, "two_boxes.jsonl", "prompt_completion")[1])
    assert "ends a turn" in "".join(take(tmp_path, "end_tokens.jsonl", "prompt_completion")[1])
    assert "read as cp1252" in "".join(take(tmp_path, "cp1252.csv", "csv")[1])
    assert "repeated header row" in "".join(take(tmp_path, "double_header.csv", "csv")[1])
    assert "kept in meta.response" in "".join(take(tmp_path, "s1k.jsonl")[1])


def test_annotations_are_kept_stripped_or_steps(tmp_path: Path):
    steps = {
        "strip": [S1, S2],
        "keep": [S1, "So there are 3 * 4 = <<3*4=12>>12 jars."],
        "steps": [S1, S2, "3*4=12"],
    }
    for choice, expected in steps.items():
        (trace,), _ = take(tmp_path, "gsm8k.jsonl", "gsm8k", annotations=choice)
        assert [step.content for step in trace.steps] == expected
    with pytest.raises(DatasetError, match="there are strip, keep, steps"):
        take(tmp_path, "gsm8k.jsonl", "gsm8k", annotations="burn")


def test_big_cells_come_in(tmp_path: Path):
    cell = "\n\n".join(f"Paragraph {n}. {'x' * 15_000}" for n in range(20))
    (tmp_path / "big.csv").write_text(f'question,working,answer\n2 + 2?,"{cell}",4\n')
    taken = import_file(tmp_path / "big.csv", "csv", source="x", into=tmp_path / "big.jsonl")
    assert taken.accepted == 1
    assert len(next(read_traces(tmp_path / "big.jsonl")).steps) == 20


TYPED = Trace(
    prompt="A list:\n1. one\n\nWhich is it?",
    steps=[
        {"i": 3, "type": "look", "content": "It says:\n\n\tone"},
        {"i": 7, "type": "step", "content": "2. is not there."},
    ],
    final_answer="one",
    meta={"category": "lists", "source": "here", "ingest_source_file": "out.jsonl"},
)


@pytest.mark.parametrize("format", ["trace", "tunix_sft"])
def test_an_export_goes_back_in_unchanged(tmp_path: Path, format: str):
    for traces in (
        [TYPED],
        list(load_dataset("golden-v2")),
        list(load_dataset("dev-reasoning-v1")),
    ):
        write_traces(tmp_path / "out.jsonl", traces)
        ingest(tmp_path / "out.jsonl", source="here", into=tmp_path / "ours.jsonl")
        export_file(read_traces(tmp_path / "ours.jsonl"), tmp_path / "out.jsonl", format=format)
        intake = ingest(tmp_path / "out.jsonl", source="here", into=tmp_path / "back.jsonl")
        assert (tmp_path / "back.jsonl").read_bytes() == (tmp_path / "ours.jsonl").read_bytes()
        assert not intake.notes


@pytest.mark.parametrize("format", sorted(set(FORMATS) - {"trace"}))
def test_every_export_holds_question_steps_and_answer(tmp_path: Path, format: str):
    traces = [TYPED, *load_dataset("dev-reasoning-v1")]
    export_file(traces, tmp_path / "out.jsonl", format=format)
    import_file(tmp_path / "out.jsonl", format, source="x", into=tmp_path / "back.jsonl")
    for ours, back in zip(traces, read_traces(tmp_path / "back.jsonl"), strict=True):
        assert (back.prompt, back.final_answer) == (ours.prompt, ours.final_answer)
        assert [step.content for step in back.steps] == [step.content for step in ours.steps]


@pytest.mark.parametrize("shape", sorted(FORMATS_IN))
def test_any_record_is_read_or_refused_never_a_traceback(tmp_path: Path, shape: str):
    values = [None, 0, -1, 1.5, True, "", "x", [], ["x"], [["x"]], [{}], {}, {"a": 1}, [None, "x"]]
    names = ["prompt", "question", "answer", "solution", "steps", "label", "messages", "input"]
    names += ["output", "reasoning", "completion", "options", "id", "weight", "trace_steps", "type"]
    names += ["prompts", "metadata", "deepseek_reasoning", "system", "response", "correct"]
    names += ["rubric", "rubrics"]
    whole = {"question": "2?", "solution": "1+1", "answer": "2", "prompt": "2?"}
    lines = [json.dumps({**whole, name: value}) for name in names for value in values]
    lines += [json.dumps({name: value}) for name in names for value in values]
    label = {"steps": [{"completions": None}], "finish_reason": "solution"}
    lines += [json.dumps({"question": {"problem": "2?"}, "label": each}) for each in ({}, label)]
    turns = [[{"role": "user", "content": value}] for value in values]
    lines += [json.dumps({"messages": [*turn, {"role": "model", "value": "x"}]}) for turn in turns]
    lines.append(json.dumps({"question": "2?", "answer": "<think>1</think>2\n#### 2"}))
    (tmp_path / "odd.jsonl").write_text("\n".join(lines) + "\n")
    try:
        import_file(
            tmp_path / "odd.jsonl", shape, source="x", into=tmp_path / "odd", skip_invalid=True
        )
    except DatasetError as refusal:
        assert "was refused, because" in str(refusal)  # noqa: PT017


def test_the_command_line_says_what_became_of_the_fields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("TUNIX_RT_ROOT", str(tmp_path))
    settings.cache_clear()
    words = ["--source", "here", "--output", str(tmp_path / "taken.jsonl"), "--replace"]
    for line, said in {
        "numina.jsonl --format reasoning": "the field 'synthetic' is kept in meta (1)",
        "gsm8k.jsonl --format gsm8k --annotations steps": "1 traces taken in",
        "cp1252.csv --format csv --encoding cp1252": "1 traces taken in",
    }.items():
        name, *options = line.split()
        with pytest.raises(SystemExit) as ended:
            main(["ingest", str(FILES / name), *words, *options])
        assert not ended.value.code and said in capsys.readouterr().out
    for line, reason in {
        "limo.jsonl": "It looks like reasoning: use --format reasoning",
        "limo_array.json": "It looks like reasoning: use --format reasoning",
        "limo.jsonl --annotations keep": "are for other formats",
        "sheet.xlsx": "save the sheet as CSV",
    }.items():
        name, *options = line.split()
        with pytest.raises(SystemExit) as ended:
            main(["ingest", str(FILES / name), *words, *options])
        assert ended.value.code == 1 and reason in capsys.readouterr().err
    settings.cache_clear()


def test_questions_without_working_are_asked_and_not_learned_from(tmp_path: Path):
    questions = [
        {"question": f"{n} + {n}?", "choices": ["0", str(2 * n)], "answer": 1} for n in (1, 2)
    ]
    questions.append({"question": "2 + 3?", "answer": "5", "rationale": "2 and 3 make 5"})
    (tmp_path / "exam.json").write_text(json.dumps(questions))
    with pytest.raises(DatasetError, match="nothing separates the reasoning"):
        import_file(tmp_path / "exam.json", "reasoning", source="x", into=tmp_path / "exam.jsonl")
    taken = import_file(
        tmp_path / "exam.json", "reasoning", source="x", into=tmp_path / "exam.jsonl", bare=True
    )
    assert taken.accepted == 3 and "no reasoning" in "".join(taken.notes)
    dataset = build_dataset(
        read_traces(tmp_path / "exam.jsonl"), name="exam", version="v1", home=tmp_path
    )
    traces = list(dataset)
    assert [len(trace.steps) for trace in traces] == [0, 0, 1]
    assert [trace.final_answer for trace in traces] == ["B", "B", "5"]
    used = {"finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 1}
    said = [make_prediction(trace, "<answer>B</answer>", **used) for trace in traces]
    assert [answer_correctness(*pair) for pair in zip(traces, said, strict=True)] == [1.0, 1.0, 0.0]
    with pytest.raises(TraceError, match="cannot be learned from"):
        export_file(dataset, tmp_path / "out.jsonl", format="messages")
    for format in ("trace", "tunix_sft", "training_example"):
        export_file(dataset, tmp_path / "out.jsonl", format=format)
        ingest(tmp_path / "out.jsonl", source="x", into=tmp_path / "back.jsonl")
        assert [t.id for t in read_traces(tmp_path / "back.jsonl")] == [t.id for t in traces]
