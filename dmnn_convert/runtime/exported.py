"""Refusals of prepared networks: to be exported, and to run what they were not prepared for."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor, nn

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


class PreparedFor(NotExported, nn.Module):
    """A prepared network, for images like those that it was prepared with, and no training."""

    _like: Tensor

    def check_images(self, images: object) -> None:
        """Raise if these are not images (B, C, H, W) on the device and of the dtype of others."""
        name, like = type(self).__name__, self._like
        if not isinstance(images, Tensor) or images.dim() != like.dim():
            got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ArgumentError(
                f"a {name} got {got}; give images (B, C, H, W) like those that it was prepared "
                f"with, (B, {', '.join(map(str, like.shape[1:]))})."
            )
        if (images.device, images.dtype) != (like.device, like.dtype):
            raise ArgumentError(
                f"a {name} is for {like.dtype} on {like.device}, the images are {images.dtype} on "
                f"{images.device}; give images.to({str(like.device)!r}, {like.dtype}), or prepare "
                "it for these."
            )

    def train(self, mode: bool = True) -> PreparedFor:
        """Stay in evaluation.

        Raises:
            ArgumentError: if training is asked for.
        """
        if mode:
            raise ArgumentError(
                f"a {type(self).__name__} cannot be trained: its norms are folded away; train what "
                "it was made from, and prepare that again."
            )
        super().train(False)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PreparedFor:
        moved = fn(self._like)
        if (moved.device, moved.dtype) != (self._like.device, self._like.dtype):
            raise ArgumentError(
                f"a {type(self).__name__} stays on its device and in its dtype, which its weights "
                "are laid out for; move what it was made from, and prepare that."
            )
        return self


def refuse_export(network: object) -> NoReturn:
    """Raise an error that says how to export the network that this was made from."""
    raise ArgumentError(
        f"a {type(network).__name__} is laid out for this machine, and cannot be exported or "
        "scripted; export the model that it was made from: dmnn_convert.freeze(model, 0.5) is a "
        "plain network of one level, and the model itself exports with every sub-block computed."
    )
