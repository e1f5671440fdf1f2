"""The house: imports point one way, files stay small, nothing prints or unpickles."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dmnn_convert
from dmnn_convert import budget

PACKAGE = Path(dmnn_convert.__file__).parent
LINES = 300
FILES = sorted(PACKAGE.rglob("*.py"))


def parts(file):
    return file.relative_to(PACKAGE).with_suffix("").parts


def test_wings_import_through_faces_and_one_way():
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [command, "--no-cache"], cwd=PACKAGE.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", FILES, ids=lambda f: "/".join(parts(f)))
def test_files_stay_small_and_speak_to_users(file):
    text = file.read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) <= LINES
    asserts = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    assert asserts == [], "python -O drops asserts; raise an error with the remedy"
    assert ast.get_docstring(tree)
    prints = [n.lineno for n in calls(tree) if getattr(n.func, "id", None) == "print"]
    assert prints == []


def calls(tree):
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


@pytest.mark.parametrize("file", FILES, ids=lambda f: "/".join(parts(f)))
def test_nothing_is_unpickled(file):
    tree = ast.parse(file.read_text())
    for call in calls(tree):
        if ast.unparse(call.func) == "torch.load":
            safe = {k.arg: ast.unparse(k.value) for k in call.keywords}
            assert safe.get("weights_only") == "True", f"line {call.lineno}"
    names = {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    assert not names & {"pickle", "dill", "joblib", "marshal", "shelve"}


def test_the_public_names_are_there():
    assert sorted(dmnn_convert.__all__) == list(dmnn_convert.__all__)
    assert all(hasattr(dmnn_convert, name) for name in dmnn_convert.__all__)


def test_module_docstrings_name_a_concept():
    questions = ("What", "Whether", "Where", "How", "Which", "Why", "When", "Who", "Whose")
    docs = {file: ast.get_docstring(ast.parse(file.read_text())) or "" for file in FILES}
    odd = {str(f.relative_to(PACKAGE)): d for f, d in docs.items() if d.split()[0] in questions}
    assert odd == {}, "make each a noun phrase: what the module holds"


def test_the_figures_of_the_tree_are_printed():
    script = PACKAGE.parent / "tools" / "tree.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    wings = {face.parent.name for face in PACKAGE.glob("*/__init__.py")}
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.strip()}
    assert wings <= set(rows)
    assert f"{len(FILES)} files in {len(wings)} wings" in done.stdout
    assert rows["budget"][3] == str(len(budget.__all__))
    assert "longest import chain" in done.stdout
