"""The code of docs/budget.md runs as it stands."""

from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "budget.md"


@pytest.mark.slow
def test_the_code_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = PAGE.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    exec(compile(code, str(PAGE), "exec"), {})
    assert "of the FLOPs" in capsys.readouterr().out
    assert (tmp_path / "cascade" / "cascade.json").is_file()
