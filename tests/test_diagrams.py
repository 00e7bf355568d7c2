"Diagrams can be drawn: mermaid refuses a few words and characters that read well in a notebook."

import json
import re
from collections.abc import Iterator
from pathlib import Path

NOTEBOOKS = Path(__file__).resolve().parent.parent / "nbs"
KINDS = ("flowchart", "sequenceDiagram", "stateDiagram-v2", "classDiagram", "erDiagram", "gantt")
WORDS = "class|classDef|click|default|end|graph|linkStyle|style|subgraph"
RESERVED = re.compile(rf"(?:^|[>-]) *({WORDS})[\[({{]", re.MULTILINE)  # As the name of a node
UNQUOTED = re.compile(r"[\[{]([^\"\[\]{}()\n]*[@;#][^\"\[\]{}()\n]*)[\]}]")


def diagrams() -> Iterator[tuple[str, str]]:
    "Each diagram with the name of its notebook."
    for path in sorted(NOTEBOOKS.rglob("*.ipynb")):
        for cell in json.loads(path.read_text("utf-8"))["cells"]:
            text = "".join(cell["source"]) if cell["cell_type"] == "markdown" else ""
            for found in re.findall(r"```mermaid\n(.*?)\n```", text, re.DOTALL):
                yield str(path.relative_to(NOTEBOOKS)), found


def fault(text: str) -> str:
    "What mermaid would stumble over."
    kind = text.split()[0]
    if kind not in KINDS:
        return f"starts with {kind}"
    if kind == "flowchart" and (found := RESERVED.search(text)):
        return f"a node is called {found[1]}, which mermaid reserves"
    if kind == "flowchart" and (found := UNQUOTED.search(text)):
        return f"{found[1]!r} needs quotes"
    return "a semicolon ends a message" if kind == "sequenceDiagram" and ";" in text else ""


def test_mermaid_can_draw_every_diagram():
    assert [(name, fault(text)) for name, text in diagrams() if fault(text)] == []
