"""The total loss: category, resource and classification (eq. 16)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, GateMismatchError
from ..flops import FlopsTable
from ..foreign import TakeLogits, logits_in, logits_of
from ..nn import Paths
from .category import category_loss, check_labels, stage_weights
from .resource import check_target, resource_loss


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
        check_target(target, "DMNNLoss")
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
            check_labels(labels, len(self.categories), call)
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
