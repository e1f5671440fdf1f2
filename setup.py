from setuptools import Extension, setup

# Without a C compiler it is left out, and NumPy does its work, slower.
controller = Extension(
    "dmnn_convert.runtime._controller",
    ["dmnn_convert/runtime/_controller.c"],
    extra_compile_args=["-O3"],
    optional=True,
)
setup(ext_modules=[controller])
