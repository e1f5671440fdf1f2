"""The questions that a forward asks in Python while it is traced, and their answers.

A trace follows one path through a forward. Questions about what a tensor *is* (`isinstance`,
`torch.is_tensor`, an attribute that no tensor has) are answered as in a run. Questions that only a
run can answer (a size as a number, a comparison, the gradient mode, autocast) end the trace of that
forward, even if the forward catches the error.
"""

from __future__ import annotations

import builtins
import dis
import functools
import inspect
import operator
import sys
import types
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from torch import Tensor, fx, nn

from .lines import defined_at
from .operations import known
from .rule import Gives
from .vouching import vouched

isinstance_ = isinstance
"""Python's own, whatever has replaced it."""


class Unanswerable(fx.proxy.TraceError):
    """A forward asks something that a trace cannot know."""


class Asked(Protocol):
    """A tracer that notes questions."""

    root: nn.Module

    def ask(self, question: str, line: str | None = None) -> NoReturn:
        """Note a question that has no answer and raise `Unanswerable`."""

    def note_surroundings(self, used: str) -> None:
        """Note that the forward runs a part under something that no graph shows."""

    def returns_tensor(self, path: str) -> bool:
        """Return whether calling a module that was left whole is known to give one tensor."""


def questions(tracer: Asked) -> dict[tuple[Any, str], Callable[..., Any]]:
    """Return replacements of the functions by which forwards ask, with a tracer's answers."""
    answers: dict[tuple[Any, str], Callable[..., Any]] = {
        (builtins, "isinstance"): _answered_isinstance
    }
    for name in _STATES:
        if hasattr(torch, name):
            answers[torch, name] = _refused(tracer, getattr(torch, name), name)
    answers[torch, "set_grad_enabled"] = _noted(tracer, torch.set_grad_enabled)
    # The fast path of PyTorch's transformers is one operation, which gives the same.
    mha = torch.backends.mha
    answers[mha, "get_fastpath_enabled"] = lambda: False
    for name in ("is_fx_tracing", "is_fx_symbolic_tracing"):
        if hasattr(fx._symbolic_trace, name):
            answers[fx._symbolic_trace, name] = _denied(getattr(fx._symbolic_trace, name))
    return answers


_STATES = (
    *("is_grad_enabled", "is_inference_mode_enabled", "is_autocast_enabled"),
    *("is_autocast_cpu_enabled", "get_autocast_dtype", "get_autocast_gpu_dtype"),
    *("get_autocast_cpu_dtype", "get_default_dtype"),
)


def _refused(tracer: Asked, original: Callable[..., Any], name: str) -> Callable[..., Any]:
    def answer(*args: Any, **kwargs: Any) -> Any:
        if _asker(1) in _NOT_THE_USERS:
            return original(*args, **kwargs)
        tracer.ask(f"it asks torch.{name}(), which differs from run to run")

    return answer


def _noted(tracer: Asked, original: Callable[..., Any]) -> Callable[..., Any]:
    """Return what switches gradients, as the forward asks for, and lets that be a reason.

    A trace with gradients does not show that they are switched on, nor one without that off.
    """

    def answer(*args: Any, **kwargs: Any) -> Any:
        if _asker(1) not in _NOT_THE_USERS:
            tracer.note_surroundings("torch.set_grad_enabled()")
        return original(*args, **kwargs)

    return answer


