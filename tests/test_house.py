"""The house: imports point one way, files stay small, nothing prints or unpickles."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import dmnn_convert
from dmnn_convert import budget

PACKAGE = Path(dmnn_convert.__file__).parent
LINES = 300
AT_THE_TOP = 10
FILES = sorted(PACKAGE.rglob("*.py"))


def parts(file):
    return file.relative_to(PACKAGE).with_suffix("").parts


def test_wings_import_through_faces_and_one_way():
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [command, "--no-cache"], cwd=PACKAGE.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_files_stay_small_and_speak_to_users():
    faults = [f"{'/'.join(parts(file))}: {fault}" for file in FILES for fault in faults_of(file)]
    assert faults == []


def test_few_modules_lie_outside_the_wings():
    top = [file.name for file in FILES if file.parent == PACKAGE]
    assert len(top) <= AT_THE_TOP, f"{top}: give one that belongs to a concept a place in its wing"


def faults_of(file):
    text, tree = file.read_text(), tree_of(file)
    if len(text.splitlines()) > LINES:
        yield f"has more than {LINES} lines"
    if not ast.get_docstring(tree):
        yield "has no docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            yield f"line {node.lineno} asserts, which python -O drops: raise an error"
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "print":
            yield f"line {node.lineno} prints"


@functools.cache
def tree_of(file):
    return ast.parse(file.read_text())


def test_nothing_is_unpickled():
    unsafe = [f"{'/'.join(parts(file))}: {how}" for file in FILES for how in unpickles(file)]
    assert unsafe == []


def unpickles(file):
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", None) == "load":
            safe = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if ast.unparse(node.func) == "torch.load" and safe.get("weights_only") != "True":
                yield f"line {node.lineno} loads without weights_only"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", "")}
            for name in names & {"pickle", "dill", "joblib", "marshal", "shelve"}:
                yield f"line {node.lineno} imports {name}"


def test_the_public_names_are_there():
    assert sorted(dmnn_convert.__all__) == list(dmnn_convert.__all__)
    assert all(hasattr(dmnn_convert, name) for name in dmnn_convert.__all__)


def test_module_docstrings_name_a_concept():
    questions = ("What", "Whether", "Where", "How", "Which", "Why", "When", "Who", "Whose")
    docs = {file: ast.get_docstring(tree_of(file)) or "" for file in FILES}
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
