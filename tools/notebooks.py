"""Write examples/*.ipynb from their pages in docs/examples, without outputs.

python tools/notebooks.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES, NOTEBOOKS = ROOT / "docs" / "examples", ROOT / "examples"
NAMES = ("convert_and_look", "any_budget", "detector", "onnx_runtime")


def cells(page: str) -> list[dict[str, Any]]:
    """Return a page's cells: its Python blocks as code, all between them as prose."""
    parts = re.split(r"^```python\n(.*?)^```\n", page, flags=re.MULTILINE | re.DOTALL)
    found: list[dict[str, Any]] = []
    for i, part in enumerate(parts):
        text = re.sub(r"\]\((\w+)\.md\)", r"](\1.ipynb)", part).strip("\n") if i % 2 == 0 else part
        if text.strip():
            found.append(_cell(text.strip("\n"), f"cell-{i}", code=i % 2 == 1))
    return found


def _cell(text: str, name: str, *, code: bool) -> dict[str, Any]:
    own = {"execution_count": None, "outputs": []} if code else {}
    kind = "code" if code else "markdown"
    lines = text.splitlines(keepends=True)
    return {"cell_type": kind, "id": name, "metadata": {}, "source": lines, **own}


def notebook(page: str) -> str:
    """Return a page as the text of a notebook file."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    held = {"cells": cells(page), "metadata": {"kernelspec": kernel}}
    return (
        json.dumps({**held, "nbformat": 4, "nbformat_minor": 5}, indent=1, ensure_ascii=False)
        + "\n"
    )


def main() -> None:
    """Write every notebook."""
    for name in NAMES:
        page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
        (NOTEBOOKS / f"{name}.ipynb").write_text(notebook(page), encoding="utf-8")


if __name__ == "__main__":
    main()
