"""The command ``dmnn-convert`` as ``python -m dmnn_convert``."""

from .cli import main

main()
