"Write README.md from nbs/index.ipynb, without Quarto."

import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent


def text_of(output: nbformat.NotebookNode) -> str:
    "Take the plain text of one output."
    if output.output_type == "stream":
        return output.text
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
        if shown := "".join(map(text_of, cell.outputs)).rstrip():
            parts.append(f"```text\n{shown}\n```")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    (ROOT / "README.md").write_text(to_markdown(ROOT / "nbs/index.ipynb"), encoding="utf-8")
