"""The sizes of a trace's values, for forwards that decide by them.

A graph holds for every size of image. A forward that pads to a multiple, or treats small images
differently, does not. If the size of the images is given, such questions are answered as in a run,
from tensors without values. The sizes of the arguments are noted for each forward that asks, and a
new forward checks them first. Decisions by the batch size stay unknown.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import ArgumentError
from .attributes import plain
from .dims import is_size, pieces_told, size_of


class Example(NamedTuple):
    """The known facts about a tensor, and whether its sizes matter, or how many there are."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    sizes_matter: bool = True


Given = Mapping[str, tuple[Any, ...]]
"""By argument: examples of tensors, or numbers, one for each of `BATCHES`."""


BATCHES = (2, 3)


def of_images(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Given:
    """Return the arguments of a model that takes images of this shape."""
    return {name: tuple(Example((batch, *shape), dtype) for batch in BATCHES)}


class Sizes:
    """The sizes in one trace.

    Args:
        tracer: which takes it.
        given: what its forward is called with; None if that is not known.

    Attributes:
        asked: forwards that decide by sizes -> the sizes of their arguments.
        computing: whether operations are run for their sizes, rather than traced.
    """

    def __init__(self, tracer: Any, given: Given | None) -> None:
        self.tracer, self.given = tracer, given
        self.asked: dict[str, Given] = {}
        self.computing = False
        self._calls: list[tuple[str, Mapping[str, Any] | None]] = [("", None)]
        self._known: tuple[dict[fx.Node, Any], ...] = tuple({} for _ in BATCHES)
        self._mode: Any = None

    def enter(self, path: str, arguments: Mapping[str, Any]) -> None:
        """Note that a forward begins."""
        self._calls.append((path, arguments))

    def leave(self, depth: int) -> None:
        """Note that all but the outermost `depth` forwards have ended."""
        del self._calls[depth:]

    def answer(self, node: fx.Node, question: str) -> Any:
        """Return a number that is computed from sizes alone, or how many there are (len).

        None if that is not known, or differs with the size of the batch.
        """
        if question == "len" and (told := pieces_told(node)) is not None:
            return told
        if self.given is None or self.computing or _asks_kind(node):
            return None
        if not is_size(node, [name for name, found in self.given.items() if _are_sizes(found)]):
            return None
        try:
            found = [self._value(node, i) for i in range(len(BATCHES))]
            if question == "len":
                found = [len(value) for value in found]
            if any(type(v) not in (bool, int, float) or v != found[0] for v in found):
                return None
            for path, arguments in self._calls:
                examples = self.given if arguments is None else self._examples(arguments)
                of_rank = _is_rank(node, question)
                if path not in self.asked or not of_rank:
                    self.asked[path] = _mattering(examples, not of_rank)
        except Exception:  # of operations that want values
            return None
        return found[0]

    def _examples(self, arguments: Mapping[str, Any]) -> Given:
        named = {k: v for k, v in arguments.items() if isinstance(v, fx.Proxy)}
        return {
            name: tuple(_example(self._value(value.node, i)) for i in range(len(BATCHES)))
            for name, value in named.items()
        }

    def _value(self, wanted: fx.Node, batch: int) -> Any:
        known, needed, stack = self._known[batch], set[fx.Node](), [wanted]
        while stack:
            node = stack.pop()
            if node not in known and node not in needed:
                needed.add(node)
                stack += node.all_input_nodes
        used, drawn = self.tracer.used, self.tracer.draws.lines
        before, lines = set(used), len(drawn)
        self.computing = True
        try:
            with self._fake(), torch.no_grad():
                for node in self.tracer.graph.nodes if needed else ():
                    if node in needed:
                        known[node] = self._run(node, batch)
        finally:
            self.computing = False
            used.intersection_update(before)  # only read to compute
            del drawn[lines:]  # a dropout's, of tensors without values
        return known[wanted]

    def _fake(self) -> Any:
        if self._mode is None:
            from torch._subclasses import FakeTensorMode  # takes long to import

            self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        return self._mode

    def _run(self, node: fx.Node, batch: int) -> Any:
        if node.op == "placeholder":
            value = (self.given or {})[str(node.target)][batch]
            return torch.empty(value.shape, dtype=value.dtype) if _is_tensor(value) else value
        root = self.tracer.root
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(root)
        args, kwargs = fx.node.map_arg(
            (plain(node.args), plain(node.kwargs)), self._known[batch].__getitem__
        )
        if node.op == "call_module":
            module = root.get_submodule(str(node.target))
            with _not_counting(module):
                return module.forward(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]


@contextmanager
def _not_counting(module: nn.Module) -> Iterator[None]:
    """Let norms count no batch, which they do even of tensors without values."""
    counting = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
    for norm in counting:
        norm.training = False
    try:
        yield
    finally:
        for norm in counting:
            norm.training = True


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Example)


