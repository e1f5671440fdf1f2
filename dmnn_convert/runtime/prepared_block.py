"""A multi-path block for inference: each image through the fastest form of its own subset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..nn import GateController
from .activation import Activation
from .branches import branch
from .careful import CAREFUL
from .costs import Costs, guessed, line_through
from .decision import Keys, decision_of
from .graphs import run_beside
from .stopwatch import least_seconds
from .subsets import ConvChain, Forms, chosen, keys_of, subset_chains

Size = tuple[int, ...]


class PreparedBlock(nn.Module):
    """Add the sub-blocks that the controller chooses for each image to the shortcut (eq. 4).

    Attributes:
        controller: the source block's.
        decide: which sub-blocks run for each image of x (B, C, H, W) in a pass, as keys.
        activation: applied to the sum; None for nothing.
        hands_on: whether a skipped block may return its shortcut itself: nothing overwrites it,
            and the activation would leave it as it is.
        costs: by input size (B, C, H, W), the costs of each way of running.
    """

    def __init__(self, controller: GateController, forms: Forms) -> None:
        super().__init__()
        self.decision = decision_of(controller)
        self.N = len(forms.chains)
        self.trunk = ConvChain(forms.trunk) if forms.trunk else None
        self.shift = forms.shift
        self.subsets, self.masked = subset_chains(forms)
        self.signature = repr([forms.trunk, forms.chains])
        self._paths = {key: self._path(key) for key in keys_of(self.N)}
        self._places = _Places(forms)
        # Found without nn.Module's search, which costs as much as a controller's arithmetic.
        self._chain, self.decide = controller.chain, self.decision.forward
        self._lead = None if self.trunk is None else self.trunk.forward
        self.activation: Activation | None = None
        self.hands_on = False
        self.costs: dict[Size, Costs] = {}

    @property
    def controller(self) -> GateController:
        """The source block's controller."""
        return self.decision.controller

    @property
    def keys(self) -> list[int]:
        """Keys of all subsets of sub-blocks but the empty one."""
        return list(self._paths)

    def drop_subset(self, key: int) -> None:
        """Run the sub-blocks of a key one after another from now on, to save memory."""
        self.subsets.pop(key)
        self._paths[key] = self._path(key)

    def _path(self, key: int) -> list[ConvChain]:
        if key in self.subsets:
            return [self.subsets[key]]
        return [self.subsets[1 << n] for n in chosen(key, self.N)]

    def forward(self, x: Tensor, shortcut: Tensor | None = None, *context: int | Tensor) -> Tensor:
        """Return ``activation(shortcut + Σ gate · sub-block)`` of x (B, C, H, W)."""
        if x.shape[0] == 0:
            return self.run(max(self._paths), x, shortcut)
        current = self._chain.current()
        if current.masked:
            return self._run_all(x, shortcut)
        if current.branched:
            return self._run_branched(x, shortcut)
        keys = self.decide(x, current)
        if len(keys) == 1 or len(set(keys)) == 1:
            return self.run(keys[0], x, shortcut)
        counts = Counter(keys)
        skipped = counts.pop(0, 0)
        plan = self.costs_for(x).plan(counts)
        if plan is None and not skipped and not CAREFUL.on:  # a zero does not undo NaN
            return self.run_masked(keys, x, shortcut)
        return self._run_by_key(keys, x, shortcut, plan or dict.fromkeys(counts, "gathered"))

    def run(self, key: int, x: Tensor, shortcut: Tensor | None) -> Tensor:
        """Run all images of x (B, C, H, W) through the sub-blocks of one key."""
        if key == 0:
            return self._skipped(x if shortcut is None else shortcut)
        if self._lead is not None:
            x = self._lead(x)
        path = self._paths[key]
        if len(path) == 1:
            return path[0].forward(x, shortcut, self.activation)
        first, *others = path
        total = first.forward(x, shortcut)
        for chain in others:
            total = chain.forward(x, total)
        return self._ended(total, len(path))

    def _ended(self, total: Tensor, terms: int) -> Tensor:
        if self.shift is not None:  # every chain has added it
            total = total - (terms - 1) * self.shift[:, None, None]
        return total if self.activation is None else self.activation.apply(total)

    def _skipped(self, shortcut: Tensor) -> Tensor:
        if self.hands_on:
            return shortcut
        return shortcut.clone() if self.activation is None else self.activation.apply(shortcut)

    def run_masked(self, keys: Keys, x: Tensor, shortcut: Tensor | None) -> Tensor:
        """Run every image through all sub-blocks, multiplied by the gates of its key."""
        gates = self.decision.gates(keys).to(x.device)
        return self._masked(x, lambda: gates, shortcut)

    def _run_all(self, x: Tensor, shortcut: Tensor | None) -> Tensor:
        """Run every image through all sub-blocks, without reading any gate from the device."""
        state = self._chain.current().hidden
        gates = run_beside(lambda: self.decision.gates_of(x), x.device, reads=(x, state))
        return self._masked(x, gates, shortcut)

    def _run_branched(self, x: Tensor, shortcut: Tensor | None) -> Tensor:
        """Run one image (1, C, H, W) without reading any gate from the device."""
        on = self.decision.gates_of(x)[0] > 0
        keep_one = self.controller.keep_one
        return branch(on, lambda key: self.run(key, x, shortcut), keep_one=keep_one)

    def _masked(self, x: Tensor, gates: Callable[[], Tensor], shortcut: Tensor | None) -> Tensor:
        if self._lead is not None:
            x = self._lead(x)
        if self.masked is not None:
            y: Tensor = self.masked(x, gates, shortcut, self.activation)
            return y
        decided = gates().to(x.dtype)
        parts = [self.subsets[1 << n].forward(x) for n in range(self.N)]
        total = sum(g[:, None, None, None] * y for g, y in zip(decided.T, parts, strict=True))
        if self.shift is not None:  # every chain has added it
            more = decided.sum(1) - decided.amax(1)
            total = total - more[:, None, None, None] * self.shift[:, None, None]
        total = total if shortcut is None else shortcut + total
        return total if self.activation is None else self.activation.apply(total)

    def _run_by_key(
        self, keys: Keys, x: Tensor, shortcut: Tensor | None, plan: Mapping[int, str]
    ) -> Tensor:
        rows: dict[int, list[int]] = {}
        for i, key in enumerate(keys):
            rows.setdefault(key, []).append(i)
        out: Tensor | None = None
        for key in sorted(rows, reverse=True):  # the skipped ones last: they do not know the size
            out = self._run_rows(key, plan.get(key, "gathered"), rows[key], x, shortcut, out)
        if out is None:
            raise ArgumentError("PreparedBlock: the batch is empty; give one image or more.")
        return out

    def _run_rows(
        self,
        key: int,
        way: str,
        rows: list[int],
        x: Tensor,
        shortcut: Tensor | None,
        out: Tensor | None,
    ) -> Tensor:
        """Put the results for some images of x into `out`, which the first call makes."""
        for part in [[row] for row in rows] if way == "views" else [rows]:
            own = _taken(x, part)
            # A shortcut that is the input itself is not copied a second time.
            other = own if shortcut is x or shortcut is None else _taken(shortcut, part)
            y = self.run(key, own, None if shortcut is None else other)
            if out is None:
                size = (len(x), *y.shape[1:])
                out = torch.empty(
                    size, dtype=y.dtype, device=y.device, memory_format=torch.channels_last
                )
            _put(out, part, y)
        return out if out is not None else x

    def costs_for(self, x: Tensor) -> Costs:
        """Return the costs of an input like x (B, C, H, W): measured, or guessed."""
        size = tuple(x.shape)
        if size not in self.costs:
            self.costs[size] = self._guessed(x)
        return self.costs[size]

    def _guessed(self, x: Tensor) -> Costs:
        places = self._places.of(*x.shape[2:])
        layers = {key: sum(map(len, path)) for key, path in self._paths.items()}
        macs = {key: sum(places[n] for n in chosen(key, self.N)) for key in self._paths}
        return guessed(layers, macs, 2 * x[0].numel(), masks=self.masked is not None)

    def measure(self, x: Tensor, shortcut: Tensor | None) -> Costs:
        """Measure the cost of each way for images x (B, C, H, W) and their shortcut, B > 1."""
        count = len(x)
        out = self.run(max(self._paths), x, shortcut)
        few, many = max(1, count // 4), count - 1

        def timed(key: int, way: str, images: int) -> float:
            rows = [*range(images - 1), count - 1]  # no neighbours, which would not be copied
            return least_seconds(lambda: self._run_rows(key, way, rows, x, shortcut, out), x.device)

        views = {key: timed(key, "views", few) / few for key in self._paths}
        gathered = {
            key: line_through(few, timed(key, "gathered", few), many, timed(key, "gathered", many))
            for key in self._paths
        }
        if self.masked is None:
            return Costs(views, gathered, None)
        keys = [1 + i % max(self._paths) for i in range(count)]
        taken = least_seconds(lambda: self.run_masked(keys, x, shortcut), x.device)
        return Costs(views, gathered, line_through(count, taken, count, taken))


class _Places:
    """MACs of each sub-block for one image, from its layers."""

    def __init__(self, forms: Forms) -> None:
        self.chains = [
            [(layer.macs_per_place, layer.stride) for layer in (*forms.trunk, *chain)]
            for chain in forms.chains
        ]

    def of(self, height: int, width: int) -> list[float]:
        """Return MACs by sub-block for inputs of a size."""
        total = []
        for chain in self.chains:
            area, macs = float(height * width), 0.0
            for per_place, stride in chain:
                area /= stride[0] * stride[-1]
                macs += per_place * area
            total.append(macs)
        return total


def _taken(x: Tensor, rows: Sequence[int]) -> Tensor:
    """Return some images of x (B, C, H, W), channels last; neighbours without copying them."""
    first, count = rows[0], len(rows)
    if rows[-1] - first + 1 == count:
        return x[first : first + count]
    # Indexing loses the memory format; the flat rows are copied whole.
    flat = x.permute(0, 2, 3, 1).reshape(len(x), -1)
    picked = flat.index_select(0, torch.tensor(rows, device=x.device))
    batch, channels, height, width = count, *x.shape[1:]
    return picked.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _put(out: Tensor, rows: Sequence[int], y: Tensor) -> None:
    first, count = rows[0], len(rows)
    if rows[-1] - first + 1 == count:
        out[first : first + count] = y
        return
    flat = out.permute(0, 2, 3, 1).reshape(len(out), -1)
    source = y.permute(0, 2, 3, 1).reshape(count, -1)
    flat.index_copy_(0, torch.tensor(rows, device=out.device), source)
