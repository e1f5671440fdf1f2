"""The package is built as its floor plan says: imports point upward, files stay small."""

import ast
from pathlib import Path

import pytest

import dmnn_convert

PACKAGE = Path(dmnn_convert.__file__).parent
ORDER = (
    *("errors", "foreign", "config", "gate_pass", "gate", "force", "merged", "block"),
    *(
        "errors",
        "config",
        "plain",
        "float32",
        "sampling",
        "opened",
        "recomputation",
        "gate_pass",
        "gate",
    ),
    *("force", "merged", "block"),
    *("copying", "tracer", "trace", "parts", "count", "input_size", "observe"),
    *("errors", "config", "gate_pass", "gate", "force", "merged", "block"),
    *("copying", "exchange", "questions", "randomness", "ambient", "attributes", "arguments"),
    *("tracer", "trace", "parts", "count", "input_size", "observe"),
    *("errors", "config", "gate_pass", "gate", "force", "merged", "block"),
    *("copying", "arguments", "tracer", "trace", "parts", "count", "input_size", "observe"),
    *("dims", "ops", "layout", "carry", "hidden", "partition", "tail", "branch", "remade"),
    *("errors", "config", "gate_pass", "gate", "force", "merged", "block"),
    *(
        "copying",
        "lines",
        "dims",
        "proxies",
        "writes",
        "aliases",
        "side_effects",
        "tracer",
        "trace",
    ),
    *(
        "parts",
        "count",
        "input_size",
        "observe",
        "ops",
        "layout",
        "carry",
        "hidden",
        "partition",
        "tail",
        "branch",
        "remade",
    ),
    *("check", "region", "chain", "stage", "naming", "replaceable", "find", "where", "fit"),
    *("generated", "split", "rewrite", "flops", "record", "self_check", "convert", "fidelity"),
    *("processes", "probe", "least_squares", "ends", "reconstruct", "calibrate", "norms"),
    *("loss", "classifier", "categories", "information", "evaluation", "scores", "path_records"),
    *(
        "evaluate",
        "budget",
        "source",
        "zoo",
        "checkpoint",
        "report",
        "finetune",
        "runtime",
        "cli",
        "__main__",
    ),
)
SPLIT = ("slices", "widths", "select", "program", "importance", "moments", "build", "__init__")
FINETUNE = (
    *("extra", "option", "recipe", "schedule", "distributed", "augmentation", "image_files"),
    "data",
    *("extra", "option", "recipe", "schedule", "distributed", "augmentation", "data", "memory"),
    *("converted", "network", "objective", "optimisation", "testing", "finite", "monitor"),
    *("stops", "state", "trainer", "lock", "prepare", "run"),
    *("size_option", "command", "assess", "__init__"),
    *("converted", "network", "floor", "objective", "optimisation", "testing", "finite", "monitor"),
    *("state", "trainer", "stops", "prepare", "run"),
    *("command", "assess", "__init__"),
)
RUNTIME = (
    *("_controller", "activation", "careful", "layer", "packed", "paths", "folded", "decision"),
    *(
        "costs",
        "graphs",
        "prepared_block",
        "writing",
        "network",
        "forms",
        "workers",
        "tuning",
        "prepare",
    ),
    *("fixed", "benchmark", "picture", "command", "__init__"),
)
BUDGET = ("level", "sandwich", "statistics", "search", "__init__")
LINES = 400
INSIDE = {"split": SPLIT, "budget": BUDGET, "finetune": FINETUNE, "runtime": RUNTIME}
FILES = sorted(PACKAGE.rglob("*.py"))


def parts(file):
    return file.relative_to(PACKAGE).with_suffix("").parts


def imported(file):
    """Yield the package's own modules that a file imports, as parts of their path."""
    package = parts(file)[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names = alias.name.split(".")
                if names[0] == PACKAGE.name:
                    yield tuple(names[1:])
        elif isinstance(node, ast.ImportFrom):
            base = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                base = package[: len(package) - node.level + 1] + base
            elif base[0] == PACKAGE.name:
                base = base[1:]
            else:
                continue
            yield from (_deepest(base, alias.name) for alias in node.names)


def _deepest(base, name):
    """`from .split import program` names a module, `from .split import Parts` a name in one."""
    inner = PACKAGE.joinpath(*base, name)
    is_file = any(inner.with_suffix(suffix).exists() for suffix in (".py", ".c"))
    return (*base, name) if is_file or inner.is_dir() else base


@pytest.mark.parametrize("file", FILES, ids=lambda f: "/".join(parts(f)))
def test_imports_point_upward(file):
    own = parts(file)
    if own == ("__init__",):
        return  # names everything public
    assert own[0] in ORDER, "add the file to the floor plan"
    for other in imported(file):
        if not other:
            assert own[0] in ("cli", "__main__"), "only the command may import the package itself"
        elif other[0] != own[0]:
            assert ORDER.index(other[0]) < ORDER.index(own[0]), f"{own} imports {other}"
        elif own[0] in INSIDE:
            order = INSIDE[own[0]]
            assert order.index(other[1]) < order.index(own[1]), f"{own} imports {other}"


def test_the_floor_plan_lists_no_file_that_is_gone():
    top = {parts(f)[0] for f in FILES}
    assert set(ORDER) == top - {"__init__"}
    for package, order in INSIDE.items():
        modules = {*FILES, *PACKAGE.rglob("*.c")}
        assert {parts(f)[1] for f in modules if parts(f)[0] == package} == set(order)


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
