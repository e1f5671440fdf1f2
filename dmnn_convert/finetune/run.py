"""A run: from a recipe to a trained network, its results, and the files that hold them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..data import (
    EpochOrder,
    KeptBatches,
    MemoryBatches,
    Readable,
    check_stamps,
    images,
    preprocessing,
    stamps,
    test_loader,
    test_transform,
    training_loader,
    training_transform,
)
from ..distributed import Processes, joined
from ..evaluation import DenseEvaluation, Evaluation
from ..progress import say
from ..refit import reestimate_norms
from .before_training import prepare
from .floor import check_target
from .gate_warnings import broken, gate_warnings, left_out, warn
from .lock import Lock, locked
from .log import Log, epoch_line, opened_log, summary
from .network import build_networks
from .optimisation import slow_amp
from .recipe import Recipe
from .run_folder import RunFolder
from .saved_conversion import resolved
from .state import NONE_SETTLED, check_setting, hand_over, prepare_folder, read_state, setting_of
from .stops import Interrupted, stop_requests, workers_watched
from .tester import Tester
from .trackers import check_trackers
from .trainer import Trainer

_RESUMABLE = " --resume continues from the last state, if there is one."


_TOGETHER = 10
"""Steps after which processes on GPUs agree on whether to stop, which makes them wait."""


class Result(NamedTuple):
    """The result of a run.

    Attributes:
        model: the trained network, in evaluation mode.
        evaluation: of its last epoch, on the test images.
        levels: of each level that it was trained for; empty without --levels.
        warnings: warnings about the gates.
        minutes: time of training and evaluation, over all parts of the run.
        is_main: whether this is the process that writes and reports.
    """

    model: nn.Module
    evaluation: Evaluation | DenseEvaluation
    warnings: tuple[str, ...]
    minutes: float
    is_main: bool
    levels: Mapping[float, Evaluation] = MappingProxyType({})


def finetune(recipe: Recipe, *, resume: bool = False, verbose: bool = False) -> Result:
    """Convert a network and train it to a FLOPs target, by a recipe.

    Writes recipe.yaml, log.csv, last.pt, best/, final/ and result.json to `recipe.output`.

    Args:
        recipe: how; see `Recipe`.
        resume: continue the run that `recipe.output` holds.
        verbose: show all figures of each epoch on standard error; `progress.quiet` shows none.

    Raises:
        ArgumentError: for a recipe that does not fit the data, the network or the machine, or if
            the folder holds another run, or one that still writes there.
        CheckpointError: if a file cannot be read or written; what was saved before stays. Or if the
            folder is deleted while the run writes to it.
        TrainingError: if the loss or a weight is not finite, or a loader process dies.
        Interrupted: if the run was stopped by Ctrl-C or a terminating signal; it can be resumed.
    """
    check_trackers(recipe.track)
    recipe, folder = resolved(recipe), Path(recipe.output)
    prepare_folder(folder, resume=resume)
    with (
        workers_watched(_RESUMABLE),  # PyTorch may report a death once more during the clean-up
        joined(recipe.device) as processes,
        locked(folder, wanted=processes.is_main) as lock,
        workers_watched(_RESUMABLE),
    ):
        run = _Run(recipe, folder, processes, lock, resume=resume, verbose=verbose)
        begun, wanted = run.trainer.epoch, processes.is_main
        with opened_log(recipe, folder, begun, wanted=wanted) as run.log:
            return run.result()


class _Run:
    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        processes: Processes,
        lock: Lock | None,
        *,
        resume: bool,
        verbose: bool,
    ) -> None:
        self.verbose = verbose
        self.recipe, self.processes, self.folder = recipe, processes, RunFolder(folder, lock)
        state = read_state(folder, recipe) if resume else None
        torch.manual_seed(recipe.seed)
        data = images.open_data(recipe)
        self.setting = setting_of(data, processes)
        if state is not None:
            check_setting(folder, state, self.setting)
        self.files = self._files(data, state)
        self.networks = build_networks(recipe, data.classes)
        if recipe.gated:
            check_target(recipe.target, self.networks)
        for network in (self.networks.model, self.networks.source):
            network.to(processes.device)
        tests, loader, order = self._loaders(data)
        self.tester = Tester(recipe, self.networks.table, tests, data.classes, processes)
        if state is None:
            prepare(recipe, self.networks, Readable(loader, recipe), processes)
        self.trainer = Trainer(recipe, self.networks, len(data.classes), loader, order, processes)
        self.best, self.minutes = NONE_SETTLED, 0.0
        if state is not None:
            hand_over(folder, state, self.trainer.load_state)
            self.best, self.minutes = state["best"], state["minutes"]
        self.log: Log | None = None
        self.said: set[str] = set()
        self.begun = self.saved = time.monotonic()
        if (slow := slow_amp(recipe, processes.device)) and processes.is_main:
            warn(slow)

    def _files(self, data: images.Data, state: dict[str, Any] | None) -> dict[str, Tensor]:
        parts = {"train": data.train, "test": data.test}
        if state is None:
            return {part: stamps(of) for part, of in parts.items()}
        changed = check_stamps(parts, state["files"])
        if changed and self.processes.is_main:
            warn(changed)
        files: dict[str, Tensor] = state["files"]
        return files

    def _loaders(self, data: images.Data) -> tuple[Any, Any, EpochOrder]:
        recipe, source = self.recipe, self.networks.source
        how = preprocessing(recipe, source)
        testing, training = test_transform(how), training_transform(recipe, how)
        tests = test_loader(recipe, data.test, testing, self.processes)
        loader, order = training_loader(recipe, data.train, training, self.processes)
        if not recipe.in_memory:
            return tests, loader, order
        share, shown = recipe.batch_size // self.processes.count, self.processes.is_main
        kept = MemoryBatches(recipe, data.train, how, order, share, shown=shown)
        return KeptBatches(tests), kept, order

    def result(self) -> Result:
        """Train and evaluate all remaining epochs; write the result."""
        self.folder.write_recipe(self.recipe)
        evaluation = None
        with stop_requests() as stop:
            while self.trainer.epoch < self.trainer.epochs:
                means = self.trainer.train_epoch(lambda: self._between_steps(stop))
                evaluation = self._end_epoch(means)
        if self.networks.table is not None and self.recipe.reestimate:
            self._reestimate()
            evaluation = self._evaluated()
        levels = self.tester.at_levels(self.trainer.trained, _Again(self._after_training))
        return self._finish(evaluation or self._evaluated(), levels)

    def _reestimate(self) -> None:
        model, shown = self.trainer.trained, self.processes.is_main
        with self.tester.opened(model):
            batches = self._after_training()
            reestimate_norms(model, batches, self.recipe.reestimate, progress=shown)
        self.processes.share(model.buffers())

    def _after_training(self) -> Iterator[images.Batch]:
        """Yield training batches that are the same however often the run was stopped."""
        self.trainer.order.epoch, self.trainer.order.start = self.recipe.epochs, 0
        return iter(Readable(self.trainer.loader, self.recipe))

    def _between_steps(self, stop: list[int]) -> None:
        due = time.monotonic() - self.saved > 60 * self.recipe.save_minutes
        if self.processes.count > 1:
            if self.processes.device.type != "cpu" and self.trainer.updates % _TOGETHER:
                return
            asked, due = self.processes.any(bool(stop), due)
        else:
            asked = bool(stop)
        if asked:
            self._save_state()
            raise Interrupted(
                f"stopped in epoch {self.trainer.epoch + 1}; the same command with --resume "
                "continues from here."
            )
        if due:
            self._save_state()

    def _end_epoch(self, means: dict[str, float]) -> Evaluation | DenseEvaluation:
        # Each process has normalised by batches of its own; the first one's statistics are kept.
        for network in dict.fromkeys((self.trainer.model, self.trainer.trained)):
            self.processes.share(network.buffers())
        self.trainer.check()
        evaluation = self._evaluated()
        if self.log is not None and self.folder.mine:
            rates = [group["lr"] for group in self.trainer.optimizer.param_groups]
            tested = {f"test_{k}": v for k, v in summary(evaluation).items()}
            row = {"epoch": self.trainer.epoch, "lr": rates[0], "gate_lr": rates[-1]}
            row |= means | tested
            self.log.add(row)
            say(epoch_line(row, self.trainer.epochs, verbose=self.verbose))
        self._keep_best(evaluation)
        self._save_state()
        self._say(self._warnings(evaluation, final=False))
        return evaluation

    def _say(self, found: Sequence[str]) -> None:
        if self.processes.is_main:
            for text in found:
                if text not in self.said:
                    warn(f"epoch {self.trainer.epoch}: {text}")
            self.said.update(found)

    def _evaluated(self) -> Evaluation | DenseEvaluation:
        return self.tester.evaluated(self.trainer.trained)

    def _warnings(self, evaluation: Any, *, final: bool) -> list[str]:
        found = list(broken(evaluation))
        settled = final or self.trainer.epoch > self.trainer.epochs / 2
        if settled and isinstance(evaluation, Evaluation) and self.recipe.gated:
            found += gate_warnings(evaluation, self.recipe.target, final=final)
        return found

    def _keep_best(self, evaluation: Evaluation | DenseEvaluation) -> None:
        # Before the target is reached, accuracy alone would keep the densest network: until then
        # the last one is the best.
        epochs = self.trainer.epochs
        settled = self.trainer.epoch >= epochs - epochs // 4
        if not settled or evaluation.top1 > self.best:
            self.best = evaluation.top1 if settled else NONE_SETTLED
            self.folder.write_model("best", self.trainer.trained, self.recipe)

    def _save_state(self) -> None:
        self.saved = time.monotonic()
        state = {
            "recipe": self.recipe.to_dict(),
            "setting": self.setting,
            "files": self.files,
            "trainer": self.trainer.state(),
            "best": self.best,
            "minutes": self._minutes(),
        }
        self.folder.write_state(state)

    def _minutes(self) -> float:
        return self.minutes + (time.monotonic() - self.begun) / 60

    def _finish(
        self, evaluation: Evaluation | DenseEvaluation, levels: Mapping[float, Evaluation]
    ) -> Result:
        bad, skipped = self.trainer.bad_images_everywhere(), self.tester.skipped
        found = (*self._warnings(evaluation, final=True), *left_out(bad, skipped))
        model, is_main = self.trainer.trained, self.processes.is_main
        described = {
            "minutes": round(self._minutes(), 2),
            "bad_images": bad,
            "bad_test_images": skipped,
            "warnings": found,
            "recipe": self.recipe.to_dict(),
            "evaluation": evaluation.to_dict(),
        }
        if levels:
            described["levels"] = {f"{k:g}": found.to_dict() for k, found in levels.items()}
        self.folder.write_end(described, model, self.recipe)
        self._say(found)
        return Result(model.eval(), evaluation, found, self._minutes(), is_main, levels)


class _Again:
    """Batches that can be iterated over more than once."""

    def __init__(self, batches: Callable[[], Iterator[images.Batch]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[images.Batch]:
        return self.batches()
