"""The forms of a converted model timed beside dense networks, interleaved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..flops import FlopsTable
from ..graph import copied
from ..nn import force_gates, record_paths, set_execution
from ..progress import tracked
from .alone import Alone, Engine, each_alone, engines_for
from .fixed import fixed_at
from .graphs import Graphs, can_be_graphed
from .network import packed
from .prepare import prepared_model
from .prepared_model import PreparedModel, with_threads
from .timing import Clock, Timing
from .workers import Workers, is_divisible

EAGER, DENSE, APART = "dense, eager", "dense, packed", "dense, apart"


GRAPHED, COMPILED = "dense, graphed", "dense, compiled"


OWN = "own gates"


_EXECUTIONS = {"masked": "masked", "skipping": "skip"}


PATTERNS = 4
"""Most draws of gates that the rounds take in turn."""


Form = Callable[[Tensor], Any]


class Benchmark:
    """The forms of one converted model and its source, for batches of one size.

    Args:
        source: the dense network.
        model: its conversion, in evaluation mode.
        table: the conversion's FLOPs.
        batches: images (B, C, H, W), all of one size; taken in turn.
        threads: None for as many as PyTorch is set to.
        compiled: time what torch.compile makes of the source, too.
        engines: that run the source besides PyTorch, each in a process of its own; None for all
            that are installed.
    """

    def __init__(
        self,
        source: nn.Module,
        model: nn.Module,
        table: FlopsTable,
        batches: Sequence[Tensor],
        threads: int | None = None,
        *,
        compiled: bool = False,
        engines: Sequence[Engine] | None = None,
    ) -> None:
        self.table, self.threads = table, threads
        self.batches = [b.contiguous(memory_format=torch.channels_last) for b in batches]
        self.batch, example = len(batches[0]), self.batches[0]
        possible = engines_for(example)
        self.engines = possible if engines is None else [e for e in engines if e in possible]
        self.eager = copied(source).eval().to(memory_format=torch.channels_last)
        self.executed = {
            form: copied(model).eval().to(memory_format=torch.channels_last) for form in _EXECUTIONS
        }
        for form, execution in _EXECUTIONS.items():
            set_execution(self.executed[form], execution)
        sizes = (self.batch,)
        with with_threads(threads):
            self.dense = packed(source, example)
            self.prepared = prepared_model(model, example, sizes, threads)
            self.dense_forms = self._dense_forms(source, compiled)

    def _dense_forms(self, source: nn.Module, compiled: bool) -> dict[str, Form]:
        """Return the callables that run the dense network, by name."""
        example, dense = self.batches[0], self.dense
        place = example.device.type
        forms: dict[str, Form] = {EAGER: self.eager, DENSE: dense}
        if place == "cpu" and self.batch > 1 and is_divisible(dense, example[:1]):
            workers = Workers(self.threads or torch.get_num_threads())

            def run(image: Tensor, i: int) -> Tensor:
                with torch.no_grad():
                    logits: Tensor = dense(image)
                return logits

            forms[APART] = partial(workers.map, run)
        if place == "cuda" and can_be_graphed(dense, example):
            graphs = Graphs()
            forms[GRAPHED] = partial(graphs.run, "dense", dense)
        if compiled:
            own = copied(source).eval().to(memory_format=torch.channels_last)
            fast = {"triton.cudagraphs": True} if place == "cuda" else {}
            forms[COMPILED] = torch.compile(own, options={"freezing": True, **fast})
        return forms

    def run(
        self, rates: Sequence[float] = (), *, rounds: int = 20, seed: int = 0, own: bool = False
    ) -> list[Timing]:
        """Time every form; the model's own gates too, if `own`.

        Args:
            rates: execution rates to force.
            rounds: of all forms in turn.
            seed: of the forced gates.
            own: let the controllers decide.
        """
        count = max(1, rounds // 3)  # of inputs: each is timed three times or more
        batches = self.batches[:count]
        drawn = {f"{rate:g}": self._patterns(rate, seed, count) for rate in rates}
        ran = {rate: torch.cat(patterns) for rate, patterns in drawn.items()}
        if own:
            drawn[OWN], ran[OWN] = [], self._own_gates(batches)
        alike = {rate: self._nearest(gates) for rate, gates in ran.items()}
        static = {rate: self._static(gates) for rate, gates in alike.items()}
        clock = Clock(self.batches[0].device)
        with (
            each_alone(self.eager, batches, self.threads, self.engines) as alone,
            torch.no_grad(),
            with_threads(self.threads),
        ):
            for i in tracked(range(-2, rounds), "rounds", shown=None):
                if i == 0:
                    clock.taken.clear()
                self._one_round(i, batches, clock, drawn, static)
                _time_engines(alone, clock, i % len(batches))
        known = {("static", rate): gates[None] for rate, gates in alike.items()}
        known |= {(form, rate): gates for rate, gates in ran.items() for form in self._forms()}
        return self._timings(clock, known)

    def _patterns(self, rate: float, seed: int, count: int) -> list[Tensor]:
        """Draw gates, and turn on the sub-blocks that blocks without a shortcut need."""
        generator = torch.Generator().manual_seed(seed)
        size = (self.batch, sum(self.table.sizes))
        drawn = (torch.rand(size, generator=generator) < rate for _ in range(min(PATTERNS, count)))
        return [self._run_with(gates.float()) for gates in drawn]

    def _run_with(self, gates: Tensor) -> Tensor:
        with record_paths(self.prepared.network) as paths, force_gates(self.prepared, gates):
            self.prepared(self.batches[0].clone())
        return paths.gates

    def _own_gates(self, batches: Sequence[Tensor]) -> Tensor:
        with record_paths(self.prepared.network) as paths:
            for images in batches:
                self.prepared(images.clone())
        return paths.gates

    def _flops(self, gates: Tensor) -> float:
        """Return F, MACs over the dense network's, of gates (images, total sub-blocks)."""
        macs = self.table.network_flops(gates).double().mean()
        return float(macs) / self.table.dense_total

    def _nearest(self, gates: Tensor) -> Tensor:
        """Return the row of gates (images, total sub-blocks) whose cost is nearest to the mean."""
        macs = self.table.network_flops(gates).double()
        return gates[(macs - macs.mean()).abs().argmin()]

    def _one_round(
        self,
        i: int,
        batches: Sequence[Tensor],
        clock: Clock,
        drawn: dict[str, list[Tensor]],
        static: dict[str, PreparedModel],
    ) -> None:
        batch = i % len(batches)
        images = batches[batch]
        for form, run in self.dense_forms.items():
            clock.time((form, ""), batch, run, images)
        for rate, patterns in drawn.items():
            which = i % len(patterns) if patterns else batch
            gates = patterns[which] if patterns else None
            for form, run in self._forms().items():
                with nullcontext() if gates is None else self._forced(gates):
                    clock.time((form, rate), which, run, images)
            if rate in static:
                clock.time(("static", rate), which, static[rate], images)

    @contextmanager
    def _forced(self, gates: Tensor) -> Iterator[None]:
        """Force the gates of all models: they share nothing."""
        with ExitStack() as every:
            for model in (*self.executed.values(), self.prepared):
                every.enter_context(force_gates(model, gates))
            yield

    def _static(self, gates: Tensor) -> PreparedModel:
        static = fixed_at(self.prepared, gates)
        if GRAPHED in self.dense_forms:
            static.ways = {tuple(self.batches[0].shape): "graphed"}
        return static

    def _forms(self) -> dict[str, Form]:
        """Return the callables that run the converted network, by name."""
        forms: dict[str, Form] = {**self.executed, "prepared": self.prepared}
        if self.prepared.default != "together":  # shown even where `prepare` leaves it
            forms["prepared, skipping"] = self.prepared.run_together
        return forms

    def _timings(self, clock: Clock, ran: dict[tuple[str, str], Tensor]) -> list[Timing]:
        medians = {name: clock.median(name) for name in clock.taken}
        dense = [median for name, median in medians.items() if name not in ran]
        fastest, eager = min(dense), medians[EAGER, ""]
        timings = []
        for name, median in medians.items():
            gates = ran.get(name)
            F, T = 1.0 if gates is None else self._flops(gates), median / fastest
            timings.append(
                Timing(
                    *(*name, self.batch, 1e3 * median, 1e3 * clock.spread(name), F, T),
                    median / eager,
                    (1 - T) / (1 - F) if F < 0.995 else None,
                    None if gates is None else float(gates.mean()),
                    None if gates is None else len(gates.unique(dim=0)),
                )
            )
        return timings


def _time_engines(engines: dict[Engine, Alone], clock: Clock, which: int) -> None:
    for engine, alone in engines.items():
        clock.note((f"dense, {engine}", ""), which, alone.seconds(which))
