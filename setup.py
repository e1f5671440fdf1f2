import sys

from setuptools import Extension, setup

# Its threads are PyTorch's: another OpenMP would have its own, so that none is linked. The one that
# PyTorch has loaded is found when this is imported, or the import fails.
threads = sys.platform == "linux"
# Without a C compiler it is left out, and NumPy does its work, slower.
controller = Extension(
    "dmnn_convert.runtime._controller",
    ["dmnn_convert/runtime/_controller.c"],
    extra_compile_args=["-O3", "-fopenmp"] if threads else ["-O3"],
    extra_link_args=["-Wl,-z,now"] if threads else [],
    optional=True,
)
setup(ext_modules=[controller])
