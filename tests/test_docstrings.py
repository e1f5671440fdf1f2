"""Every public function has an example, and every example runs."""

import doctest
import inspect
import runpy
from pathlib import Path

import pytest
import torchvision
from quick import one_in

import dmnn_convert
from dmnn_convert import zoo

ROOT = Path(__file__).parents[1]
NAMES = [name for name in dmnn_convert.__all__ if name != "zoo"]
FUNCTIONS = {name for name in NAMES if inspect.isfunction(getattr(dmnn_convert, name))}


def examples(subject, name):
    return [
        test for test in doctest.DocTestFinder().find(subject, name, module=False) if test.examples
    ]


DOCUMENTED = {name: examples(getattr(dmnn_convert, name), name) for name in NAMES}
DOCUMENTED["zoo.build"] = examples(zoo.build, "zoo.build")


def test_every_public_function_has_an_example():
    assert len(FUNCTIONS) > 30
    assert sorted(name for name in FUNCTIONS if not DOCUMENTED[name]) == []


def test_no_example_is_left_out():
    options = {
        name: example.options
        for name, tests in DOCUMENTED.items()
        for test in tests
        for example in test.examples
    }
    # It needs an account.
    assert [name for name, given in options.items() if doctest.SKIP in given] == ["push_to_hub"]


@pytest.mark.parametrize("name", one_in(3, [name for name, tests in DOCUMENTED.items() if tests]))
def test_examples_run(name, tmp_path, monkeypatch):
    names = runpy.run_path(str(ROOT / "docs" / "names.py"))
    names |= {"Path": Path, "torchvision": torchvision}
    monkeypatch.chdir(tmp_path)
    told = []
    for test in DOCUMENTED[name]:
        test.globs = dict(names)
        doctest.DocTestRunner().run(test, out=told.append)
    assert "".join(told) == ""
