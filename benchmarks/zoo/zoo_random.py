"""Weights and statistics that are random enough that no mistake stays hidden."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


def randomise(model: nn.Module, strength: float = 1.0) -> None:
    """Draw, in place, every parameter that starts at a constant.

    Fresh networks hide mistakes: norms are identities, layer scales and last norms are (nearly)
    zero, so that branches contribute nothing.
    """
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.is_floating_point() and _says_nothing(parameter):
                    _draw(name, parameter, strength, generator)


@contextlib.contextmanager
def random_statistics(model: nn.Module) -> Iterator[None]:
    """Draw every norm's statistics, to the measure of what it gets, in the run inside the block.

    Statistics out of nowhere would let the signal vanish, or explode, within some twenty layers:
    the output would be the same for every image.
    """
    generator = torch.Generator().manual_seed(3)

    def draw(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        mean, variance = norm.running_mean, norm.running_var
        if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
            return
        channels = inputs[0].detach().transpose(0, 1).flatten(1)
        # Of the values themselves: what is left of them after their mean is taken away is so
        # small next to them that dividing by it would blow up rounding from layer to layer.
        power = channels.square().mean(1)
        power = power.clamp_min(0.1 * float(power.mean()) or 1.0)
        mean.normal_(0, 0.1, generator=generator).mul_(power.sqrt())
        variance.uniform_(0.5, 1.5, generator=generator).mul_(power)

    norms = [module for module in model.modules() if hasattr(module, "running_var")]
    handles = [norm.register_forward_pre_hook(draw) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _says_nothing(parameter: Tensor) -> bool:
    """Return whether a parameter is constant, or so small that its layer does nothing."""
    flat = parameter.flatten()
    if flat.numel() == 0:
        return False
    if parameter.dim() >= 2 and float(flat[:1000].abs().max()) < TINY:
        return True
    return bool(flat[0] == flat[-1]) and bool((flat == flat[0]).all())


TINY = 1e-3
"""Some gated MLPs start with weights of this size."""


def _draw(name: str, parameter: Tensor, strength: float, generator: torch.Generator) -> None:
    value = float(parameter.flatten()[0])
    if "bias" in name:
        parameter.normal_(value, 0.1 * strength, generator=generator)
    elif parameter.dim() >= 2 and abs(value) < TINY and parameter[0].numel() > 1:
        parameter.normal_(0, strength * parameter[0].numel() ** -0.5, generator=generator)
    else:
        # A gain or a layer scale: those that start next to zero get a size that matters.
        size = strength if abs(value) <= 0.1 else value
        parameter.uniform_(0.5, 1.5, generator=generator).mul_(size)
