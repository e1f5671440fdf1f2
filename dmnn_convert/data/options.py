"""The options that data sets, transforms and loaders read."""

from __future__ import annotations

from typing import Protocol


class DataOptions(Protocol):
    """The options about data of a recipe, or of whatever stands in for one."""

    @property
    def input_size(self) -> int | None: ...

    @property
    def data(self) -> str | None: ...

    @property
    def dataset(self) -> str: ...

    @property
    def crop(self) -> str: ...

    @property
    def flip(self) -> bool: ...

    @property
    def auto_augment(self) -> str | None: ...

    @property
    def erase(self) -> float: ...

    @property
    def mean(self) -> tuple[float, ...]: ...

    @property
    def std(self) -> tuple[float, ...]: ...

    @property
    def on_bad_image(self) -> str: ...

    @property
    def held_out(self) -> float: ...

    @property
    def workers(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def seed(self) -> int: ...
