"""The deployed policy: one network for all images, or a cascade."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from ..budget import Cascade
from ..errors import ArgumentError
from ..graph import copied
from ..nn import GateController


class Policy(NamedTuple):
    """Networks, and how they are asked.

    Attributes:
        name: "network" or "cascade".
        networks: copies on the CPU, from the cheapest to the largest.
        thresholds: one less than networks.
        confidence: "margin" or "entropy".
        mean: whether the probabilities of all networks asked are averaged.
    """

    name: str
    networks: tuple[nn.Module, ...]
    thresholds: tuple[float, ...] = ()
    confidence: str = "margin"
    mean: bool = False


def policy_of(model: nn.Module) -> Policy:
    """Return the policy that a model is deployed as.

    Raises:
        ArgumentError: for gates, or a cascade that decides by a function.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"deploy({type(model).__name__}): give a frozen network, a level or a cascade."
        )
    if any(isinstance(module, GateController) for module in model.modules()):
        raise ArgumentError(
            f"deploy({type(model).__name__}): has gates, which engines run no faster than the "
            "dense network. Give freeze(model, path), a level, or Cascade.fit(model, loader); for "
            "single images, deployment.write_gated tries it and tells both times."
        )
    own = copied(model).cpu()
    if not isinstance(own, Cascade):
        return Policy("network", (own,))
    if not isinstance(own.confidence, str):
        raise ArgumentError(
            "deploy(Cascade): it decides by a function of your own, which no engine has; fit it "
            "with confidence='margin' or 'entropy'."
        )
    networks = tuple(own.networks)
    return Policy("cascade", networks, tuple(own.thresholds.tolist()), own.confidence, own.mean)
