"""Gradient checkpointing: the second run of a controller sees the state of its first.

`torch.utils.checkpoint` computes a region again while gradients are taken. By then, a controller's
other inputs, such as the hidden state of the one before, are gone, and the outputs that it passes
on and records would count twice.
"""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..errors import TrainingError


class Met(NamedTuple):
    """The state that a controller sees besides its input.

    Attributes:
        before: hidden state (B, d) of the controller before; None if there is none.
        forced: gates (B, N) that were forced.
        noise: the noise added to the gate logits (B, N, 2).
        recorded: whether the gates were recorded.
    """

    before: Tensor | None
    forced: Tensor | None
    noise: Tensor | None
    recorded: bool


Place = tuple[object, int]
"""A chain and a position in it."""


@dataclass
class _Region:
    """The states that the controllers of a checkpointed region saw, call by call."""

    met: dict[Place, list[Met]] = field(default_factory=dict)
    again: Counter[tuple[int, Place]] = field(default_factory=Counter)


_regions: WeakKeyDictionary[Any, _Region] = WeakKeyDictionary()
"""By PyTorch's own object for a region, which lives as long as it may be computed again."""


def remember(chain: object, position: int, met: Met) -> None:
    """Keep the state that a controller saw, if PyTorch may compute it again."""
    region = _variables().get("frame")
    if region is None:
        return
    before = met.before
    if before is not None:  # without its graph, which would hold the region for ever
        before = before.detach().requires_grad_(before.requires_grad)
    kept = _regions.setdefault(region, _Region()).met
    kept.setdefault((chain, position), []).append(met._replace(before=before))


def met_before(chain: object, position: int) -> Met | None:
    """Return the state that a controller saw the first time; None if this is the first time.

    Raises:
        TrainingError: if it is computed again in a way that cannot be told from the first time.
    """
    if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
        return None
    variables, place = _variables(), (chain, position)
    if "target_frame_ref" in variables:
        region, task = _regions.get(variables["target_frame_ref"]()), variables["gid"]
        if region is not None:
            count = region.again[task, place]
            region.again[task, place] += 1
            met = region.met.get(place, [])
            if count < len(met):
                return met[count]
    if not torch.is_grad_enabled():
        return None
    raise TrainingError(
        "a converted network is recomputed in the backward pass, which loses the state that its "
        "controllers pass on. Use torch.utils.checkpoint with use_reentrant=False, and no "
        "checkpoint inside another."
    )


def may_be_computed_again() -> bool:
    """Return whether a controller stands in a checkpointed region, or is computed again."""
    if torch.compiler.is_compiling():
        return False
    return bool(_variables()) or torch._C._current_graph_task_id() != -1


def _variables() -> dict[str, Any]:
    """Return the variables of PyTorch's hooks for a checkpointed region; {} outside of one."""
    if torch.compiler.is_compiling():
        return {}
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    if top is None:
        return _variables_of_frames()
    hooks = top(True)
    pack = None if hooks is None else inspect.unwrap(hooks[0])
    if not isinstance(pack, FunctionType) or pack.__module__ != "torch.utils.checkpoint":
        return {}
    names, cells = pack.__code__.co_freevars, pack.__closure__ or ()
    return {name: cell.cell_contents for name, cell in zip(names, cells, strict=True)}


def _variables_of_frames() -> dict[str, Any]:
    """Return the same for PyTorch 2.6, which hides its hooks, from its functions on the stack."""
    frame = sys._getframe()
    while (caller := frame.f_back) is not None:
        frame = caller
        if frame.f_globals.get("__name__") != "torch.utils.checkpoint":
            continue
        held = frame.f_locals
        if frame.f_code.co_name == "unpack_hook":
            return {"target_frame_ref": partial(held.get, "frame"), "gid": held["gid"]}
        if frame.f_code.co_name == "checkpoint" and "gen" in held:
            suspended = held["gen"].gi_frame
            return {"frame": suspended.f_locals["new_frame"]}
    return {}
