"""The deployed policy: one network for all images, a cascade, or gates."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from ..budget import Cascade
from ..errors import ArgumentError
from ..graph import copied
from ..nn import GateController
from ..runtime import NotExported

GATED = "gated network"


class Policy(NamedTuple):
    """Networks, and how they are asked.

    Attributes:
        name: "network", "cascade" or "gated network".
        networks: copies on the CPU, from the cheapest to the largest; with gates, the model.
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
        ArgumentError: for a cascade of networks with gates, or one that decides by a function.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"deploy({type(model).__name__}): give a frozen network, a level, a cascade or a "
            "converted network."
        )
    if any(isinstance(module, NotExported) for module in model.modules()):
        raise ArgumentError(
            f"deploy({type(model).__name__}): is prepared for this machine, and has no weights to "
            "write; deploy the model that it was made from."
        )
    own = copied(model).cpu()
    gated = any(isinstance(module, GateController) for module in model.modules())
    if not isinstance(own, Cascade):
        return Policy(GATED if gated else "network", (own,))
    if gated:
        raise ArgumentError(
            "deploy(Cascade): its networks have gates; make it of plain ones: "
            "Cascade.fit(model, loader), or freeze(network, path)."
        )
    if not isinstance(own.confidence, str):
        raise ArgumentError(
            "deploy(Cascade): it decides by a function of your own, which no engine has; fit it "
            "with confidence='margin' or 'entropy'."
        )
    networks = tuple(own.networks)
    return Policy("cascade", networks, tuple(own.thresholds.tolist()), own.confidence, own.mean)
