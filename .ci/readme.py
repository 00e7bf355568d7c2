"""Write README.md and the guides in docs from their notebooks, without Quarto.

The lists of notebooks on the first page follow from the notebooks that there are.
"""

import os
import re
from pathlib import Path

import nbformat
from contents import folder_map, list_pages, reading_path

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "nbs/index.ipynb": "README.md",
    "nbs/guides/05_commands.ipynb": "docs/commands.md",
    "nbs/guides/10_kaggle.ipynb": "docs/kaggle_submission.md",
    "nbs/guides/15_gemma.ipynb": "docs/gemma.md",
    "nbs/guides/20_server.ipynb": "docs/server.md",
    "nbs/guides/25_checking.ipynb": "docs/checking.md",
    "nbs/guides/30_real_gemma.ipynb": "docs/real_gemma.md",
    "nbs/guides/35_plugins.ipynb": "docs/plugins.md",
    "nbs/guides/40_scale.ipynb": "docs/scale.md",
}


def text_of(output: nbformat.NotebookNode) -> str:
    "Take the plain text of one output."
    if output.output_type == "stream":
        return output.text
    if "text/markdown" in output.get("data", {}):
        return ""
    return output.get("data", {}).get("text/plain", "")


def relink(text: str, notebook: Path, page: Path) -> str:
    "Let links that hold from a notebook hold from its page, and lead to pages where there are."

    def moved(link: re.Match[str]) -> str:
        target, anchor = link[1], link[2] or ""
        aim = (notebook.parent / target).resolve()
        if not aim.is_file():
            return link[0]
        made = PAGES.get(aim.relative_to(ROOT).as_posix())
        aim = ROOT / made if made else aim
        return f"]({os.path.relpath(aim, page.parent)}{anchor})"

    return re.sub(r"\]\(([^)#:\s]+)(#[^)\s]*)?\)", moved, text)


def to_markdown(path: Path) -> str:
    "Turn a notebook into Markdown, leaving hidden cells out."
    parts = []
    for cell in nbformat.read(path, as_version=4).cells:
        if re.search(r"^#\|\s*hide\b", cell.source, re.MULTILINE):
            continue
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        lines = [line for line in cell.source.splitlines() if not line.startswith("#|")]
        if re.search(r"^#\|\s*echo:\s*false\b", cell.source, re.MULTILINE):
            lines = []  # what it shows says enough
        if code := "\n".join(lines).strip():
            parts.append(f"```python\n{code}\n```")
        for output in cell.outputs:  # Markdown stays what it is; anything else is shown as text
            if page := output.get("data", {}).get("text/markdown"):
                parts.append(page)
        if shown := "".join(map(text_of, cell.outputs)).rstrip():
            parts.append(f"```text\n{shown}\n```")
    return "\n\n".join(parts) + "\n"


def write_lists(path: Path) -> None:
    "Write the lists of notebooks into the cells that are theirs."
    pages, before = list_pages(), path.read_text(encoding="utf-8")
    lists = {"reading-path": reading_path(pages), "folder-map": folder_map(pages)}
    notebook = nbformat.reads(before, as_version=4)
    for cell in notebook.cells:
        cell.source = lists.get(cell.id, cell.source)
    after = nbformat.writes(notebook, version=nbformat.NO_CONVERT) + "\n"
    if after != before:
        path.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    write_lists(ROOT / "nbs" / "00_start_here.ipynb")
    for notebook, page in PAGES.items():
        (ROOT / page).parent.mkdir(exist_ok=True)
        text = relink(to_markdown(ROOT / notebook), ROOT / notebook, ROOT / page)
        (ROOT / page).write_text(text, encoding="utf-8")
