"""The settings of a conversion: frozen, validated, with a JSON round trip."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..errors import ArgumentError
from ..text import shown

MOST_SEED = 2**32 - 1
"""As NumPy's; PyTorch takes more."""


SPLITS = ("matched", "exact", "nested")


TAIL_NORMS = ("per-sub-block", "shared")


ORDERS = ("source", "importance")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ArgumentError(message)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: object) -> bool:
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        return False
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require_sub_blocks(N: object) -> None:
    if not isinstance(N, dict):
        _require(
            _is_count(N),
            f"dynamize(N={N!r}): the number of sub-blocks is an int >= 1, usually 2, 3 or 4, or a "
            'mapping such as {"layer2.*": 2, "layer3.*": 4}.',
        )
        return
    for key, value in N.items():
        _require(
            isinstance(key, str) and (_is_count(value) or (value == 0 and type(value) is int)),
            f"dynamize(N={{{key!r}: {value!r}}}): give names or patterns of blocks, each with an "
            "int >= 1, or with 0 for blocks that stay dense.",
        )
    _require(any(N.values()), f"dynamize(N={N!r}): leaves every block dense; give one a number.")


def _known(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    names = {entry.name for entry in fields(cls)}
    unknown = sorted(set(values) - names)
    _require(not unknown, f"{cls.__name__}: unknown fields {unknown}; known are {sorted(names)}.")
    return dict(values)


@dataclass(frozen=True)
class GateConfig:
    """The shape and the initial state of the gate controllers.

    Attributes:
        hidden: width d of the controllers' hidden state (eq. 6).
        tau: temperature of the Gumbel-softmax.
        init_rate: probability, at initialisation, that a sub-block runs in training.
        certainty: probability at which a block's first sub-blocks start instead; the last ones
            start at one minus that, and the mean is `init_rate` (see `start_rates`), which gives
            gates something to choose between. 0 starts all alike.
        chained: whether each controller reads the previous one's state (eq. 7).
        normalized: whether a controller's pooled input is normalised over the batch (in evaluation,
            by running statistics). The differences between images are then not drowned by what they
            have in common. Not the paper's.
        spread: standard deviation over the batch to which each sub-block's on-margin is normalised,
            in nats. No sub-block then runs for all images or for none. 0 gives the paper's gates,
            which may. Evaluation uses running statistics, which training has to fill.
    """

    hidden: int = 32
    tau: float = 1.0
    init_rate: float = 0.9
    chained: bool = True
    normalized: bool = False
    spread: float = 0.0
    certainty: float = 0.0

    def __post_init__(self) -> None:
        _require(_is_count(self.hidden), f"GateConfig(hidden={self.hidden!r}): give an int >= 1.")
        _require(
            _is_number(self.tau) and math.isfinite(self.tau) and self.tau > 0,
            f"GateConfig(tau={self.tau!r}): the temperature is a finite number > 0.",
        )
        _require(
            _is_number(self.init_rate) and 0 < self.init_rate < 1,
            f"GateConfig(init_rate={self.init_rate!r}): a probability strictly between 0 and 1; "
            "use 0.99 for nearly always on.",
        )
        _require(
            _is_number(self.spread) and math.isfinite(self.spread) and self.spread >= 0,
            f"GateConfig(spread={self.spread!r}): a finite number >= 0; 0 for the paper's gates.",
        )
        _require(
            _is_number(self.certainty) and (self.certainty == 0 or 0.5 < self.certainty < 1),
            f"GateConfig(certainty={self.certainty!r}): a probability strictly between 0.5 and 1; "
            "0 to start all sub-blocks alike.",
        )
        for name in ("chained", "normalized"):
            value = getattr(self, name)
            _require(isinstance(value, bool), f"GateConfig({name}={value!r}): give True or False.")


@dataclass(frozen=True)
class DynamizeConfig:
    """Everything that `dynamize` needs besides the model to repeat a conversion.

    Attributes:
        N: number of sub-blocks per block; or, by block (see `dynamize`), different numbers.
        split: "matched" (the paper's), "exact" or "nested".
        gate: the controllers.
        input_size: shape of one image, without the batch dimension, e.g. (C, H, W).
        blocks: names of the blocks to convert; None stands for every block that a split fits.
        num_categories: classes of the training-time category heads; None for no heads.
        tail_norm: place of a block's last batch norm: "per-sub-block" or "shared".
        order: order in which sub-blocks get hidden channels: "source", or "importance", which gives
            the most important ones to the first sub-block.
    """

    N: int | Mapping[str, int] = field(default=2, hash=False)
    split: str = "matched"
    gate: GateConfig = field(default_factory=GateConfig)
    input_size: tuple[int, ...] = (3, 224, 224)
    blocks: tuple[str, ...] | None = None
    num_categories: int | None = None
    tail_norm: str = "per-sub-block"
    order: str = "source"

    def __post_init__(self) -> None:
        if isinstance(self.N, Mapping):
            object.__setattr__(self, "N", dict(self.N))
        _require_sub_blocks(self.N)
        _require(
            self.split in SPLITS,
            f"dynamize(split={self.split!r}): choose one of {', '.join(map(repr, SPLITS))}.",
        )
        _require(
            isinstance(self.gate, GateConfig),
            f"dynamize(gate={self.gate!r}): give a GateConfig.",
        )
        size = self.input_size
        _require(
            isinstance(size, tuple | list) and 1 <= len(size) <= 4 and all(map(_is_count, size)),
            f"dynamize(input_size={shown(size)}): give the shape of one image, e.g. (3, 224, 224).",
        )
        object.__setattr__(self, "input_size", tuple(size))
        blocks = self.blocks
        named = isinstance(blocks, tuple | list) and all(isinstance(b, str) for b in blocks)
        _require(
            blocks is None or named,
            f"dynamize(blocks={blocks!r}): give the blocks' names, or None for all.",
        )
        object.__setattr__(self, "blocks", None if blocks is None else tuple(blocks))
        _require(
            self.num_categories is None or _is_count(self.num_categories),
            f"dynamize(num_categories={self.num_categories!r}): give an int >= 1, or None.",
        )
        _require(
            self.tail_norm in TAIL_NORMS,
            f"dynamize(tail_norm={self.tail_norm!r}): choose one of "
            f"{', '.join(map(repr, TAIL_NORMS))}.",
        )
        _require(
            self.order in ORDERS,
            f"dynamize(order={self.order!r}): choose one of {', '.join(map(repr, ORDERS))}.",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DynamizeConfig:
        """Rebuild from `to_dict`'s output, also after a trip through JSON.

        Raises:
            ArgumentError: for unknown fields or values out of range.
        """
        known = _known(cls, values)
        if isinstance(known.get("gate"), Mapping):
            known["gate"] = GateConfig(**_known(GateConfig, known["gate"]))
        return cls(**known)
