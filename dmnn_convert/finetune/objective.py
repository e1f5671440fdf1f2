"""The objective that a step minimises: eq. 16, and the options that are not the paper's."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..categories import Categories
from ..errors import ArgumentError
from ..flops import FlopsTable
from ..loss import category_terms, global_rates, over_all_processes, resource_loss, stage_weights
from ..nn import Paths
from .recipe import Recipe
from .schedule import GatePhase


class Losses(NamedTuple):
    """The total and its unweighted parts, scalars; parts that are not asked for are zero."""

    total: Tensor
    classification: Tensor
    distillation: Tensor
    resource: Tensor
    category: Tensor
    diversity: Tensor
    shaping: Tensor
    levels: Tensor


class Objective:
    """The losses of one step.

    timm's distillation tasks want models that carry timm's configuration; this works for any.

    Args:
        recipe: weights and temperatures.
        table: the converted model's FLOPs table.
        categories: big category of each class; None for no category supervision.
    """

    def __init__(
        self,
        recipe: Recipe,
        table: FlopsTable | None,
        categories: Categories | None = None,
    ) -> None:
        self.recipe, self.table = recipe, table
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
            phase: what holds for the gates.
            taught: the teacher's logits; None for no distillation.
        """
        recipe, none = self.recipe, logits.new_zeros((), dtype=torch.float32)
        logits = logits.float()
        classification = F.cross_entropy(logits, targets, label_smoothing=recipe.smoothing)
        distillation = none if taught is None else self._distillation(logits, taught)
        total = (1 - recipe.alpha) * classification + recipe.alpha * distillation
        if paths is None or self.table is None:
            return Losses(total, classification, distillation, *[none] * 5)
        # Every controller has a gradient, if only of zero, so that DDP misses none.
        total = total + sum(0.0 * part.sum() for part in paths.gate_logits)
        resource = none if phase.open else self._resource(paths, self.table, phase.target)
        category = none if self.labels is None else self._category(targets, paths)
        diverse, shaped = (
            weight > 0 and not phase.open for weight in (recipe.diversity, recipe.shaping)
        )
        diversity = mutual_information(paths) if diverse else none
        shaping = batch_shaping(paths, phase.target) if shaped else none
        total = total + recipe.resource * resource + recipe.category * category
        total = total - recipe.diversity * diversity + recipe.shaping * shaping
        parts = (classification, distillation, resource, category, diversity, shaping)
        return Losses(total, *parts, levels=none)

    def _distillation(self, logits: Tensor, taught: Tensor) -> Tensor:
        T = self.recipe.distill_temperature
        ours, theirs = (F.log_softmax(x.float() / T, -1) for x in (logits, taught))
        return T * T * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)

    def _resource(self, paths: Paths, table: FlopsTable, target: float) -> Tensor:
        if self.recipe.rates == "block":
            return resource_loss(paths, table, target)
        rates, flops_ratio = global_rates(paths, table)
        loss = (flops_ratio - target).square()
        if self.recipe.rates == "network":
            loss = loss + (rates.mean() - target).square()
        return loss

    def _category(self, targets: Tensor, paths: Paths) -> Tensor:
        if self.labels is None:
            raise ArgumentError("Objective: there are no categories to supervise by.")
        # Of a mixture of two images the category is that of the larger part.
        classes = targets.argmax(1) if targets.dim() > 1 else targets
        self.labels = self.labels.to(classes.device)  # moves them once
        return category_terms(paths, self.labels[classes], self.weights)


def mutual_information(paths: Paths) -> Tensor:
    """Return what each gate tells about the image, in nats, averaged over all gates: a scalar.

    With p the probability that a sub-block runs for an image, this is H(mean p) - mean H(p): zero
    for gates that do the same for every image, ln 2 for those that are sure of each image and run
    for half of them. Not the paper's.
    """
    logits = torch.cat(paths.gate_logits, 1).float()
    p = logits.softmax(-1)[..., 1]
    sums = over_all_processes(
        torch.cat([p.sum(0), _entropy(p).sum(0), p.new_tensor([float(len(p))])])
    )
    mean, unsure = (sums[:-1] / sums[-1].detach()).chunk(2)
    return (_entropy(mean) - unsure).mean()


def batch_shaping(paths: Paths, target: float) -> Tensor:
    """Return how far gates are from running for a share of the images, and surely, a scalar.

    Over a batch, the execution probabilities of one gate, in ascending order, should be zero for
    the first images and one for a share `target` of them: the mean squared distance from that,
    which is the Wasserstein distance to a Bernoulli prior. (Bejnordi et al. 2020 match a Beta prior
    by its distribution function.) In a distributed run, the batch is the process's own.
    """
    p = torch.cat(paths.gate_logits, 1).float().softmax(-1)[..., 1]
    ranks = torch.arange(len(p), device=p.device)
    prior = (ranks >= round((1 - target) * len(p))).to(p.dtype)
    return (p.sort(0).values - prior[:, None]).square().mean()


def _entropy(p: Tensor) -> Tensor:
    p = p.clamp(1e-6, 1 - 1e-6)
    return -(p * p.log() + (1 - p) * (1 - p).log())