def _denied(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that tells a forward, as a run would, that no trace is taken."""

    def answer() -> Any:
        return original() if _asker(1) in _NOT_THE_USERS else False

    return answer


_NOT_THE_USERS = ("torch", __name__.partition(".")[0])


def _asker(depth: int = 0) -> str:
    """Return the package of the code that called the caller's caller, `depth` wrappers further."""
    frame = sys._getframe(2 + depth)
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


# --- what a value is --------------------------------------------------------------------------


def _answered_isinstance(value: Any, kinds: Any) -> bool:
    if not isinstance_(value, fx.Proxy) or _is_machinery(sys._getframe(2)):
        return isinstance_(value, kinds)
    tracer: Any = value.tracer
    node = None if isinstance_(value, fx.proxy.Attribute) else value.node
    if node is not None and node.op == "get_attr":
        return isinstance_(operator.attrgetter(node.target)(tracer.root), kinds)
    kind = kind_of(value)
    answers = {issubclass(k, kinds) for k in ((kind,) if kind else _POSSIBLE)}
    if len(answers) > 1:
        tracer.ask("it asks isinstance(...) of a value of unknown type")
    return answers.pop()


_POSSIBLE = (Tensor, tuple, list, dict, int, float)


_MACHINERY = ("torch.fx", "torch.utils", "torch.overrides", "torch.nn.parameter", "torch._")


def _is_machinery(frame: Any) -> bool:
    """Return whether code belongs to the tracing libraries, which must see proxies as such."""
    name = str(frame.f_globals.get("__name__", ""))
    own = __name__.partition(".")[0]
    return name.startswith(_MACHINERY) or name.partition(".")[0] in (own, "inspect", "copy")


def check_asks_no_type(tracer: Asked, forward: Callable[..., Any]) -> None:
    """Check that code does not compare ``type(...)`` with a tensor class: no proxy sees that.

    Raises:
        Unanswerable: if it does.
    """
    code = getattr(inspect.unwrap(forward), "__code__", None)
    if code is not None and _compares_type(code):
        line = defined_at(forward)
        tracer.ask("it asks type(...) of a value; isinstance(...) can be answered", line)


@functools.cache
def _compares_type(code: types.CodeType) -> bool:
    steps = list(dis.get_instructions(code))
    for i, step in enumerate(steps):
        if step.opname == "LOAD_GLOBAL" and step.argval == "type":
            near = steps[i : i + 10]
            compared = any(s.opname in ("IS_OP", "COMPARE_OP", "CONTAINS_OP") for s in near)
            if compared and any(s.argval in ("Tensor", "Parameter") for s in near):
                return True
    return False


def kind_of(value: fx.Proxy) -> type | None:
    """Return the type of a proxy's value; None if unknown."""
    if isinstance_(value, fx.proxy.Attribute):
        return _ATTRIBUTES.get(str(value.attr))
    tracer: Any = value.tracer
    return _kind(value.node, tracer)


_ATTRIBUTES: dict[str, type] = {
    **{"shape": torch.Size, "dtype": torch.dtype, "device": torch.device, "ndim": int},
    **dict.fromkeys(("T", "mT", "H", "mH", "data", "real", "imag"), Tensor),
    **dict.fromkeys(("requires_grad", "is_cuda", "is_leaf", "is_meta", "is_sparse"), bool),
}


_NUMBERS = ("dim", "ndimension", "numel", "nelement", "element_size", "stride", "item")


def _kind(node: fx.Node, tracer: Asked) -> type | None:
    if node.op in ("placeholder", "get_attr"):
        return Tensor  # parts of a network are called with tensors; others are refused after a run
    if node.op == "call_module":
        return Tensor if tracer.returns_tensor(str(node.target)) else None
    if vouched(node.target):
        return Tensor
    name = str(getattr(node.target, "__name__", node.target))
    if name == "getattr":
        return _ATTRIBUTES.get(str(node.args[1]))
    if name == "getitem":
        return _kind_of_part(node, tracer)
    if name == "size":
        return torch.Size if len(node.args) + len(node.kwargs) == 1 else int
    gives = known(name).gives
    untold = name in _NUMBERS or gives in (Gives.PAIR, Gives.VALUES, Gives.EITHER)
    if untold or node.meta.get("is_wrapped"):
        return int if name in ("dim", "ndimension", "numel", "nelement") else None
    if gives in (Gives.PIECES, Gives.TUPLE):
        return tuple
    if isinstance_(node.target, str):
        return Tensor if hasattr(Tensor, name) else None
    home = str(getattr(node.target, "__module__", None) or "torch").partition(".")[0]
    if home == "_operator":
        kinds = [_kind(n, tracer) for n in node.all_input_nodes]
        return Tensor if Tensor in kinds else int if kinds == [int] * len(kinds) else None
    return Tensor if home in ("torch", "einops") else None


def _kind_of_part(node: fx.Node, tracer: Asked) -> type | None:
    source, index = node.args[0], node.args[1]
    whole = _kind(source, tracer) if isinstance(source, fx.Node) else None
    if whole in (torch.Size, tuple):
        part = int if whole is torch.Size else Tensor
        return whole if isinstance_(index, slice) else part
    return Tensor if whole is Tensor else None


# --- the values of a trace --------------------------------------------------------------------


NEVER = ("is_nested",)
"""What no batch of images is."""


class Questioned(fx.Proxy):
    """A value that notes unanswerable questions, and has the attributes that it has in a run."""

    def __getattr__(self, name: str) -> Any:
        check_attribute(self, name)
        return False if name in NEVER else QuestionedAttribute(self, name)

    def __len__(self) -> int:
        return int(_only_a_run(self, "len"))

    def __int__(self) -> int:
        return int(_only_a_run(self, "int"))

    def __float__(self) -> float:
        return float(_only_a_run(self, "float"))

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        parts: Any = self
        return np.array([int(part) for part in parts], dtype=dtype)  # of sizes; others have no end

    def __complex__(self) -> complex:
        return complex(_only_a_run(self, "complex"))

    def __rmul__(self, other: Any) -> Any:
        # Of a list, so many copies: a node would hide how long the result is.
        tracer: Any = self.tracer
        copies = tracer.sizes.answer(self.node, "int") if isinstance_(other, list | tuple) else None
        return super().__rmul__(other) if copies is None else other * copies  # type: ignore[misc]

    def __hash__(self) -> int:
        if _asker() in _NOT_THE_USERS:
            return object.__hash__(self)
        return int(_only_a_run(self, "hash"))


class QuestionedAttribute(fx.proxy.Attribute):
    """An attribute of such a value, or a method about to be called."""

    __getattr__ = Questioned.__getattr__
    __len__, __int__, __float__ = Questioned.__len__, Questioned.__int__, Questioned.__float__
    __complex__, __hash__ = Questioned.__complex__, Questioned.__hash__
    __rmul__, __array__ = Questioned.__rmul__, Questioned.__array__


_OF_ARRAYS = ("__array_struct__", "__array_interface__", "__cuda_array_interface__")
"""Memory, which no value of a trace has, and NumPy would look for first."""


def check_attribute(value: fx.Proxy, name: str) -> None:
    """Check that a tensor has an attribute.

    Raises:
        AttributeError: as a run would, if a value is known to be a tensor and has none.
    """
    if name in _OF_ARRAYS or (not hasattr(Tensor, name) and kind_of(value) is Tensor):
        raise AttributeError(f"'Tensor' object has no attribute {name!r}")


def _only_a_run(value: fx.Proxy, question: str) -> Any:
    """Answer a question as `Sizes` can, or end the trace."""
    tracer: Any = value.tracer
    known = tracer.sizes.answer(value.node, question) if question != "hash" else None
    if known is not None:
        return known
    raise tracer.ask(f"it asks {question}(...) of a value that only a run knows")
