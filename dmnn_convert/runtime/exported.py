"""Refusals to export networks that are laid out for one machine."""

from __future__ import annotations

from typing import NoReturn

import torch

from ..errors import ArgumentError


class NotExported:
    """A prepared network: it runs where it was prepared, and is exported from its source."""

    def check_not_exported(self) -> None:
        """Raise if torch.jit or torch.export, which ONNX export also uses, traces this pass."""
        exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
        if torch._C._get_tracing_state() is not None or exporting():
            refuse_export(self)

    def __prepare_scriptable__(self) -> NoReturn:
        refuse_export(self)


def refuse_export(network: object) -> NoReturn:
    """Raise an error that says how to export the network that this was made from."""
    raise ArgumentError(
        f"a {type(network).__name__} is laid out for this machine, and cannot be exported or "
        "scripted; export the model that it was made from: dmnn_convert.freeze(model, 0.5) is a "
        "plain network of one level, and the model itself exports with every sub-block computed."
    )
