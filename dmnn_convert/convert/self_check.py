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
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..dryrun import Shape, example_images
from ..errors import ConversionError
from ..graph import TracedModel, copied, is_of_library, own_streams, running_copy, skeleton, undone
from ..nn import MultiPathBlock, force_gates, tensors_in
from .rewrite import Replacement, rewrite

_log = logging.getLogger(__name__)

TOLERANCE = 1e-5
"""A deviation from the source, relative to the largest magnitude, that float32 explains."""
ROUNDING = 10
"""Largest distance from the source, in units of the source's own distance from float64."""
UNKNOWN_ROUNDING = 1e-5
"""Assumed distance of the source from float64, where it does not run in float64."""


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
        if self._is_rounding(deviation) or self._is_random:
            return {}
        enclosing = {i: replacements[i].branch.enclosing for i in exact}
        blamed = self._blamed(converted(exact), set(enclosing.values()))
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

    def _is_rounding(self, deviation: float) -> bool:
        return deviation <= TOLERANCE or deviation <= ROUNDING * self._rounding

    def _run(self, model: nn.Module, images: Tensor, seed: int = 0) -> list[Tensor]:
        return _run(model, images, seed, self._calls)

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
        deviations = self._side_by_side(converted(blocks), {path}).get(path, (float("inf"),))
        return not self._is_rounding(max(deviations))

    def _blamed(self, model: nn.Module, paths: set[str]) -> list[str]:
        """Return the innermost rewritten modules that differ from the source's."""
        compared = self._side_by_side(model, paths)
        for which in (0, 1):
            differing = [p for p, both in compared.items() if not self._is_rounding(both[which])]
            inner = [p for p in differing if not any(_within(other, p) for other in differing)]
            if inner:
                return inner
        return []

    def _side_by_side(self, model: nn.Module, paths: set[str]) -> dict[str, tuple[float, float]]:
        """Run the source, and at each of some modules the model's own on the same input.

        Returns:
            by path of each that was called, the deviation of its outputs and of its arguments as
            it left them.
        """
        source, model = running_copy(self._source), running_copy(model)
        seen: dict[str, tuple[float, float]] = {}
        given: dict[str, Any] = {}

        def before(path: str, _: nn.Module, args: Any, kwargs: Any) -> None:
            given[path] = pytree.tree_map_only(Tensor, torch.clone, (args, kwargs))

        def after(path: str, _: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            own_args, own_kwargs = given.pop(path)
            expected = tensors_in(output), tensors_in((args, kwargs))
            try:
                with _all_on(model):
                    got = tensors_in(model.get_submodule(path)(*own_args, **own_kwargs))
                left = tensors_in((own_args, own_kwargs))
                pair = deviation_of(got, expected[0]), deviation_of(left, expected[1])
            except Exception:
                pair = float("inf"), float("inf")
            seen[path] = max(pair, seen.get(path, pair))

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


def _within(path: str, outer: str) -> bool:
    return path != outer and (not outer or path.startswith(f"{outer}."))


def _said(deviation: float) -> str:
    if deviation == float("inf"):
        return "an error, NaN or another shape"
    return f"off by {100 * deviation:.2g} % of the largest magnitude"


# --- running and comparing ----------------------------------------------------------------------


def _run(model: nn.Module, images: Tensor, seed: int, calls: int) -> list[Tensor]:
    """Return all tensors that a copy outputs in evaluation, with its gates on.

    Raises:
        ConversionError: if it returns no tensor.
    """
    model.eval()
    with undisturbed(model, images.device, seed), _all_on(model):
        found = [tensor for _ in range(calls) for tensor in tensors_in(model(images.clone()))]
    if not found:
        raise ConversionError("it gives no tensor")
    return found


def _all_on(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    gated = any(isinstance(module, MultiPathBlock) for module in model.modules())
    return force_gates(model, True) if gated else contextlib.nullcontext()


@contextlib.contextmanager
def undisturbed(model: nn.Module, device: torch.device, seed: int = 0) -> Iterator[None]:
    """Let a model draw from streams of its own inside the block, without gradients and autocast."""
    with own_streams(model, seed), torch.no_grad(), _full_precision(device.type):
        yield


def _full_precision(device_type: str) -> contextlib.AbstractContextManager[Any]:
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def deviation_of(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest deviation in any tensor, relative to its largest finite magnitude.

    If NaN or infinities are not where they are expected, or shapes differ, the deviation is
    infinite.
    """
    if [t.shape for t in got] != [t.shape for t in expected]:
        return float("inf")
    return max((_deviation(a, b) for a, b in zip(got, expected, strict=True)), default=0.0)


def _deviation(got: Tensor, expected: Tensor) -> float:
    a, b = (torch.view_as_real(t) if t.is_complex() else t for t in (got, expected))
    a, b = a.double(), b.double()
    finite = b.isfinite()
    if not torch.equal(a.isfinite(), finite) or not torch.equal(
        a[~finite].nan_to_num(), b[~finite].nan_to_num()
    ):
        return float("inf")
    scale, error = (
        t.max().item() if t.numel() else 0.0 for t in (b[finite].abs(), (a - b)[finite].abs())
    )
    return error / scale if scale else error
