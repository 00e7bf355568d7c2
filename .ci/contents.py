"The notebooks in reading order, for the first page and for the site."

import json
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
# Folders in reading order; one that is not named here comes after those that are.
FOLDERS = {
    "guides": "walks through whole jobs: commands, Kaggle, Gemma, a server, checking, scale",
    "api": "the front door: `import tunix_rt as rt`",
    "traces": "what a trace is, how it is rendered, shown and compared",
    "data": "generators whose every step is checked, datasets, import and export",
    "scoring": "reading answers, checking steps, comparing with what was expected",
    "models": "one decoder for Gemma, Qwen, Llama and SmolLM: weights, LoRA, sharding, attention",
    "inference": "the KV cache, sampling, and an engine that batches requests",
    "training": "packing, the loss, the train step, checkpoints, the loop, the memory plan",
    "rewards": "what a completion is worth, as a number",
    "rl": "learning from rewards and preferences: advantages, losses, rollouts, the loop",
    "evaluation": "predictions, intervals, paired comparisons, judges, the report",
    "pipelines": "the notebooks that are executed: train, evaluate, grpo, demo, a Kaggle run",
    "runs": "a run is an executed notebook: its folder, its parameters, its process",
    "store": "the database: SQLite or Postgres, migrations, backups",
    "jobs": "the queue, leases and logs, and the worker that takes runs from it",
    "tracking": "evaluations of runs, the leaderboard, baselines and regression gates",
    "registry": "models and their versions, and how a run becomes one",
    "tuning": "searching hyperparameters, every trial a run",
    "batch": "any number of rows in parts, here or on a Ray cluster",
    "serve": "the HTTP API and its pages",
    "client": "the same API from Python",
    "kaggle": "wheels, metadata and sessions for a Kaggle notebook",
    "cli": "the command line",
    "core": "errors, settings, files that are never half written",
}
# From a trace to a model that was compared with another, in a dozen notebooks.
PATH = [
    "traces.schema",
    "traces.render",
    "data.generators",
    "training.packing",
    "models.gemma",
    "training.loss",
    "training.train_step",
    "training.loop",
    "inference.engine",
    "scoring.scorers",
    "evaluation.compare",
    "runs.execute",
]


@dataclass(frozen=True)
class Page:
    "A notebook, as its first cells introduce it."

    path: Path
    title: str  # its heading
    gain: str  # the line under it, which says what the reader gains
    module: str  # such as "training.loss"; empty for what is executed or only read

    @property
    def link(self) -> str:
        "Where it is, seen from nbs."
        return self.path.relative_to(NBS).as_posix()


def read_page(path: Path) -> Page:
    "Read what a notebook says of itself."
    sources = ["".join(cell["source"]) for cell in json.loads(path.read_text("utf-8"))["cells"]]
    title = re.search(r"^# (.+)$", sources[0], re.MULTILINE)
    gain = re.search(r"^> (.+)$", sources[0], re.MULTILINE)
    module = re.search(r"^#\|\s*default_exp\s+(\S+)", "\n".join(sources), re.MULTILINE)
    return Page(
        path,
        title[1] if title else path.stem,
        gain[1] if gain else "",
        module[1] if module else "",
    )


def list_pages() -> dict[str, list[Page]]:
    "Read all notebooks by folder (such as `serve/routers`, or `` for the top), in reading order."
    found: dict[str, list[Page]] = {}
    for path in sorted(NBS.rglob("*.ipynb")):
        folder = path.parent.relative_to(NBS).as_posix().removeprefix(".")
        if not any(part.startswith(("_", ".")) for part in path.relative_to(NBS).parts):
            found.setdefault(folder, []).append(read_page(path))
    order = {"": -1, **{name: place for place, name in enumerate(FOLDERS)}}
    return {
        name: found[name]
        for name in sorted(found, key=lambda name: (order.get(name.split("/")[0], 99), name))
    }


def reading_path(pages: dict[str, list[Page]]) -> str:
    "Write the dozen notebooks as a numbered list."
    modules = {page.module: page for folder in pages.values() for page in folder}
    if missing := [name for name in PATH if name not in modules]:
        raise SystemExit(
            f".ci/contents.py lists {', '.join(missing)} among what to read first, and no notebook "
            f"exports to that; write the new name there"
        )
    found = [modules[name] for name in PATH]
    return "\n".join(
        f"{number}. [{page.module}]({page.link}): {page.gain}"
        for number, page in enumerate(found, start=1)
    )


def folder_map(pages: dict[str, list[Page]]) -> str:
    "Write all folders as a table, each with links to its notebooks."
    lines = ["| folder | what it holds | notebooks |", "|---|---|---|"]
    for top in dict.fromkeys(name.split("/")[0] for name in pages if name):
        below = [page for name in pages if name.split("/")[0] == top for page in pages[name]]
        links = ", ".join(f"[{page.path.stem[3:]}]({page.link})" for page in below)
        lines.append(f"| `{top}` | {FOLDERS.get(top, '')} | {links} |")
    return "\n".join(lines)
