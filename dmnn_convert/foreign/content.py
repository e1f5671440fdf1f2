"""Content of other people's files, checked before anything uses it."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..text import shown

_SHOWN = 3


def parsed_json(text: str, **options: Any) -> Any:
    """Return what JSON text holds.

    Raises:
        ValueError: if it is not valid JSON, or nested too deep.
    """
    try:
        return json.loads(text, **options)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def text_of(file: Path) -> str:
    """Return the text of a file.

    Raises:
        OSError, UnicodeError: if it is not a text file, or cannot be read.
    """
    if file.exists() and not file.is_file():  # reading a pipe would block
        raise OSError(0, "it is not a file", str(file))
    return file.read_text(encoding="utf-8")


def check_archive(file: Path) -> None:
    """Check that a PyTorch file is not compressed: PyTorch never does, and it could hide a bomb.

    Raises:
        CheckpointError: if it is.
    """
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as whole:
        packed = [i.filename for i in whole.infolist() if i.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise CheckpointError(
            f"{file}: its part {shown(packed[0])} is compressed, which torch.save never does; save "
            "the weights again, with torch.save(model.state_dict(), FILE)."
        )


def check_tensors(state: Mapping[str, Any], own: Mapping[str, Any], file: Path) -> None:
    """Check that tensors are fit for a model: plain, of the dtypes of its own, finite.

    Names and shapes are checked elsewhere.

    Args:
        state: by name, from the file.
        own: the model's state dict. Tensors that are not finite here, such as masks, may be so in
            the file.
        file: for the error.

    Raises:
        CheckpointError: if some are not.
    """
    both = {name: (state[name], own[name]) for name in own if name in state}
    odd = [
        f"{name} {what}"
        for name, (theirs, ours) in both.items()
        if isinstance(ours, Tensor) and (what := _oddity(theirs, ours))
    ]
    if not odd:
        return
    more = f", and {len(odd) - _SHOWN} more" if len(odd) > _SHOWN else ""
    raise CheckpointError(
        f"{file}: these weights cannot be used: {', '.join(odd[:_SHOWN])}{more}. Give a file "
        "that was saved while the network was sound, as plain floating-point tensors."
    )


def _oddity(theirs: object, ours: Tensor) -> str | None:
    if not isinstance(theirs, Tensor):
        return f"is a {type(theirs).__name__}"
    if theirs.is_quantized:
        return "is quantized"
    if theirs.is_nested or theirs.is_meta or theirs.layout is not torch.strided:
        return "is sparse, nested or without values"
    if theirs.shape != ours.shape:
        return None
    if not ours.is_floating_point():
        return _not_whole(theirs, ours)
    if not theirs.is_floating_point():
        return f"is {_named(theirs)}"
    if theirs.dtype.itemsize == 1:  # few operations support such tensors
        theirs = theirs.float()
    finite = torch.isfinite(theirs.to(ours.dtype))  # a large number may not fit
    if finite.all() or (not ours.is_meta and torch.equal(finite, torch.isfinite(ours).cpu())):
        return None
    if theirs.isfinite().all():
        return f"holds numbers too large for {_named(ours)}"
    return "holds NaN" if theirs.isnan().any() else "holds infinity"


def _not_whole(theirs: Tensor, ours: Tensor) -> str | None:
    """Return why a file's values would change in an integer or boolean tensor of the model."""
    if ours.is_complex() or not (theirs.is_floating_point() or theirs.is_complex()):
        return None
    same = not theirs.is_complex() and torch.equal(theirs, theirs.round())
    return None if same else f"is {_named(theirs)}"


def _named(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
