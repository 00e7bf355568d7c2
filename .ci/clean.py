"""Leave in a notebook what belongs into git: its cells, their tags and their outputs.

This is nbdev_clean, written the way Jupyter writes: what a cell prints is one output, however many
pieces it arrived in, a progress bar is its last state, and text is kept line by line. JupyterLab
saves through the same function (see .jupyter), so that running a notebook and saving it changes
nothing unless its results changed.

    python .ci/clean.py                           # all notebooks
    python .ci/clean.py nbs/core/10_errors.ipynb
"""

import re
import sys
from pathlib import Path

import nbformat
from nbdev.clean import clean_nb
from nbdev.config import get_config

ROOT = Path(__file__).resolve().parent.parent
OVERWRITTEN = re.compile(r"^[^\n]*\r(?=[^\n])", re.MULTILINE)  # by what follows a carriage return
config = get_config(path=ROOT)


def merge_streams(outputs: list) -> list:
    "Join neighboring pieces of what was printed to the same stream, as a screen would show them."
    merged: list = []
    for output in outputs:
        before = merged[-1] if merged else {}
        if output["output_type"] == "stream" and before.get("name") == output["name"]:
            before["text"] = "".join([*before["text"], *output["text"]])
        else:
            merged.append(output)
    for output in merged:
        if output["output_type"] == "stream":
            output["text"] = OVERWRITTEN.sub("", "".join(output["text"]))
    return merged


def clean(notebook: dict, *also: str) -> None:
    "Clean a notebook as read, in place; `also` names further keys of cell metadata to keep."
    kept = [*config.allowed_cell_metadata_keys.split(), *also]
    clean_nb(notebook, allowed_cell_metadata_keys=kept, clean_ids=config.clean_ids)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = merge_streams(cell["outputs"])


def main(*paths: str) -> None:
    "Clean these notebooks, or all of them, and write those that change."
    for path in map(Path, paths) if paths else sorted(config.nbs_path.rglob("[!.]*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        before = path.read_text(encoding="utf-8")
        notebook = nbformat.reads(before, as_version=4)
        clean(notebook)
        after = nbformat.writes(notebook, version=nbformat.NO_CONVERT) + "\n"
        if after != before:
            path.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
