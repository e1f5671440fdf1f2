"""The last layers of approximate blocks, fitted to the source's blocks on a few images.

A matched-width split drops the weights between its sub-blocks, and the weights that read the
hidden channels were learned with these in place. `reconstruct` learns them again, in closed form:
block by block, it looks for the weights with which the sum of the sub-blocks, all gates on, is
nearest to the source's branch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..distributed import place, summed
from ..errors import ArgumentError
from ..nn import check_own_statistics, force_gates, in_evaluation
from ..progress import tracked
from .batches import device_of, image_batches
from .last_layers import LastLayers, affine, affines, ends_of, values_kept_on_error
from .least_squares import Change, LeastSquares


def reconstruct(
    model: nn.Module,
    source: nn.Module,
    loader: Iterable[Any],
    batches: int = 8,
    *,
    ridge: float = 1e-3,
    positions: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, tuple[float, float]]:
    """Fit the last layer of every approximate block's sub-blocks to the source, in place.

    The layers of a block's sub-blocks solve one least-squares problem together; the constant goes
    into the tail norms' means (or the layers' biases). Blocks are fitted in the order in which
    they run, each on its inputs in the converted network. It thus compensates for the error that
    earlier blocks leave. (Fitted on the source's inputs instead, a bottleneck network
    with N=4 reached 97.8 % rather than 99.2 % top-1: `benchmarks/reconstruction.py`.) Run it
    after the conversion and before `calibrate`. It runs both networks once for each block and
    batch, up to that block. Exact blocks stay as they are, and so do those whose last layer is
    neither a 1×1 convolution nor a linear layer.

    In a distributed run every process must call it with its own share of the images. All processes
    end with the same model, fitted to the images of all of them.

    Args:
        model: a converted model.
        source: the model that it was converted from.
        loader: yields images (B, C, H, W), or tuples or dicts with them; training images.
        batches: how many batches to look at; they are kept in memory. A few hundred images suffice.
        ridge: pull of the weights towards those inherited, relative to the mean square of the
            layers' inputs.
        positions: largest number of positions of each image's map to use.
        seed: of the choice of positions; the same seed gives the same weights.
        progress: whether to show a bar.

    Returns:
        {block name: (before, after)}: relative error ‖converted − source‖ / ‖source‖ of the
        branch's output at these positions, with the earlier blocks fitted already.

    Raises:
        ArgumentError: if the model is not converted, the source does not belong to it, the loader
            is empty, or a number is out of range. After an error the model is as it was.

    Example:
        >>> bottlenecks = torchvision.models.resnet50(num_classes=10)
        >>> narrow, _ = dynamize(bottlenecks, N=2, where="layer1.0", input_size=(3, 32, 32))
        >>> errors = reconstruct(narrow, bottlenecks, [torch.randn(4, 3, 32, 32)])
        >>> before, after = errors["layer1.0"]
        >>> after < before
        True
    """
    if not 0 < ridge < math.inf or positions < 1:
        raise ArgumentError(
            f"reconstruct(ridge={ridge!r}, positions={positions!r}): give a finite ridge "
            "above 0 and at least 1 position."
        )
    check_own_statistics(model, "reconstruct")
    ends = list(ends_of(model, source))
    images = list(image_batches(loader, batches, "reconstruct"))
    _check_given(len(images))
    errors = {}
    with (
        in_evaluation(source),
        in_evaluation(model, "masked"),
        force_gates(model, True),
        values_kept_on_error(ends),
    ):
        for end in tracked(ends, "reconstruct", shown=progress):
            places = _Places(positions, seed)
            errors[end.name] = _fit(model, source, end, images, places, ridge)
    return errors


def _check_given(batches: int) -> None:
    """Check that every process has images, which it needs to see the shapes of a block's end."""
    without = int(summed(torch.tensor(float(not batches))))
    if without:
        which = f" in {without} of {place()[1]} processes" if place()[1] > 1 else ""
        raise ArgumentError(
            f"reconstruct: the loader gave no batch{which}; give some training images."
        )


# --- what they read and give ------------------------------------------------------------------


class _Enough(Exception):
    """Ends a forward pass early, once everything needed has been seen."""


class _Places:
    """Chooses positions of a batch's maps."""

    def __init__(self, most: int, seed: int) -> None:
        self.most, self.generator = most, torch.Generator().manual_seed(seed)

    def of(self, count: int) -> Tensor:
        """Return indices of at most `most` out of `count` positions."""
        return torch.randperm(count, generator=self.generator)[: self.most].sort().values


Seen = tuple[nn.Module, str]
"""A module and which of its values: "input" or "output"."""


