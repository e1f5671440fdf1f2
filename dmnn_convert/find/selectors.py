"""Selectors: the language in which `where=` and a mapping `N` choose blocks.

Both speak of blocks by selectors: a name or pattern ("layer[34].*"), "kind:bottleneck",
"stage:2-4" or "depth:3-"; a leading "!" stands for all blocks but these.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from ..errors import ArgumentError
from .block import Block

Where = Callable[[Block], bool] | Iterable[str] | None


class SelectedBlock(NamedTuple):
    """A block that is to be converted.

    Attributes:
        block: the block.
        N: its number of sub-blocks.
        by_name: whether the user gave its own name; leaving it dense is then an error.
    """

    block: Block
    N: int
    by_name: bool = False


def select(found: Sequence[Block], where: Where, N: int | Mapping[str, int]) -> list[SelectedBlock]:
    """Return the blocks to convert, in execution order; `found` is what `find_blocks` returned.

    Raises:
        ArgumentError: for selectors that make no sense or select nothing.
    """
    usable = [block for block in found if block.reason is None]
    texts = where if where is None or callable(where) else _texts(where)
    selected = _selected(found, texts)
    sizes = sub_blocks(found, N)
    chosen = [block for block in usable if block.name in selected and sizes.get(block.name)]
    if not chosen:
        got = "..." if callable(texts) else repr(texts)
        raise ArgumentError(f"dynamize(where={got}, N={N!r}): selects none. {_overview(usable)}")
    named = {*(texts if isinstance(texts, list) else ()), *(N if isinstance(N, Mapping) else ())}
    return [SelectedBlock(block, sizes[block.name], block.name in named) for block in chosen]


def sub_blocks(found: Sequence[Block], N: int | Mapping[str, int]) -> dict[str, int]:
    """Return the number of sub-blocks by block, as `N` says; other blocks stay dense.

    A block's own name takes precedence over other selectors, which apply in the order given.

    Raises:
        ArgumentError: for a selector that makes no sense or selects nothing.
    """
    if isinstance(N, int):
        return {block.name: N for block in found if block.reason is None}
    names = {block.name for block in found}
    sizes: dict[str, int] = {}
    for key in sorted(N, key=lambda key: key not in names):
        for name in _matching(found, key, "N"):
            sizes.setdefault(name, N[key])
    return {name: size for name, size in sizes.items() if size}


def _texts(where: object) -> list[str]:
    texts = [where] if isinstance(where, str) else where
    if isinstance(texts, Iterable):
        texts = list(texts)
        if all(isinstance(text, str) for text in texts):
            return texts
    raise ArgumentError(
        f"dynamize(where={where!r}): give a function of a Block, or names and patterns of blocks."
    )


def _selected(
    found: Sequence[Block], where: Callable[[Block], bool] | list[str] | None
) -> set[str]:
    usable = [block for block in found if block.reason is None]
    everything = {block.name for block in usable}
    if where is None:
        return everything
    if not isinstance(where, list):
        return {block.name for block in usable if where(block)}
    names = {block.name for block in found}
    negatives = [text for text in where if _is_negative(text, names)]
    positives = [text for text in where if text not in negatives]
    excluded = [_matching(found, text[1:], "where") for text in negatives]
    included = [_matching(found, text, "where") for text in positives]
    start = everything if negatives and not positives else set[str]().union(*included)
    return start.difference(*excluded)


def _is_negative(text: str, names: set[str]) -> bool:
    return text.startswith("!") and text not in names


# --- one selector -----------------------------------------------------------------------------


def _matching(found: Sequence[Block], text: str, argument: str) -> set[str]:
    """Return the names of the blocks that one selector stands for, at least one."""
    usable = [block for block in found if block.reason is None]
    names = {block.name for block in found}
    if _is_negative(text, names):
        return {block.name for block in usable} - _matching(found, text[1:], argument)
    matches = _test(text, names, argument)
    matched = {block.name for block in usable if matches(block)}
    if not matched:
        missed = next((block for block in found if matches(block)), None)
        why = f"; {missed.name} stays dense: {missed.reason}" if missed else ""
        raise ArgumentError(
            f"dynamize({argument}=...): no block matches {text!r}{why}. {_overview(usable)}"
        )
    return matched


def _test(text: str, names: set[str], argument: str) -> Callable[[Block], bool]:
    prefix, colon, value = text.partition(":")
    if text in names:
        return lambda block: block.name == text
    if not colon:
        return lambda block: fnmatchcase(block.name, text)
    if prefix == "kind":
        return lambda block: fnmatchcase(block.kind, value)
    if prefix not in ("stage", "depth"):
        raise ArgumentError(
            f"dynamize({argument}=...): {text!r} has an unknown prefix {prefix!r}; "
            "there are kind:, stage: and depth:, and names and patterns without one."
        )
    low, high = _range(text, value, argument)
    return lambda block: low <= getattr(block, prefix) <= high


def _range(text: str, value: str, argument: str) -> tuple[int, float]:
    parts = re.fullmatch(r"(\d*)(-?)(\d*)", value)
    if parts and (parts[1] or parts[3]):
        low = int(parts[1] or 1)
        high = int(parts[3]) if parts[3] else float("inf") if parts[2] else low
        if 1 <= low <= high:
            return low, high
    forms = ", ".join(text.removesuffix(value) + form for form in ("2", "2-4", "3-", "-2"))
    raise ArgumentError(
        f"dynamize({argument}=...): {text!r} is not a range; it counts from 1: {forms}."
    )


def _overview(usable: Sequence[Block]) -> str:
    kinds = ", ".join(dict.fromkeys(block.kind for block in usable))
    last = usable[-1]
    return (
        f"There are {', '.join(block.name for block in usable)}; kinds: {kinds}; "
        f"stages 1-{last.stage}; depths 1-{last.depth}."
    )
