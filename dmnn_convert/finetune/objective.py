"""The loss of one step: eq. 16, distillation, and the losses of levels."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..categories import Categories
from ..errors import ArgumentError
from ..flops import FlopsTable
from ..loss import category_terms, global_rates, resource_loss, stage_weights
from ..nn import Paths
from .option_groups import GateOptions
from .schedule import GatePhase


class Losses(NamedTuple):
    """The total and its unweighted parts, scalars; unused parts are zero."""

    total: Tensor
    classification: Tensor
    distillation: Tensor
    resource: Tensor
    category: Tensor
    levels: Tensor


class Objective:
    """The losses of one step.

    timm's distillation tasks want models that carry timm's configuration; this works for any.

    Args:
        options: weights of the gates' losses.
        table: the converted model's FLOPs table.
        categories: big category of each class; None for no category supervision.
        smoothing: of the labels.
        alpha: weight of the teacher; 1 - alpha is the labels'.
        temperature: of the distillation.
    """

    def __init__(
        self,
        options: GateOptions,
        table: FlopsTable | None,
        categories: Categories | None = None,
        *,
        smoothing: float = 0.0,
        alpha: float = 0.0,
        temperature: float = 2.0,
    ) -> None:
        self.options, self.table = options, table
        self.smoothing, self.alpha, self.temperature = smoothing, alpha, temperature
        self.labels = None if categories is None else torch.tensor(categories.labels)
        self.weights = [] if table is None else stage_weights(table)

    def __call__(
        self,
        logits: Tensor,
        targets: Tensor,
        paths: Paths | None,
        phase: GatePhase,
        taught: Tensor | None = None,
    ) -> Losses:
        """Return the losses of logits (B, classes) for targets (B,) or (B, classes).

        Args:
            logits: the network's.
            targets: labels, or mixtures of them.
            paths: the gates that made the logits; None for a network without.
            phase: the gates' schedule at this step.
            taught: the teacher's logits; None for no distillation.
        """
        options, none = self.options, logits.new_zeros((), dtype=torch.float32)
        logits = logits.float()
        classification = F.cross_entropy(logits, targets, label_smoothing=self.smoothing)
        distillation = none if taught is None else self._distillation(logits, taught)
        total = (1 - self.alpha) * classification + self.alpha * distillation
        if paths is None or self.table is None:
            return Losses(total, classification, distillation, *[none] * 3)
        # Every controller has a gradient, if only of zero, so that DDP misses none.
        total = total + sum(0.0 * part.sum() for part in paths.gate_logits)
        resource = none if phase.open else self._resource(paths, self.table, phase.target)
        category = none if self.labels is None else self._category(targets, paths)
        total = total + options.resource * resource + options.category * category
        return Losses(total, classification, distillation, resource, category, levels=none)

    def _distillation(self, logits: Tensor, taught: Tensor) -> Tensor:
        T = self.temperature
        ours, theirs = (F.log_softmax(x.float() / T, -1) for x in (logits, taught))
        return T * T * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)

    def _resource(self, paths: Paths, table: FlopsTable, target: float) -> Tensor:
        if self.options.rates == "block":
            return resource_loss(paths, table, target)
        rates, flops_ratio = global_rates(paths, table)
        loss = (flops_ratio - target).square()
        if self.options.rates == "network":
            loss = loss + (rates.mean() - target).square()
        return loss

    def _category(self, targets: Tensor, paths: Paths) -> Tensor:
        if self.labels is None:
            raise ArgumentError("Objective: there are no categories to supervise by.")
        # Of a mixture of two images the category is that of the larger part.
        classes = targets.argmax(1) if targets.dim() > 1 else targets
        self.labels = self.labels.to(classes.device)  # moves them once
        return category_terms(paths, self.labels[classes], self.weights)
