"""Cascades: a cheap network for every image, larger ones for those it is unsure about."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from . import rows
from .confidence import Confidence, answer_of, checked_confidence, confidence_in
from .exits import tell
from .fit import Fitted, fit_cascade
from .level import Level

C = TypeVar("C", bound="Cascade")


class Cascade(nn.Module):
    """Ask networks from the cheapest to the largest, until one is sure of its answer.

    An image costs all the networks that it asks. It gets the same answer alone and in a batch.
    (Cascades of networks by their own confidence: Wang et al., "Wisdom of Committees", ICLR 2022.)

    Attributes:
        networks: the networks, of the same classes.
        thresholds: (networks - 1,) float32; an answer of less confidence goes to the next network.
        confidence: "margin" (largest minus second largest probability), "entropy", or a function of
            an answer that returns one number per image.
        mean: whether an image's answer is the mean probabilities of all networks that it asked.
        fitted: its figures on held-out images; None if it was not fitted.

    Args:
        networks: from the cheapest to the largest. They return logits, or outputs with "logits",
            which the cascade then returns; or anything that the user's function understands.
        thresholds: one less than networks.
        confidence: see above.
        mean: see above; for logits only.

    Raises:
        ArgumentError: for fewer than two networks, or thresholds that do not fit.

    Example:
        >>> cascade = Cascade.fit(model, held_out, levels=(0.25, 1.0), flops_ratio=0.9)
        >>> with record_exits(cascade) as exits:
        ...     logits = cascade(images)
        >>> exits.levels.shape
        torch.Size([32])
    """

    thresholds: Tensor

    def __init__(
        self,
        networks: Sequence[nn.Module],
        thresholds: Sequence[float],
        *,
        confidence: str | Confidence = "margin",
        mean: bool = False,
    ) -> None:
        super().__init__()
        if len(networks) < 2 or len(thresholds) != len(networks) - 1:
            raise ArgumentError(
                f"Cascade: {len(networks)} networks and {len(thresholds)} thresholds; give two "
                "networks or more, and a threshold for each but the last."
            )
        if any(math.isnan(t) for t in thresholds):
            raise ArgumentError(
                f"Cascade(thresholds={list(thresholds)}): NaN compares with no confidence; give "
                "numbers, or infinity for a network that is never sure."
            )
        self.networks = nn.ModuleList(networks)
        self.register_buffer("thresholds", torch.tensor(thresholds, dtype=torch.float32))
        self.confidence, self.mean = checked_confidence(confidence), mean
        self.fitted: Fitted | None = None
        self.eval()

    @classmethod
    def fit(
        cls: type[C],
        model: nn.Module | Sequence[nn.Module],
        loader: Iterable[Any],
        *,
        levels: Sequence[Level | Tensor] | None = (0.25, 1.0),
        flops_ratio: float = 0.6,
        confidence: str | Confidence = "margin",
        progress: bool = False,
    ) -> C:
        """Make the cascade that is right most often on held-out images at a budget of FLOPs.

        Thresholds spend the budget, unless less is better beyond chance.

        In a distributed run every process calls it with its own share of the images (`shard`), and
        every one gets the same thresholds.

        Args:
            model: a converted model, whose levels become the networks; or networks of the same
                classes, from the cheapest to the largest: frozen ones, the source, anybody's.
            loader: held-out images (B, C, H, W) with labels (B,), neither trained nor tested on.
            levels: of a converted model; None to choose the best pair of those with norm
                statistics, or else of all, or a triple if it is better beyond chance.
            flops_ratio: mean over the images, of all runs, over the FLOPs of the dense network (of
                the source of a conversion, or of the largest network given).
            confidence: "margin", "entropy", or a function of logits (B, K).
            progress: whether to show a bar.

        Raises:
            ArgumentError: for a budget below the cheapest network's FLOPs, networks or labels of
                different classes, a loader without labels, or answers that are not logits.
        """
        fitted = fit_cascade(model, loader, levels, flops_ratio, confidence, progress=progress)
        cascade = cls(fitted.networks, fitted.thresholds, confidence=confidence, mean=fitted.mean)
        cascade.fitted = fitted
        return cascade

    def forward(self, images: Any) -> Any:
        """Return the answers to images (B, C, H, W), or to a list of images."""
        _check_not_exported()
        number = rows.count(images)
        answer = answer_of(self.networks[0](rows.copied(images)), self.confidence)
        levels = torch.zeros(number, dtype=torch.long)
        asking = list(range(number))
        own, total = answer, _probabilities(answer) if self.mean else None
        for i, network in enumerate(self.networks[1:]):
            if not asking:
                break
            sure = confidence_in(own, self.confidence, len(asking))
            again = (sure < self.thresholds[i].to(sure.device)).nonzero().flatten().tolist()
            asking = [asking[row] for row in again]
            if not asking:
                break
            own = answer_of(network(rows.taken(images, asking)), self.confidence)
            levels[asking] = i + 1
            if total is not None:
                total = rows.taken(total, again) + _probabilities(own)
                answer = rows.put(answer, asking, (total / (i + 2)).log())
            else:
                answer = rows.put(answer, asking, own)
        tell(self, levels)
        return answer

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Keep the thresholds as they are when the dtype changes, as rounding would move them."""
        before = self.thresholds
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.thresholds.dtype != before.dtype:
            self.thresholds = before.to(self.thresholds.device)
        return self

    def __prepare_scriptable__(self) -> NoReturn:
        _refuse_export()

    def extra_repr(self) -> str:
        """Show the thresholds and the confidence."""
        sure = self.confidence if isinstance(self.confidence, str) else "a function"
        return f"thresholds={self.thresholds.tolist()}, confidence={sure!r}, mean={self.mean}"


def _check_not_exported() -> None:
    exporting = getattr(torch.compiler, "is_exporting", None)  # from PyTorch 2.7 on
    if torch._C._get_tracing_state() is not None or (exporting is not None and exporting()):
        _refuse_export()


def _refuse_export() -> NoReturn:
    raise ArgumentError(
        "a Cascade decides by its networks' answers, which no trace follows; write it with "
        "dmnn_convert.deploy(cascade, directory, images), or export each of cascade.networks."
    )


def _probabilities(logits: Any) -> Tensor:
    if not isinstance(logits, Tensor):
        raise ArgumentError(
            f"Cascade(mean=True): a network returned {type(logits).__name__}; only logits (B, "
            "classes) have a mean. Give mean=False."
        )
    return logits.float().softmax(-1)
