"Write README.md and the guides in docs from their notebooks, without Quarto."

import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "nbs/index.ipynb": "README.md",
    "nbs/guides/10_kaggle.ipynb": "docs/kaggle_submission.md",
    "nbs/guides/20_server.ipynb": "docs/server.md",
}


def text_of(output: nbformat.NotebookNode) -> str:
    "Take the plain text of one output."
    if output.output_type == "stream":
        return output.text
    if "text/markdown" in output.get("data", {}):
        return ""
    return output.get("data", {}).get("text/plain", "")


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
        if code := "\n".join(lines).strip():
            parts.append(f"```python\n{code}\n```")
        for output in cell.outputs:  # Markdown stays what it is; anything else is shown as text
            if page := output.get("data", {}).get("text/markdown"):
                parts.append(page)
        if shown := "".join(map(text_of, cell.outputs)).rstrip():
            parts.append(f"```text\n{shown}\n```")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    for notebook, page in PAGES.items():
        (ROOT / page).parent.mkdir(exist_ok=True)
        (ROOT / page).write_text(to_markdown(ROOT / notebook), encoding="utf-8")