@contextmanager
def _watched(end: LastLayers) -> Iterator[dict[Seen, Tensor]]:
    """Note the layers' inputs and the source's outputs; end the pass after the last of them."""
    seen: dict[Seen, Tensor] = {}

    def note_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[module, "input"] = inputs[0]

    def note_output(module: nn.Module, _: Any, output: Tensor) -> None:
        seen[module, "output"] = output

    def stop(*_: Any) -> None:
        raise _Enough

    readers: list[nn.Module] = [*end.layers, *end.norms[:1]]
    hooks = [module.register_forward_pre_hook(note_input) for module in readers]
    givers = (end.source_layer, end.layers[0], end.block.sub_blocks[0])
    hooks += [module.register_forward_hook(note_output) for module in givers]
    hooks += [m.register_forward_hook(stop) for m in (end.source_layer, end.block.sub_blocks[-1])]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _run(model: nn.Module, images: Tensor) -> None:
    with suppress(_Enough):
        model(images.to(device_of(model), copy=True))


def _by_place(x: Tensor, layer: nn.Module) -> Tensor:
    """Return a layer's input or output as (B, positions, C)."""
    if isinstance(layer, nn.Linear):
        return x.reshape(len(x), -1, x.shape[-1])
    return x.flatten(2).transpose(1, 2)


def _read(x: Tensor, layer: nn.Module) -> Tensor:
    """Return the part of its input that a 1×1 layer reads, (B, positions, C)."""
    if isinstance(layer, _ConvNd):
        x = x[(slice(None), slice(None), *(slice(None, None, step) for step in layer.stride))]
    return _by_place(x, layer)


# --- the least-squares problem ----------------------------------------------------------------


def _fit(
    model: nn.Module,
    source: nn.Module,
    end: LastLayers,
    images: Sequence[Tensor],
    places: _Places,
    ridge: float,
) -> tuple[float, float]:
    """Fit one block; return the relative errors before and after."""
    problem: LeastSquares | None = None
    with _watched(end) as seen:
        for batch in images:
            _run(source, batch)
            _run(model, batch)
            if problem is None:
                end = end if _norms_follow(end, seen) else replace(end, norms=(), source_norm=None)
                problem = _problem(end)
            problem.add(*_seen_at(places, end, seen))
            seen.clear()
    if problem is None:
        return 0.0, 0.0
    problem.add_up()
    change = problem.solve(ridge)
    _apply(end, change)
    return change.before, change.after


def _norms_follow(end: LastLayers, seen: Mapping[Seen, Tensor]) -> bool:
    """Return whether the norms read the layers' outputs directly."""
    if not end.norms:
        return False
    shared = end.block.shared_norm is not None
    before: Seen = (end.block.sub_blocks[0], "output") if shared else (end.norms[0], "input")
    given = seen.get((end.layers[0], "output"))
    return given is not None and seen.get(before) is given


def _seen_at(
    places: _Places, end: LastLayers, seen: Mapping[Seen, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the inputs of all layers (rows, K) and the targets of their sum (rows, C)."""
    try:
        wanted = _by_place(seen[end.source_layer, "output"], end.layers[0])
        read = torch.cat([_read(seen[layer, "input"], layer) for layer in end.layers], -1)
    except KeyError:
        raise ArgumentError(
            f"reconstruct: {end.name} did not run in a forward pass of both networks."
        ) from None
    if read.shape[:2] != wanted.shape[:2]:
        raise ArgumentError(
            f"reconstruct: {end.name} gives {tuple(read.shape[:2])} (images, positions) in the "
            f"converted model and {tuple(wanted.shape[:2])} in the source; give the model that "
            "was converted."
        )
    chosen = places.of(wanted.shape[1]).to(wanted.device)
    wanted = wanted[:, chosen].flatten(0, 1).to(read.device, torch.float64)
    if end.source_norm is not None:
        scale, shift = affine(end.source_norm, end.norms[0])
        wanted = wanted * scale.to(wanted) + shift.to(wanted)
    return read[:, chosen.to(read.device)].flatten(0, 1), wanted


def _problem(end: LastLayers) -> LeastSquares:
    """Return the problem at the present weights; norms are part of the map."""
    weights, constant = [], torch.zeros(()).to(end.layers[0].weight)
    for layer, (scale, shift) in zip(end.layers, affines(end), strict=True):
        weights.append((layer.weight.flatten(1).double() * scale[:, None]).T)
        bias = 0.0 if layer.bias is None else layer.bias.double()
        constant = constant + bias * scale + shift
    free = bool(end.norms) or end.layers[0].bias is not None
    return LeastSquares(torch.cat(weights), constant, free=free)


def _apply(end: LastLayers, change: Change) -> None:
    """Add the change to the layers, and a share of the constant to each norm or bias."""
    columns = [layer.weight[0].numel() for layer in end.layers]
    shares = change.weights.split(columns)
    for i, (layer, (scale, _)) in enumerate(zip(end.layers, affines(end), strict=True)):
        # Nothing passes a scale of zero, whatever the weights are.
        inverse = torch.where(scale == 0, 0.0, 1 / scale)
        weight = (shares[i].T * inverse[:, None]).reshape(layer.weight.shape)
        layer.weight.add_(weight.to(layer.weight.dtype))
        constant = change.constant * inverse / len(end.layers)
        if end.norms:
            mean: Tensor = end.norms[i].running_mean  # type: ignore[assignment]
            mean.sub_(constant.to(mean.dtype))
        elif layer.bias is not None:
            layer.bias.add_(constant.to(layer.bias.dtype))
