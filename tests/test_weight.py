"""The weight of imports: what a fresh process loads before there is work for it."""

import importlib
import pickle
import pkgutil
import subprocess
import sys

import pytest

import dmnn_convert
from dmnn_convert.optional import loaded

ONLY_WHERE_USED = (
    *("torchvision", "timm", "matplotlib", "sklearn", "fvcore", "yaml", "PIL", "torch._dynamo"),
    *("tensorboard", "accelerate", "lightning", "onnx", "onnxruntime", "openvino"),
)


def loaded_by(code):
    """Names of modules that a fresh process has loaded after some code."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import sys\n{code}\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_the_package_waits_for_pytorch_until_a_name_is_asked_for():
    modules = loaded_by("import dmnn_convert; dmnn_convert.__version__")
    assert "dmnn_convert" in modules
    assert not modules & {"torch", "numpy", *ONLY_WHERE_USED}


def test_what_was_deployed_runs_without_pytorch():
    modules = loaded_by("from dmnn_convert import load_deployed")
    assert {"numpy", "dmnn_convert.deployment"} <= modules
    assert not modules & {"torch", "safetensors", *ONLY_WHERE_USED}


def test_public_names_load_no_library_that_only_some_models_or_calls_need():
    modules = loaded_by("from dmnn_convert import *; dynamize, prepare, evaluate")
    assert {"torch", "dmnn_convert.runtime", "dmnn_convert.budget"} <= modules
    assert not modules & set(ONLY_WHERE_USED)


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("--version",),
        *((v, "--help") for v in ("finetune", "evaluate", "benchmark", "budget", "deploy")),
    ],
    ids=" ".join,
)
def test_help_comes_without_pytorch(words):
    code = f"""
from dmnn_convert.cli import main
sys.argv = ["dmnn-convert", *{words!r}]
try:
    main()
except SystemExit as stopped:
    assert not stopped.code
"""
    modules = loaded_by(code)
    assert "dmnn_convert.cli.finetune" in modules
    assert not modules & {"torch", "numpy", *ONLY_WHERE_USED}


@pytest.mark.parametrize(
    "package",
    ["dmnn_convert", "dmnn_convert.data", "dmnn_convert.deployment", "dmnn_convert.finetune"],
)
def test_names_that_come_late_are_as_good_as_others(package):
    module, public = importlib.import_module(package), importlib.import_module(f"{package}.public")
    assert set(public.__all__) <= set(dir(module))
    for name in public.__all__:
        assert getattr(module, name) is getattr(public, name)
    inside = {m.name for m in pkgutil.iter_modules(module.__path__)}
    for name in inside & set(public.__all__):  # or the module would stand in for the name
        assert getattr(public, name) is importlib.import_module(f"{package}.{name}")
    for unknown in ("nothing", "_nothing", "__wrapped__"):
        with pytest.raises(AttributeError, match=f"module '{package}' has no attribute"):
            getattr(module, unknown)


def test_names_that_come_late_are_pickled_by_the_modules_that_define_them():
    importlib.import_module("dmnn_convert.evaluation.evaluate")
    for value in (dmnn_convert.evaluate, dmnn_convert.GateConfig, dmnn_convert.GateConfig(tau=2.0)):
        copied = pickle.loads(pickle.dumps(value))
        assert copied is value or copied == value


def test_classes_of_libraries_that_are_not_loaded_have_no_objects():
    from torchvision.ops import FrozenBatchNorm2d

    names = ("no.such.Class", "torchvision.ops.FrozenBatchNorm2d", "torchvision.ops.NoSuchClass")
    assert loaded(*names) == (FrozenBatchNorm2d,)
