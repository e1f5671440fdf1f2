"""Ridge regression: the smallest change of a linear map that fits its targets."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..distributed import summed
from .finite import check_finite


class Change(NamedTuple):
    """The change of the weights (K, C) and of the constant (C,), and its effect.

    `before` and `after` are the relative errors ‖x·weights + constant − y‖ / ‖y‖.
    """

    weights: Tensor
    constant: Tensor
    before: float
    after: float


class LeastSquares:
    """Normal equations in float64, of K + 1 columns, added up over any number of rows.

    Args:
        weights: the present map, (K, C).
        constant: its present constant, (C,).
        free: whether the constant may change too.
    """

    def __init__(self, weights: Tensor, constant: Tensor, *, free: bool) -> None:
        self.weights, self.constant, self.free = weights.double(), constant.double(), free
        columns, outputs = self.weights.shape
        self.gram = self.weights.new_zeros(columns + 1, columns + 1)
        self.right = self.weights.new_zeros(columns + 1, outputs)
        self.lost, self.norm = 0.0, 0.0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add equations: rows x (R, K) should give y (R, C)."""
        x, y = x.double(), y.double()
        rest = y - x @ self.weights - self.constant
        x = torch.cat([x, torch.full_like(x[:, :1], float(self.free))], 1)
        self.gram += x.T @ x
        self.right += x.T @ rest
        self.lost += float(rest.square().sum())
        self.norm += float(y.square().sum())

    def add_up(self) -> None:
        """Add the equations of all processes; all must call it.

        Raises:
            ArgumentError: if a value is not finite, because no weights would be.
        """
        self.gram, self.right = summed(self.gram), summed(self.right)
        self.lost, self.norm = summed(self.gram.new_tensor([self.lost, self.norm])).tolist()
        check_finite("the values that a block is given or returns", self.gram, self.right)

    def solve(self, ridge: float) -> Change:
        """Return the change with the least error, regularised by `ridge`.

        Args:
            ridge: relative to the mean square of the columns.
        """
        squares = self.gram.diagonal()[:-1]
        tiny = torch.finfo(squares.dtype).tiny
        held = torch.full_like(self.gram[0], ridge * float(squares.mean()) + tiny)
        held[-1] = 0.0 if self.free else 1.0
        change = torch.linalg.solve(self.gram + held.diag(), self.right)
        gained = 2 * (change * self.right).sum() - (change * (self.gram @ change)).sum()
        norm = max(self.norm, tiny)
        left = max(self.lost - float(gained), 0.0)
        return Change(change[:-1], change[-1], (self.lost / norm) ** 0.5, (left / norm) ** 0.5)
