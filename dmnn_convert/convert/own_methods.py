"""Methods of the user's, besides forward, that name layers which blocks take, or set their modes.

A model may freeze a norm in its `train`, or print a layer's channels. PyTorch calls such methods by
itself, long after the conversion. So a copy is asked, and the blocks that they miss stay dense.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ..graph import TracedModel, defined_at, is_of_library, joined, running_copy, undone, users_line
from ..nn import MultiPathBlock
from ..text import first_line
from .rewrite import Replacement

_CALLS: dict[str, Callable[[nn.Module], Any]] = {
    "train": lambda model: model.train(),
    "eval": lambda model: model.eval(),
    "extra_repr": repr,
    "__repr__": repr,
    "_apply": lambda model: model._apply(lambda tensor: tensor),
    "state_dict": lambda model: model.state_dict(),
}
"""Methods that PyTorch, or any training loop, calls -> the call by which it does."""


def objections_of_methods(
    model: nn.Module, traced: TracedModel, replacements: Sequence[Replacement]
) -> dict[int, str]:
    """Return the index of each block that a method of the user's needs as it was, and why.

    Args:
        model: the converted model.
        traced: the source's graph.
        replacements: the blocks of the model.
    """
    own = {name: method for name in _CALLS if (method := _users(traced.root, name)) is not None}
    if not own:
        return {}
    paths = {id(module): path for path, module in model.named_modules()}
    places = [paths[id(replacement.block)] for replacement in replacements]
    found: dict[int, str] = {}
    with undone(traced.root):
        for name, method in own.items():
            source, converted = (running_copy(m, "meta") for m in (traced.root, model))
            call = _CALLS[name]
            for i, reason in _missed(call, source, converted, replacements):
                found.setdefault(i, f"{name}() {reason}")
            if name in ("train", "eval"):
                for i, replacement in enumerate(replacements):
                    block = converted.get_submodule(places[i])
                    kind = _in_another_mode(source, replacement, block)
                    if kind is not None:
                        said = f"{name}(){defined_at(method)} sets the mode of its {kind} apart"
                        found.setdefault(i, said)
    return found


def _users(root: nn.Module, name: str) -> Callable[..., Any] | None:
    """Return a method of a name that a class of the user's has, if one does."""
    for cls in dict.fromkeys(type(module) for module in root.modules()):
        for base in cls.__mro__:
            if name in vars(base) and not is_of_library(base):
                return vars(base)[name]  # type: ignore[no-any-return]
    return None


# --- layers that a method names -----------------------------------------------------------------


def _missed(
    call: Callable[[nn.Module], Any],
    source: nn.Module,
    converted: nn.Module,
    replacements: Sequence[Replacement],
) -> Iterator[tuple[int, str]]:
    """Yield the index of each block that took what a call asks for, and what that is.

    The source's layer then takes its place in the copy, so that the call gets further.
    """
    try:
        call(source)
    except Exception:  # then it is not the conversion's fault
        return
    given: set[str] = set()
    while True:
        try:
            call(converted)
        except Exception as error:  # whatever the user's code makes of a layer that is gone
            holder, name, line = _asked(error)
            where = {id(module): path for path, module in converted.named_modules()}
            path = joined(where[id(holder)], name) if id(holder) in where else ""
            takers = [i for i, r in enumerate(replacements) if path and _takes(r, path)]
            if not takers or path in given:
                yield from (
                    (i, f"fails: {first_line(error)}{line}") for i in range(len(replacements))
                )
                return
            yield from ((i, f"uses {path}{line}, which the block would take") for i in takers)
            given.add(path)
            holder.add_module(name, source.get_submodule(path))
        else:
            return


def _takes(replacement: Replacement, path: str) -> bool:
    called = (str(n.target) for n in replacement.branch.region if n.op == "call_module")
    return any(f"{target}.".startswith(f"{path}.") for target in called)


def _asked(error: Exception) -> tuple[Any, str, str]:
    """Return the module that lacks what code asked it for, the name, and " (file:line)"."""
    frames: list[tuple[FrameType, int]] = []
    trace = error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame, trace.tb_lineno))
        trace = trace.tb_next
    lines = [users_line(frame.f_code, number) for frame, number in frames]
    line = next(filter(None, reversed(lines)), "")
    last, held = frames[-1][0].f_code.co_name, frames[-1][0].f_locals
    if last == "__getattr__":
        return held.get("self"), str(held.get("name")), line
    if last == "get_submodule":
        return held.get("mod"), str(held.get("item")), line
    return None, "", line


# --- the modes that a method sets ---------------------------------------------------------------


_KINDS = {"batch norms": _BatchNorm, "dropouts": _DropoutNd}
"""Layers that differ by mode."""


def _in_another_mode(source: nn.Module, replacement: Replacement, block: nn.Module) -> str | None:
    """Return the kind of layer that is in another mode in the source than in its block."""
    nodes = (n for n in replacement.branch.region if n.op == "call_module")
    ours = [m for node in nodes for m in source.get_submodule(str(node.target)).modules()]
    controller = block.controller if isinstance(block, MultiPathBlock) else nn.Module()
    apart = {id(module) for module in controller.modules()}
    theirs = [module for module in block.modules() if id(module) not in apart]
    for name, kind in _KINDS.items():
        modes, its = ({m.training for m in ms if isinstance(m, kind)} for ms in (ours, theirs))
        if modes and (len(modes) > 1 or (its and its != modes)):
            return name
    return None
