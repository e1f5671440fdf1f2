"""Gates that differ from image to image from the start. Not the paper's.

A new controller decides alike for every image, and the cheapest way to a FLOPs target is then to
keep it so: some sub-blocks always run, the others never do, and the network is a pruned one that
wears gates. `diversify` gives each gate a direction of its own in which to tell images apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ArgumentError
from .force import force_gates
from .gate import GateController, controllers
from .probe import device_of, image_batches, in_evaluation
from .processes import gathered, summed

_RIDGE = 0.01
"""What is added to the hidden states' variances, as a share of their mean: some may be dead."""


def diversify(
    model: nn.Module,
    loader: Iterable[Any],
    batches: int = 8,
    *,
    spread: float = 2.0,
    rate: float = 0.9,
    seed: int = 0,
    progress: bool = False,
) -> None:
    """Let the controllers' decisions vary over images, in place; do it before training.

    Each gate's on-margin becomes a random projection of the controller's whitened hidden state,
    with a mean of logit(`rate`) and a standard deviation of `spread` over the given images, all
    gates on. The last layer of each controller is rewritten and nothing else.

    In a distributed run every process must call it with its own share of the images, and all of
    them end with what the images of all processes together make of the model.

    Args:
        model: a converted model.
        loader: yields images (B, C, H, W), or tuples that begin with them; training images.
        batches: how many batches to look at.
        spread: standard deviation of the on-margin over images, in nats.
        rate: execution probability of an image whose margin is the mean one, in (0, 1).
        seed: of the random projections.
        progress: whether to show a bar.

    Raises:
        ArgumentError: if the model is not converted, the loader is empty, or a number is out of
            range.
    """
    if not (math.isfinite(spread) and spread > 0 and 0 < rate < 1):
        raise ArgumentError(
            f"diversify(spread={spread!r}, rate={rate!r}): give a spread > 0 and a rate between 0 "
            "and 1."
        )
    found = controllers(model)
    seen = _HiddenStates(len(found))
    device = device_of(model)
    recording = found[0].chain.recording(seen)
    with in_evaluation(model, "masked"), recording, force_gates(model, True):
        for images in image_batches(loader, batches, "diversify", progress=progress):
            model(images.to(device))
    if not summed(torch.tensor(float(len(seen.states[0])))):
        raise ArgumentError("diversify: the loader gave no batch; give some training images.")
    generator = torch.Generator().manual_seed(seed)
    for controller, states in zip(found, seen.states, strict=True):
        everywhere = gathered(states, torch.empty(0, controller.w3.in_features), device)
        _project(controller, everywhere, spread, math.log(rate / (1 - rate)), generator)


class _HiddenStates:
    """Records what each controller's last layer reads."""

    def __init__(self, blocks: int) -> None:
        self.states: list[list[Tensor]] = [[] for _ in range(blocks)]

    def add(
        self,
        position: int,
        gates: Tensor,
        category_logits: Tensor | None,
        gate_logits: Tensor,
        hidden: Tensor,
    ) -> None:
        self.states[position].append(hidden.cpu())


def _project(
    controller: GateController,
    states: Tensor,
    spread: float,
    margin: float,
    generator: torch.Generator,
) -> None:
    """Make the on-margins random projections of hidden states (B, d)."""
    states = states.double()
    mean = states.mean(0)
    centred = states - mean
    covariance = centred.T @ centred / len(states)
    ridge = _RIDGE * covariance.diagonal().mean() + torch.finfo(torch.float64).tiny
    values, vectors = torch.linalg.eigh(covariance + ridge * torch.eye(len(covariance)))
    drawn = torch.randn(len(mean), controller.N, generator=generator, dtype=torch.float64)
    directions = vectors @ (drawn / values.sqrt()[:, None])
    deviation = (centred @ directions).std(0).clamp_min(torch.finfo(torch.float32).tiny)
    weight = (spread * directions / deviation).T
    bias = margin - weight @ mean
    with torch.no_grad():
        # Of each pair (off, on), half of the margin goes to either.
        controller.w3.weight.copy_(torch.stack([-weight, weight], 1).flatten(0, 1) / 2)
        controller.w3.bias.copy_(torch.stack([-bias, bias], 1).flatten() / 2)
