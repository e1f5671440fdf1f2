"""The loop of docs/loops.md runs as it stands."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "loops.md"


def test_the_loop_of_the_page_runs(capsys):
    code = re.search(r"## Your own.*?```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    exec(compile(code, str(PAGE), "exec"), {})
    assert "of the FLOPs" in capsys.readouterr().out
