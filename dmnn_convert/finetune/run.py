"""A run: from a recipe to a trained network, its results, and the files that hold them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..budget import at_level, estimate_levels
from ..data import (
    EpochOrder,
    KeptBatches,
    MemoryBatches,
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
from ..errors import CheckpointError
from ..evaluation import DenseEvaluation, Evaluation, evaluate, evaluate_dense
from ..files import write_all, write_text
from ..io import WEIGHTS, save
from ..nn import force_gates
from ..refit import reestimate_norms
from .before_training import prepare
from .eval_batches import evaluation_of
from .floor import check_target
from .gate_warnings import broken, gate_warnings, left_out, warn
from .lock import Lock, locked
from .log import Log, summary
from .network import build_networks
from .recipe import Recipe
from .recipe_files import write_recipe
from .saved_conversion import resolved
from .state import check_setting, prepare_folder, read_state, take_up, write_state
from .stops import Interrupted, stop_requests, workers_watched
from .trainer import Trainer

CONFIG, RESULT = "recipe.yaml", "result.json"


class Result(NamedTuple):
    """The result of a run.

    Attributes:
        model: the trained network, in evaluation mode.
        evaluation: of its last epoch, on the test images.
        levels: of each level that it was trained for; empty without --levels.
        warnings: what went wrong with the gates, in words.
        minutes: what training and evaluation took, over all parts of the run.
        is_main: whether this is the process that writes and speaks for all.
    """

    model: nn.Module
    evaluation: Evaluation | DenseEvaluation
    warnings: tuple[str, ...]
    minutes: float
    is_main: bool
    levels: Mapping[float, Evaluation] = MappingProxyType({})


def finetune(recipe: Recipe, *, resume: bool = False) -> Result:
    """Convert a network and train it to a FLOPs target, by a recipe.

    Writes recipe.yaml, log.csv, last.pt, best/, final/ and result.json to `recipe.output`.

    Args:
        recipe: how; see `Recipe`.
        resume: continue the run that `recipe.output` holds.

    Raises:
        ArgumentError: for a recipe that does not fit the data, the network or the machine, or if
            the folder holds another run, or one that still writes there.
        CheckpointError: if a file cannot be read or written; what was saved before stays. Or if the
            folder is deleted while the run writes to it.
        TrainingError: if the loss or a weight is not finite, or a loader process dies.
        Interrupted: if the run was stopped by Ctrl-C or a terminating signal; it can be resumed.
    """
    recipe, folder = resolved(recipe), Path(recipe.output)
    prepare_folder(folder, resume=resume)
    with (
        joined(recipe.device) as processes,
        locked(folder, wanted=processes.is_main) as lock,
        workers_watched(_RESUMABLE),
    ):
        return _Run(recipe, folder, processes, lock, resume=resume).result()


class _Run:
    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        processes: Processes,
        lock: Lock | None,
        *,
        resume: bool,
    ) -> None:
        self.recipe, self.folder, self.processes, self.lock = recipe, folder, processes, lock
        state = read_state(folder, recipe) if resume else None
        torch.manual_seed(recipe.seed)
        data = images.open_data(recipe)
        self.classes = data.classes
        self.setting = setting_of(data, processes)
        if state is not None:
            check_setting(folder, state, self.setting)
        self.files = self._files(data, state)
        self.networks = build_networks(recipe, data.classes)
        check_target(recipe, self.networks)
        for network in (self.networks.model, self.networks.source):
            network.to(processes.device)
        self.tests, loader, order = self._loaders(data)
        if state is None:
            prepare(recipe, self.networks, loader, processes)
        self.trainer = Trainer(recipe, self.networks, len(data.classes), loader, order, processes)
        self.best, self.minutes, self.skipped = 0.0, 0.0, 0
        if state is not None:
            take_up(folder, state, self.trainer.load_state)
            self.best, self.minutes = state["best"], state["minutes"]
        self.log = Log(folder, self.trainer.epoch) if processes.is_main else None
        self.said: set[str] = set()
        self.begun = self.saved = time.monotonic()

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
        """Train and evaluate all epochs that are left; write what they end with."""
        if self.processes.is_main:
            write_recipe(self.recipe, self.folder / CONFIG)
        evaluation = None
        with stop_requests() as stop:
            while self.trainer.epoch < self.recipe.epochs:
                means = self.trainer.train_epoch(lambda: self._between_steps(stop))
                evaluation = self._end_epoch(means)
        if self.networks.table is not None and self.recipe.reestimate:
            self._reestimate()
            evaluation = self._evaluated()
        levels = self._levels() if self.recipe.levels else {}
        return self._finish(evaluation or self._evaluated(), levels)

    def _reestimate(self) -> None:
        model, shown = self.trainer.trained, self.processes.is_main
        with self._opened():
            batches = self._after_training()
            reestimate_norms(model, batches, self.recipe.reestimate, progress=shown)
        self.processes.share(model.buffers())

    def _after_training(self) -> Iterator[images.Batch]:
        """Yield training batches that are the same however often the run was stopped."""
        self.trainer.order.epoch, self.trainer.order.start = self.recipe.epochs, 0
        return images.readable(self.trainer.loader, self.recipe)

    def _opened(self) -> AbstractContextManager[None]:
        """Turn all sub-blocks on, where nothing was trained to decide them."""
        return force_gates(self.trainer.trained, True) if self.recipe.levels else nullcontext()

    def _levels(self) -> dict[float, Evaluation]:
        """Estimate the norm statistics of every level, and evaluate it."""
        model, table, levels = self.trainer.trained, self.networks.table, self.recipe.levels
        found: dict[float, Evaluation] = {}
        if table is None:
            return found
        batches = _Again(self._after_training)
        estimate_levels(model, batches, levels, LEVEL_BATCHES, progress=self.processes.is_main)
        self.processes.share(model.buffers())
        tests, options = evaluation_of(self.recipe, self.tests, self.classes, self.processes)
        for level in levels:
            with at_level(model, level):
                found[level] = evaluate(model, table, tests, **options)
        return found

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
        # Each process has normalised by batches of its own; what is kept is the first one's.
        for network in dict.fromkeys((self.trainer.model, self.trainer.trained)):
            self.processes.share(network.buffers())
        self.trainer.check()
        evaluation = self._evaluated()
        if self.log is not None and self._mine():
            rates = [group["lr"] for group in self.trainer.optimizer.param_groups]
            tested = {f"test_{k}": v for k, v in summary(evaluation).items()}
            row = {"epoch": self.trainer.epoch, "lr": rates[0], "gate_lr": rates[-1]}
            self.log.add({**row, **means, **tested})
        self._keep_best(evaluation)
        self._save_state()
        self._say(self._objections(evaluation, final=False))
        return evaluation

    def _say(self, found: Sequence[str]) -> None:
        if self.processes.is_main:
            for text in found:
                if text not in self.said:
                    warn(f"epoch {self.trainer.epoch}: {text}")
            self.said.update(found)

    def _evaluated(self) -> Evaluation | DenseEvaluation:
        model, table = self.trainer.trained, self.networks.table
        batches, options = evaluation_of(self.recipe, self.tests, self.classes, self.processes)
        if table is None:
            evaluation = evaluate_dense(model, batches, **options)
        else:
            with self._opened():
                evaluation = evaluate(model, table, batches, **options)
        self.skipped = batches.all_skipped()
        return evaluation

    def _objections(self, evaluation: Any, *, final: bool) -> list[str]:
        found = list(broken(evaluation))
        settled = final or self.trainer.epoch > self.recipe.epochs / 2
        if settled and isinstance(evaluation, Evaluation) and not self.recipe.levels:
            found += gate_warnings(evaluation, self.recipe, final=final)
        return found

    def _keep_best(self, evaluation: Evaluation | DenseEvaluation) -> None:
        # Before the target is reached, accuracy alone would keep the densest network.
        annealed = self.trainer.epoch >= self.recipe.epochs - self.recipe.epochs // 4
        if annealed and evaluation.top1 > self.best:
            self.best = evaluation.top1
            self._save_model("best")

    def _save_model(self, name: str) -> None:
        if not self._mine():
            return
        model, recipe = self.trainer.trained, self.recipe
        if self.networks.table is not None:
            classes = recipe.num_classes
            save(model, self.folder / name, arch=recipe.arch, num_classes=classes)
            return
        tensors = {k: v.contiguous() for k, v in model.state_dict().items()}
        write_all(self.folder / name, {WEIGHTS: lambda path: save_file(tensors, path)})

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
        if self._retaken():
            write_state(self.folder, {**state, "best": 0.0})
            raise CheckpointError(
                f"{self._gone()} The state is saved there again, and the same command with "
                "--resume continues the run; the rest is lost."
            )
        if self._mine():
            write_state(self.folder, state)

    def _mine(self) -> bool:
        """Return whether this process writes, and the folder still is the run's."""
        return self.lock is not None and self.lock.holds()

    def _retaken(self) -> bool:
        """Remake the folder if it is gone, unless another run has begun there; say if it was."""
        if self.lock is None or self.lock.holds():
            return False
        prepare_folder(self.folder, resume=False)
        self.lock.take()
        return True

    def _gone(self) -> str:
        return f"{self.folder}: was deleted or replaced while the run wrote to it."

    def _minutes(self) -> float:
        return self.minutes + (time.monotonic() - self.begun) / 60

    def _finish(
        self, evaluation: Evaluation | DenseEvaluation, levels: Mapping[float, Evaluation]
    ) -> Result:
        bad_images = self.trainer.bad_images_everywhere()
        found = (*self._objections(evaluation, final=True), *left_out(bad_images, self.skipped))
        retaken = self._retaken()
        self._save_model("final")
        if self.processes.is_main:
            described = {
                "minutes": round(self._minutes(), 2),
                "bad_images": bad_images,
                "bad_test_images": self.skipped,
                "warnings": found,
                "recipe": self.recipe.to_dict(),
                "evaluation": evaluation.to_dict(),
            }
            if levels:
                described["levels"] = {f"{k:g}": found.to_dict() for k, found in levels.items()}
            text = json.dumps(described, indent=1)
            write_all(self.folder, {RESULT: lambda path: write_text(path, text)})
        if retaken:
            raise CheckpointError(
                f"{self._gone()} {RESULT} and final/ are there again; the rest is lost."
            )
        self._say(found)
        model, leads = self.trainer.trained.eval(), self.processes.is_main
        return Result(model, evaluation, found, self._minutes(), leads, levels)


def setting_of(data: images.Data, processes: Processes) -> dict[str, Any]:
    """Return what a run depends on beside its recipe, as plain data."""
    return {
        "training images": len(data.train),  # type: ignore[arg-type]
        "test images": len(data.test),  # type: ignore[arg-type]
        "classes": list(data.classes),
        "processes": processes.count,
    }


class _Again:
    """Batches that can be asked for more than once."""

    def __init__(self, batches: Callable[[], Iterator[images.Batch]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[images.Batch]:
        return self.batches()


LEVEL_BATCHES = 64


"""Batches for each level's norm statistics."""


_RESUMABLE = " --resume continues from the last state, if there is one."


_TOGETHER = 10


"""Steps after which processes on GPUs, which that makes wait, agree on whether to stop."""
