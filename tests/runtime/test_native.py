"""The native code is present: without it NumPy silently takes over, only slower."""

import importlib
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

HAS_GCC = sys.platform == "linux" and shutil.which("gcc") is not None
HAS_HEADERS = Path(sysconfig.get_paths()["include"], "Python.h").is_file()


@pytest.mark.skipif(not (HAS_GCC and HAS_HEADERS), reason="needs gcc and Python's headers")
def test_the_native_code_is_there_where_it_can_be_built():
    assert callable(importlib.import_module("dmnn_convert.runtime._controller").decide)
