"""The losses: resource (eq. 11-15), category (eq. 9, 10) and their total (eq. 16)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .distributed import place, summed
from .errors import ArgumentError, GateMismatchError
from .flops import FlopsTable
from .logits import TakeLogits, logits_in, logits_of
from .nn import Paths


def _check_target(target: float, call: str) -> None:
    if isinstance(target, bool) or not isinstance(target, int | float) or not 0 < target <= 1:
        raise ArgumentError(
            f"{call}(target={target!r}): the target is the share of gated FLOPs to keep, in (0, 1]."
        )


def execution_loss(rates: Tensor, target: float) -> Tensor:
    """Return Σ_l (target − z_l)² for execution rates z (L,) (eq. 12)."""
    return (target - rates).square().sum()


def resource_loss(paths: Paths, table: FlopsTable, target: float) -> Tensor:
    """Return the resource-constrained loss, execution rates plus FLOPs, a scalar (eq. 11-15).

    In a distributed run, rates and FLOPs are those of all processes' images together.

    Args:
        paths: the record of the batch by `record_paths`.
        table: the model's FLOPs table.
        target: the share r of the gated FLOPs to keep, in (0, 1]; the paper's e = r.

    Raises:
        ArgumentError: if the target is outside (0, 1].
        GateMismatchError: if paths and table belong to different models.
        RecordingError: if nothing was recorded.

    Example:
        >>> with record_paths(model.train()) as paths:
        ...     logits = model(images)
        >>> resource_loss(paths, table, target=0.5).backward()
    """
    _check_target(target, "resource_loss")
    rates, flops_ratio = global_rates(paths, table)
    loss: Tensor = execution_loss(rates, target) + (flops_ratio - target).square()
    return loss


def global_rates(paths: Paths, table: FlopsTable) -> tuple[Tensor, Tensor]:
    """Return execution rates (L,) and the gated FLOPs ratio of all processes' images together.

    Raises:
        GateMismatchError: if paths and table belong to different models.
        RecordingError: if nothing was recorded.
    """
    if paths.sizes != table.sizes:
        raise GateMismatchError(
            f"resource_loss: the paths have blocks of {list(paths.sizes)} sub-blocks, the table "
            f"of {list(table.sizes)}: they belong to different models."
        )
    gates = paths.gates
    executed, flops = gates.sum(0), table.flops(gates).sum().to(gates.dtype)
    images = gates.new_tensor([float(len(gates))])
    sums = over_all_processes(torch.cat([executed, flops[None] / table.gated, images]))
    *_, images_everywhere = sums
    per_image = sums / images_everywhere.detach()
    rates = torch.stack([part.mean() for part in per_image[:-2].split(paths.sizes)])
    return rates, per_image[-2]


def over_all_processes(sums: Tensor) -> Tensor:
    """Add up over all processes, differentiably.

    Every process then has the whole batch's loss. The gradient of the sum arrives once for every
    process and DistributedDataParallel averages over them. The result is the gradient of a single
    process with the whole batch.
    """
    if place()[1] == 1:
        return sums
    total: Tensor = _SumOverProcesses.apply(sums)
    return total


class _SumOverProcesses(torch.autograd.Function):
    # PyTorch's own differentiable all_reduce is deprecated, and its replacement is private.

    @staticmethod
    def forward(ctx: Any, sums: Tensor) -> Tensor:
        return summed(sums)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return summed(gradient)


def stage_weights(table: FlopsTable, first: float = 1e-4, factor: float = 10.0) -> list[float]:
    """Return the paper's category-loss weight of each block: `first` × `factor` ^ stage.

    The paper has four stages, of which the last has 1e-1; further ones have that, too.

    Example:
        >>> stage_weights(table)  # two blocks of the first stage
        [0.0001, 0.0001]
    """
    return [first * factor ** min(stage, _LAST_STAGE) for stage in table.stages]


_LAST_STAGE = 3


def category_loss(paths: Paths, labels: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the weighted sum of the controllers' cross-entropies, a scalar (eq. 9, 10).

    Args:
        paths: the record by `record_paths` in training, of a model with category heads.
        labels: big-category label of each image, (B,); or its share of each category, (B, K).
        weights: weight of each block; `stage_weights` gives the paper's.

    Raises:
        ArgumentError: if the weights do not fit the blocks, or labels the heads' classes.
        RecordingError: if no category logits were recorded.

    Example:
        >>> net, table = dynamize(Net(), input_size=(3, 16, 16), num_categories=2)
        >>> with record_paths(net.train()) as paths:
        ...     logits = net(images)
        >>> loss = category_loss(paths, labels % 2, stage_weights(table))
    """
    logits = paths.category_logits
    if len(weights) != len(logits):
        raise ArgumentError(
            f"category_loss: {len(weights)} weights for {len(logits)} blocks; give one for each."
        )
    _check_labels(labels, logits[0].shape[-1], "category_loss")
    return category_terms(paths, labels, weights)


