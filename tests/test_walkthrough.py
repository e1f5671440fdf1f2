"""The page of the walk shows the commands of the script that wrote it, and these run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import walkthrough  # noqa: E402


def test_the_page_is_what_the_script_writes():
    page = walkthrough.PAGE.read_text(encoding="utf-8")
    assert walkthrough.commands(page) == [step.command for step in walkthrough.STEPS]
    assert page.startswith(walkthrough.OPENING) and page.endswith(walkthrough.CLOSING)
    assert page.count("This took ") == len(walkthrough.STEPS)
    assert all(f"## {step.title}\n\n{step.prose}\n" in page for step in walkthrough.STEPS)


def test_output_is_cut_in_the_middle():
    text = "\n".join(map(str, range(30)))
    assert walkthrough.cut(text, (2, 1)) == "0\n1\n... (27 lines)\n29"
    assert walkthrough.cut("a\nb\n", (1, 0)) == "a\nb"


@pytest.mark.slow
def test_every_step_runs(tmp_path):
    """Outputs are as on the page, but for figures, which depend on the machine."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    page = tmp_path / "page.md"
    subprocess.run([sys.executable, ROOT / "tools" / "walkthrough.py", page], check=True)
    written, kept = (p.read_text(encoding="utf-8") for p in (page, walkthrough.PAGE))
    assert walkthrough.commands(written) == walkthrough.commands(kept)
    whole, deployed, alone = (
        float(n) for n in re.findall(r"^ *top-1 ([\d.]+) %(?:, .*ms an image.*)?$", written, re.M)
    )
    assert deployed == alone and whole > 75 and deployed > 75