def _are_sizes(examples: tuple[Any, ...]) -> bool:
    """Return whether an argument is numbers: a size, or some."""
    parts = [p for each in examples for p in (each if type(each) is torch.Size else (each,))]
    return all(type(part) is int for part in parts)


def _example(value: Any) -> Any:
    return Example(tuple(value.shape), value.dtype) if isinstance(value, Tensor) else value


def _asks_kind(node: fx.Node) -> bool:
    """Return whether a size is computed from a dtype or a device."""
    if getattr(node.target, "__name__", "") == "getattr":
        return node.args[1] in ("dtype", "device")
    return any(_asks_kind(n) for n in node.all_input_nodes if is_size(n))


def _is_rank(node: fx.Node, question: str) -> bool:
    """Return whether the answer tells how many dimensions there are, and no size."""
    of = size_of(node)
    if of is None and any(isinstance(a, slice) for a in node.args[1:2]):
        of = size_of(node.args[0])  # some of the sizes
    if of is not None:
        return question == "len" and of[1] is None
    if node.target in ("dim", "ndimension") or node.args[1:] == ("ndim",):
        return True
    inputs = node.all_input_nodes
    return question != "len" and bool(inputs) and all(_is_rank(n, question) for n in inputs)


def _mattering(examples: Given, sizes_matter: bool) -> Given:
    return {
        name: tuple(
            each._replace(sizes_matter=sizes_matter) if _is_tensor(each) else each for each in found
        )
        for name, found in examples.items()
    }


# --- checks in a new forward --------------------------------------------------------------------


def check_sizes(graph: fx.Graph, asked: Given | None, name: str) -> None:
    """Let a forward that was traced with certain sizes check that it gets them.

    Args:
        graph: of the forward.
        asked: the sizes of its arguments, if it decides by any.
        name: of the module whose forward it is.
    """
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    for argument in inputs if asked else ():
        examples = (asked or {}).get(str(argument.target))
        if not examples:
            continue
        with graph.inserting_after(inputs[-1]):
            check = graph.call_function(expect_size, (argument, _common(examples), name))
        check.meta = {"key": ("", check.op, f"expect_size {argument.target}", 0), "line": ""}


def _common(examples: tuple[Any, ...]) -> Any:
    """Return the sizes that all examples have, with None where they differ."""
    first = examples[0]
    if not _is_tensor(first):
        return first if all(value == first for value in examples) else None
    sizes = zip(*(value.shape for value in examples), strict=True)
    matter = first.sizes_matter
    return tuple(each[0] if matter and len(set(each)) == 1 else None for each in sizes)


def expect_size(given: Any, sizes: Any, name: str) -> None:
    """Check that a tensor has the sizes, or a number the value, that a forward was converted for.

    Raises:
        ArgumentError: if it has others.
    """
    got = tuple(given.shape) if isinstance(given, Tensor) else given
    if isinstance(given, fx.Proxy) or sizes is None:
        return
    if not isinstance(given, Tensor):
        fits = got == sizes
    else:
        fits = len(got) == len(sizes) and all(
            want in (None, have) for have, want in zip(got, sizes, strict=True)
        )
    if not fits:
        wanted = sizes if not isinstance(sizes, tuple) else tuple(s or "any" for s in sizes)
        raise ArgumentError(
            f"{name}: got sizes {got}, but its forward decides by them, and was converted for "
            f"{wanted}. Convert for images of this size with input_size=."
        )