def category_terms(paths: Paths, labels: Tensor, weights: Sequence[float]) -> Tensor:
    """Return `category_loss` of checked arguments, without waiting for the device."""
    logits = paths.category_logits
    losses = [w * F.cross_entropy(x, labels) for w, x in zip(weights, logits, strict=True)]
    return torch.stack(losses).sum()


def _check_labels(labels: Tensor, classes: int, call: str) -> None:
    if labels.is_floating_point():
        if labels.dim() != 2 or labels.shape[1] != classes:
            raise ArgumentError(
                f"{call}: soft labels {tuple(labels.shape)}, but there are {classes} categories; "
                f"give shares (B, {classes}), or integers (B,)."
            )
        return
    if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
        raise ArgumentError(
            f"{call}: labels from {int(labels.min())} to {int(labels.max())}, but there are "
            f"{classes} categories, numbered from 0."
        )


class LossParts(NamedTuple):
    """The total loss and its unweighted parts, scalars."""

    total: Tensor
    classification: Tensor
    resource: Tensor
    category: Tensor


class DMNNLoss(nn.Module):
    """α1 · category + α2 · resource + α3 · classification loss (eq. 16).

    Args:
        table: the model's FLOPs table.
        target: the share r of the gated FLOPs to keep, in (0, 1].
        categories: big category of each class, (number of classes,); None for no category loss.
        category_weights: weight of each block's category loss; None for the paper's.
        classification: any loss of (logits, labels); None for cross-entropy.
        logits: key or field of the logits in what the model returns, or a function that takes them
            out of it; None for logits as they are, or under "logits".
        alphas: α1, α2, α3 of the category, resource and classification losses.

    Raises:
        ArgumentError: for a target outside (0, 1].

    Example:
        >>> loss = DMNNLoss(table, target=0.5)
        >>> with record_paths(model.train()) as paths:
        ...     logits = model(images)
        >>> loss(logits, labels, paths).backward()
    """

    def __init__(
        self,
        table: FlopsTable,
        *,
        target: float,
        categories: Sequence[int] | Tensor | None = None,
        category_weights: Sequence[float] | None = None,
        classification: nn.Module | None = None,
        alphas: tuple[float, float, float] = (1.0, 1.0, 1.0),
        logits: TakeLogits = None,
    ) -> None:
        super().__init__()
        _check_target(target, "DMNNLoss")
        self.table, self.target, self.alphas = table, target, alphas
        chosen = stage_weights(table) if category_weights is None else category_weights
        self.category_weights = [float(weight) for weight in chosen]
        self.classification = classification or nn.CrossEntropyLoss()
        self.logits = logits
        self.categories: Tensor | None
        given = None if categories is None else torch.as_tensor(categories, dtype=torch.long)
        self.register_buffer("categories", given, persistent=False)

    def forward(self, output: Any, labels: Tensor, paths: Paths) -> Tensor:
        """Return the total loss; see `parts`."""
        return self.parts(output, labels, paths).total

    def parts(self, output: Any, labels: Tensor, paths: Paths) -> LossParts:
        """Return the total loss with its parts.

        Args:
            output: logits (B, classes), or an output that holds them.
            labels: class of each image (B,), or its share of each class (B, classes), as mixup and
                distillation make them.
            paths: the record of the batch by `record_paths`.

        Raises:
            ArgumentError: for a label outside the category map, or no paths.
            GateMismatchError: if the paths are not those of these logits.
        """
        if not isinstance(paths, Paths):
            raise ArgumentError(
                f"DMNNLoss: got {type(paths).__name__} for the paths; give what was recorded of "
                "the forward pass: with record_paths(model) as paths: output = model(images)."
            )
        logits = logits_in(output, self.logits)
        if not isinstance(logits, Tensor) and isinstance(self.classification, nn.CrossEntropyLoss):
            logits = logits_of(output, len(labels), "DMNNLoss", self.logits)
        if len(paths.gates) != len(logits):
            raise GateMismatchError(
                f"DMNNLoss: logits of {len(logits)} images, but the paths of {len(paths.gates)}. "
                "Record one forward pass at a time: a new `with record_paths(model)` for each."
            )
        if self.categories is not None:
            call = "DMNNLoss (labels against the category map)"
            _check_labels(labels, len(self.categories), call)
        classification: Tensor = self.classification(logits, labels)
        resource = resource_loss(paths, self.table, self.target)
        category = (
            self._category(labels, paths)
            if self.categories is not None
            else (classification.new_zeros(()))
        )
        a1, a2, a3 = self.alphas
        total = a1 * category + a2 * resource + a3 * classification
        return LossParts(total, classification, resource, category)

    def _category(self, labels: Tensor, paths: Paths) -> Tensor:
        if self.categories is None:
            raise ArgumentError("DMNNLoss: no categories were given.")
        if not labels.is_floating_point():
            return category_loss(paths, self.categories[labels], self.category_weights)
        heads = paths.category_logits[0].shape[-1]
        shares = labels.new_zeros(len(labels), heads).index_add(1, self.categories, labels)
        return category_loss(paths, shares, self.category_weights)
