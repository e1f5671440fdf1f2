"""The names of blocks: the module that holds one, or what its layers have in common."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence

from torch import fx

from ..graph import TracedModel, owner


def block_name(traced: TracedModel, nodes: Iterable[fx.Node]) -> str:
    """Name the block after the module that holds it and nothing else, or its first layer."""
    nodes = list(nodes)
    path = common_owner(nodes)
    if not path:
        called = [str(n.target) for n in nodes if n.op == "call_module"]
        shared = common_path([target.split(".") for target in called])
        return ".".join(shared) or (called or [nodes[-1].name])[0]
    parent = path.rpartition(".")[0]
    while parent and path not in traced.parts and _holds_only(traced, parent, path):
        path, parent = parent, parent.rpartition(".")[0]
    return path


def _holds_only(traced: TracedModel, parent: str, child: str) -> bool:
    return traced.issued[parent] == traced.issued[child] > 0


def sum_name(add: fx.Node) -> str:
    """Name a sum after the module that it stands in."""
    return ".".join(filter(None, (owner(add), add.name if not owner(add) else "")))


def unique_names(names: Sequence[str]) -> list[str]:
    """Number the names that occur more than once: ``layer#0``, ``layer#1``."""
    totals, used = Counter(names), Counter[str]()
    numbered = []
    for name in names:
        numbered.append(f"{name}#{used[name]}" if totals[name] > 1 else name)
        used[name] += 1
    return numbered


def common_owner(nodes: Iterable[fx.Node]) -> str:
    """Return the path of the smallest module whose forward, with what it calls, issued all."""
    paths = [owner(n).split(".") if owner(n) else [] for n in nodes if n.op != "get_attr"]
    return ".".join(common_path(paths))


def enclosing_module(traced: TracedModel, nodes: Iterable[fx.Node]) -> str:
    """Return the path of the smallest module whose own forward issued, or led to, all nodes."""
    path = common_owner(nodes)
    while path and path not in traced.calls:  # a container, whose parts its holder calls
        path = path.rpartition(".")[0]
    return path


def common_path(paths: list[list[str]]) -> list[str]:
    """Return the parts that all dotted paths begin with."""
    together = zip(*paths, strict=False)
    return [parts[0] for parts in itertools.takewhile(lambda parts: len(set(parts)) == 1, together)]
