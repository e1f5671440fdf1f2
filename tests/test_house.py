"""The house: imports point one way, files stay small, nothing prints or unpickles."""

import ast
import functools
import re
import runpy
import subprocess
import sys
from pathlib import Path

import dmnn_convert
from dmnn_convert import budget

PACKAGE = Path(dmnn_convert.__file__).parent
ROOT = PACKAGE.parent
LINES = 300
AT_THE_TOP = 10
FILES = sorted(PACKAGE.rglob("*.py"))
TESTS, BENCHMARKS = (sorted((ROOT / name).rglob("*.py")) for name in ("tests", "benchmarks"))
FOR_USERS = {"deployment.GatedTimes", "deployment.export_gated", "finetune.TrainingError"}
"""A call, a result and an error that users of these wings meet; nothing here takes them."""


def parts(file):
    return file.relative_to(PACKAGE).with_suffix("").parts


def test_wings_import_through_faces_and_one_way():
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_files_stay_small_and_speak_to_users():
    faults = [f"{'/'.join(parts(file))}: {fault}" for file in FILES for fault in faults_of(file)]
    assert faults == []


def test_faces_export_what_others_take_and_nothing_more():
    exports = runpy.run_path(str(ROOT / "tools" / "tree.py"))["exports"]
    taken = {*taken_by_modules(), *taken_by_pages()}
    faces = {face.parent.name: exports(face) for face in PACKAGE.glob("*/__init__.py")}
    exported = {f"{wing}.{name}" for wing, names in faces.items() for name in names}
    assert exported - taken == FOR_USERS


def taken_by_modules():
    """Yield "wing.name" for imports from faces outside of the wing, tests excluded."""
    programs = (file for place in ("benchmarks", "tools") for file in (ROOT / place).rglob("*.py"))
    for file in (*FILES, *programs):
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.ImportFrom):
                wing = face_named(node, file)
                if PACKAGE / wing not in file.parents:
                    yield from (f"{wing}.{alias.name}" for alias in node.names)


def face_named(node, file):
    """The part of an import after the package's name: a wing, if it is from a face."""
    module = node.module or ""
    if not node.level or PACKAGE not in file.parents:
        return module.removeprefix("dmnn_convert.")
    place = file.parents[node.level - 1].relative_to(PACKAGE).parts
    return ".".join((*place, module) if module else place)


def taken_by_pages():
    for page in (ROOT / "docs").rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        yield from re.findall(r"\bdmnn_convert\.(\w+\.\w+)", text)
        for wing, names in re.findall(r"from dmnn_convert\.(\w+) import ([\w, ]+)", text):
            yield from (f"{wing}.{name}" for name in names.split(", "))


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
    questions = {"What", "Whether", "Where", "How", "Which", "Why", "When", "Who", "Whose"}
    files = (*FILES, *TESTS, *BENCHMARKS)
    first = {str(file): (ast.get_docstring(tree_of(file)) or "").split()[:1] for file in files}
    odd = [file for file, word in first.items() if not word or word[0] in questions]
    assert odd == [], "make each docstring a noun phrase: what the module holds"


def test_no_test_imports_from_a_test():
    found = [f"{f.relative_to(ROOT)}:{line}" for f in TESTS for line in imports_of_tests(f)]
    assert found == [], "move what is shared to tests/nets/, or to tests/helpers.py"


def imports_of_tests(file):
    for node in ast.walk(tree_of(file)):
        modules = ()
        if isinstance(node, ast.ImportFrom):
            modules = (node.module or "", *(alias.name for alias in node.names if node.level))
        elif isinstance(node, ast.Import):
            modules = tuple(alias.name for alias in node.names)
        if any(part.startswith("test_") for module in modules for part in module.split(".")):
            yield node.lineno


def test_the_figures_of_the_tree_are_printed():
    script = ROOT / "tools" / "tree.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    wings = {face.parent.name for face in PACKAGE.glob("*/__init__.py")}
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.strip()}
    assert wings <= set(rows)
    assert f"{len(FILES)} files in {len(wings)} wings" in done.stdout
    assert rows["budget"][3] == str(len(budget.__all__))
    assert "longest import chain" in done.stdout
