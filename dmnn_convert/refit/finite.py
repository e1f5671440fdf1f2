"""The check that what was seen of a network's images is finite."""

from __future__ import annotations

from torch import Tensor

from ..errors import ArgumentError


def check_finite(what: str, *values: Tensor) -> None:
    """Check that values are finite in float32.

    Raises:
        ArgumentError: if they are not; it begins with `what` they are.
    """
    if not all(value.float().isfinite().all() for value in values):
        raise ArgumentError(
            f"{what} are not finite: look for NaN or infinite values in the images, or in the "
            "network's weights."
        )
