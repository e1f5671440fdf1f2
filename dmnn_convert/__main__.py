"""``python -m dmnn_convert`` is the command ``dmnn-convert``."""

from .cli import main

main()
