"""The self-check: a conversion with all gates on against its source, on one random image.

Both run in evaluation as copies that share the parameters. The user's model thus keeps its buffers,
modes, hooks and attributes, and the process its random numbers. If the two differ, the blocks at
fault are found: first by giving each rewritten module the input of the source's, then by bisection
over the blocks of such a module.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..dryrun import Shape, example_images
from ..graph import TracedModel, below, copied, is_of_library, running_copy, skeleton, undone
from ..nn import tensors_in
from .comparing import all_on, deviation_of, outputs_of
from .rewrite import Replacement, rewrite

_log = logging.getLogger(__name__)

TOLERANCE = 1e-5
"""A deviation from the source, relative to the largest magnitude, that float32 explains."""
ROUNDING = 10
"""Largest distance from the source, in units of the source's own distance from float64."""
UNKNOWN_ROUNDING = 1e-5
"""Assumed distance of a module from float64, where it does not run in float64."""
NUDGES = 3
"""Times that the source is run with other roundings in its modules."""
AMPLIFIED = 1e-2
"""Distance from the source that rounding alone does not reach: an order of scores or a threshold
has made it larger, as in detectors. It shows nothing; each rewritten module is compared instead."""


class SelfCheck:
    """Compare conversions of a model with the model.

    Args:
        source: the model, not rewritten.
        input_size: shape of one image, e.g. (C, H, W).
    """

    def __init__(self, source: nn.Module, input_size: Shape) -> None:
        self._source = source
        self._input_size = input_size
        # Code of the user's may keep something from one call to the next, where no trace sees it.
        known = all(is_of_library(type(module)) for module in source.modules())
        self._calls = 1 if known else 2

    def objections(
        self, model: nn.Module, traced: TracedModel, replacements: Sequence[Replacement]
    ) -> dict[int, str]:
        """Return the index among the replacements of each exact block that differs, and why.

        Args:
            model: the converted model.
            traced: the source's graph.
            replacements: the blocks of the model; approximate ones are not checked.
        """
        # What forwards store on classes and in globals, which copies share, is put back.
        storing = traced.unstable or traced.closed
        with undone(self._source) if storing else contextlib.nullcontext():
            return self._objections(model, traced, replacements)

    def _objections(
        self, model: nn.Module, traced: TracedModel, replacements: Sequence[Replacement]
    ) -> dict[int, str]:
        exact = [i for i, r in enumerate(replacements) if not r.block.approximate]
        if not exact or self._expected is None:
            return {}

        def converted(chosen: Sequence[int]) -> nn.Module:
            return self._with(traced, [replacements[i] for i in chosen])

        whole = model if len(exact) == len(replacements) else converted(exact)
        deviation = self._deviation(whole)
        if deviation <= TOLERANCE or deviation <= _excused(self._rounding) or self._is_random:
            return {}
        enclosing = {i: replacements[i].branch.enclosing for i in exact}
        paths = set(enclosing.values())
        blamed = self._blamed(converted(exact), paths)
        if not blamed and deviation <= ROUNDING * max(self._rounding, self._unsteadiness(paths)):
            return {}
        found: dict[int, str] = {}
        for path in blamed or [""]:
            group = [i for i in exact if enclosing[i] == path] if blamed else exact
            differs = functools.partial(self._differs, converted, path)
            guilty = culprits(group, differs) or group
            found |= dict.fromkeys(
                guilty, f"converted, it gives another result ({_said(deviation)})"
            )
        return found

    # --- what the source gives --------------------------------------------------------------

    @functools.cached_property
    def _images(self) -> Tensor:
        like = example_images(self._source, self._input_size, batch=1)
        drawn = torch.randn(like.shape, generator=torch.Generator().manual_seed(0))
        return drawn.to(like)

    @functools.cached_property
    def _expected(self) -> list[Tensor] | None:
        """The source's outputs; None if it returns no tensor, or does not run."""
        try:
            return self._run(running_copy(self._source), self._images)
        except Exception as error:  # whatever a model raises on noise
            name = type(self._source).__name__
            _log.warning("dynamize: the conversion is not checked: %s: %s", name, error)
            return None

    @functools.cached_property
    def _is_random(self) -> bool:
        """Whether the source differs from run to run, which makes it useless as a reference."""
        again = self._run(running_copy(self._source), self._images, seed=1)
        differs = deviation_of(again, self._expected or []) > TOLERANCE
        if differs:
            _log.warning("dynamize: the conversion is not checked, because the source is random.")
        return differs

    @functools.cached_property
    def _rounding(self) -> float:
        """Deviation of the source from its own run in float64."""
        try:
            precise = copied(running_copy(self._source)).double()
            return deviation_of(self._run(precise, self._images.double()), self._expected or [])
        except Exception:  # of models that mix in float32 of their own
            return UNKNOWN_ROUNDING

    def _unsteadiness(self, paths: set[str]) -> float:
        """Deviation of the source from itself, if what some modules give is rounded otherwise."""
        found = [0.0]
        for seed in range(NUDGES):
            source = running_copy(self._source)
            for path in paths:
                source.get_submodule(path).register_forward_hook(functools.partial(_nudged, seed))
            with contextlib.suppress(Exception):
                found.append(deviation_of(self._run(source, self._images), self._expected or []))
        return max(found)

    def _run(self, model: nn.Module, images: Tensor, seed: int = 0) -> list[Tensor]:
        return outputs_of(model, images, seed, self._calls)

    # --- what conversions give --------------------------------------------------------------

    def _deviation(self, model: nn.Module) -> float:
        """Return a converted model's distance from the source; infinity if it does not run."""
        try:
            got = self._run(running_copy(model), self._images)
        except Exception:
            return float("inf")
        return deviation_of(got, self._expected or [])

    def _with(self, traced: TracedModel, replacements: Sequence[Replacement]) -> nn.Module:
        """Return the source with some of its blocks replaced."""
        blocks = skeleton(nn.ModuleList(r.block for r in replacements))
        own = zip(replacements, blocks.children(), strict=True)
        model = running_copy(self._source)
        rewrite(model, traced, [Replacement(r.branch, block) for r, block in own])  # type: ignore[arg-type]
        return model

    def _differs(
        self, converted: Callable[[Sequence[int]], nn.Module], path: str, blocks: Sequence[int]
    ) -> bool:
        """Return whether the module at `path` differs from the source's with these blocks alone."""
        return any(self._side_by_side(converted(blocks), {path}).get(path, (True,)))

    def _blamed(self, model: nn.Module, paths: set[str]) -> list[str]:
        """Return the innermost rewritten modules that differ from the source's."""
        compared = self._side_by_side(model, paths)
        for which in (0, 1):
            differing = [path for path, both in compared.items() if both[which]]
            inner = [p for p in differing if not any(below(other, p) for other in differing)]
            if inner:
                return inner
        return []

    def _side_by_side(self, model: nn.Module, paths: set[str]) -> dict[str, tuple[bool, bool]]:
        """Run the source, and at each of some modules the model's own on the same input.

        Returns:
            by path of each that was called, whether its outputs differ by more than its own
            rounding, and whether its arguments do, as it left them.
        """
        source, model = running_copy(self._source), running_copy(model)
        seen: dict[str, tuple[bool, bool]] = {}
        given: dict[str, Any] = {}

        def before(path: str, _: nn.Module, args: Any, kwargs: Any) -> None:
            given[path] = pytree.tree_map_only(Tensor, torch.clone, (args, kwargs))

        def after(path: str, _: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            own_args, own_kwargs = given.pop(path)
            untouched = pytree.tree_map_only(Tensor, torch.clone, (own_args, own_kwargs))
            expected = tensors_in(output), tensors_in((args, kwargs))
            try:
                with all_on(model):
                    got = tensors_in(model.get_submodule(path)(*own_args, **own_kwargs))
                left = tensors_in((own_args, own_kwargs))
                off = deviation_of(got, expected[0]), deviation_of(left, expected[1])
            except Exception:
                off = float("inf"), float("inf")
            excused = TOLERANCE
            if max(off) > TOLERANCE:
                own = self._source.get_submodule(path)
                excused = _excused(_rounding_of(own, untouched, expected[0]))
            pair = off[0] > excused, off[1] > excused
            before_it = seen.get(path, pair)
            seen[path] = pair[0] or before_it[0], pair[1] or before_it[1]

        for path in paths:
            module = source.get_submodule(path)
            module.register_forward_pre_hook(functools.partial(before, path), with_kwargs=True)
            module.register_forward_hook(functools.partial(after, path), with_kwargs=True)
        with contextlib.suppress(Exception):
            model.eval()
            self._run(source, self._images)
        return seen


def culprits(blocks: Sequence[int], differs: Callable[[Sequence[int]], bool]) -> list[int]:
    """Return the blocks that make a difference, by bisection; all if they do only together."""
    if not differs(blocks):
        return []
    if len(blocks) == 1:
        return list(blocks)
    half = len(blocks) // 2
    found = [*culprits(blocks[:half], differs), *culprits(blocks[half:], differs)]
    return found or list(blocks)


def _excused(rounding: float) -> float:
    """Return the largest deviation that a module's own rounding explains."""
    return max(TOLERANCE, min(AMPLIFIED, ROUNDING * rounding))


def _nudged(seed: int, _: nn.Module, __: Any, output: Any) -> Any:
    """Return a module's output as another order of its sums could have rounded it."""

    def nudged(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        drawn = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed))
        return tensor * (1 + 4 * torch.finfo(tensor.dtype).eps * drawn.sign().to(tensor))

    return pytree.tree_map_only(Tensor, nudged, output)


def _rounding_of(
    module: nn.Module, given: tuple[Any, dict[str, Any]], expected: list[Tensor]
) -> float:
    """Return the deviation of a module's outputs from its own run in float64."""

    def precise(tensor: Tensor) -> Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor

    try:
        copy = copied(running_copy(module)).double().eval()
        args, kwargs = pytree.tree_map_only(Tensor, precise, given)
        return deviation_of(tensors_in(copy(*args, **kwargs)), expected)
    except Exception:  # of modules that mix in float32 of their own
        return UNKNOWN_ROUNDING


def _said(deviation: float) -> str:
    if deviation == float("inf"):
        return "an error, NaN or another shape"
    return f"off by {100 * deviation:.2g} % of the largest magnitude"
