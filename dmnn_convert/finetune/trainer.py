"""The training loop: steps and epochs, and resumption after a stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..budget import divergence, step_paths
from ..data import Batch, EpochOrder, Loader, checked, drawn_from
from ..distributed import Processes
from ..errors import ArgumentError
from ..foreign import logits_of
from ..nn import Paths, controllers, force_gates, gate_parameters, record_paths
from ..optional import needed
from ..progress import Progress
from .finite import FiniteLoss, check_weights
from .log import Averages, measured, postfix
from .network import Networks
from .objective import Losses, Objective
from .optimisation import amp_dtype, make_mixing, make_optimizer, make_schedule
from .recipe import Recipe
from .schedule import GatePhase, gate_phase

_STEPS = 1
"""Keeps the seeds of steps apart from those of images, which have one number less."""


class Trainer:
    """Train one network by a recipe.

    Random numbers of a step depend only on (seed, process, step), and the learning rate on the
    step: a resumed run equals one that never stopped.

    Args:
        recipe: the options.
        networks: the networks; the model is trained in place.
        classes: how many there are.
        loader: this process's training batches.
        order: their order, which says where an epoch starts.
        processes: which process this is.
    """

    def __init__(
        self,
        recipe: Recipe,
        networks: Networks,
        classes: int,
        loader: Loader,
        order: EpochOrder,
        processes: Processes,
    ) -> None:
        self.recipe, self.processes = recipe, processes
        self.loader, self.order = loader, order
        self.steps_per_epoch = len(loader)
        self.length = recipe.length(self.steps_per_epoch)
        if recipe.gated:
            recipe.check_schedule(self.length)
        self.epoch = self.step = self.bad_images = 0
        self.averages = Averages()
        self.watched = FiniteLoss(processes.device)
        self.dynamic = networks.table is not None and recipe.gated
        self.model = self._placed(networks.model)
        if recipe.sync_bn and processes.count > 1:
            if processes.device.type == "cpu":
                raise ArgumentError(f"{recipe.call('sync_bn')}: PyTorch does that on GPUs only.")
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.ema = None
        if recipe.ema is not None:
            self.ema = needed("timm.utils").ModelEmaV3(
                self.model, decay=recipe.ema, use_warmup=True
            )
        self.teacher = None
        if recipe.alpha:
            self.teacher = self._placed(networks.teacher).eval().requires_grad_(False)
        self.objective = Objective(
            recipe,
            networks.table,
            networks.categories,
            smoothing=recipe.smoothing,
            alpha=recipe.alpha,
            temperature=recipe.distill_temperature,
        )
        self.mixing = make_mixing(recipe, classes)
        self.dtype = amp_dtype(recipe, processes.device)
        gates = [] if networks.table is None else list(gate_parameters(self.model))
        for parameter in gates:  # where levels decide, DistributedDataParallel has to know
            parameter.requires_grad_(self.dynamic)
        self.optimizer = make_optimizer(recipe, self.model)
        self.schedule = make_schedule(recipe, self.optimizer, self.steps_per_epoch)
        scales = recipe.amp == "fp16"
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=scales)
        self.wrapped: nn.Module = self.model
        if processes.count > 1:
            own = [processes.device] if processes.device.type == "cuda" else None
            self.wrapped = DistributedDataParallel(self.model, device_ids=own)

    def _placed(self, model: nn.Module) -> nn.Module:
        last = self.recipe.channels_last
        model = model.to(self.processes.device)
        return model.to(memory_format=torch.channels_last) if last else model

    @property
    def trained(self) -> nn.Module:
        """The network to evaluate and to keep: with averaged weights, if any."""
        return self.model if self.ema is None else self.ema.module

    def check(self) -> None:
        """Raise if a loss or weight is not finite, before it is saved.

        Raises:
            TrainingError: if a loss was not finite, or a weight is not.
        """
        self.watched.check()
        when = f"after step {self.step} of epoch {self.epoch + 1}"
        check_weights(self.model, when)
        if self.ema is not None:
            check_weights(self.ema.module, when)

    def bad_images_everywhere(self) -> int:
        """Return how many images could not be read; all processes must call it."""
        return int(self.processes.rows(torch.tensor([float(self.bad_images)])).sum())

    def state(self) -> dict[str, Any]:
        """Return everything that a run needs to resume from here; all processes must call it.

        Raises:
            TrainingError: if a loss was not finite, or a weight is not.
        """
        self.check()
        return {
            "epoch": self.epoch,
            "step": self.step,
            "bad_images": self.bad_images_everywhere(),
            "averages": self.averages.state(self.processes),
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Resume from what `state` returned."""
        self.epoch, self.step = state["epoch"], state["step"]
        self.bad_images = state["bad_images"] if self.processes.is_main else 0
        self.averages = Averages.of_state(state["averages"], self.processes)
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])

    def train_epoch(self, after_step: Callable[[], None]) -> dict[str, float]:
        """Train to the end of the epoch; return the figures, averaged over all steps.

        Args:
            after_step: called between steps; it may save the state, or raise in order to stop.

        Raises:
            TrainingError: if the loss is not finite.
        """
        self.model.train()
        self.order.epoch = self.epoch
        self.order.start = self.step * self.recipe.batch_size
        begun, at_first, phase = time.perf_counter(), self.step, self._phase()
        with Progress(
            f"epoch {self.epoch + 1}/{self.epochs}",
            self.steps_of_epoch * self.recipe.batch_size,
            shown=self.processes.is_main,
            unit="images",
            done=self.step * self.recipe.batch_size,
        ) as bar:
            for batch in self._batches():
                phase = self._phase()
                with drawn_from(self.recipe.seed, self.processes.rank, self.updates, _STEPS):
                    self._train_step(batch, phase)
                self.step += 1
                bar.update(self.recipe.batch_size, partial(self._shown, phase))
                after_step()
        self.watched.check()
        means = self.averages.means_everywhere(self.processes)
        seconds = time.perf_counter() - begun
        means["images_per_second"] = (self.step - at_first) * self.recipe.batch_size / seconds
        means["target"], means["tau"] = phase.target, phase.tau
        self.epoch, self.step, self.averages = self.epoch + 1, 0, Averages()
        self.order.start = 0
        return means

    def _shown(self, phase: GatePhase) -> str:
        return postfix(self.averages.means(), phase.target)

    def _batches(self) -> Iterator[Batch]:
        if self.step < self.steps_of_epoch:
            yield from islice(self.loader, self.steps_of_epoch - self.step)

    @property
    def epochs(self) -> int:
        """How many epochs there are; the last one may be a part of one."""
        return math.ceil(self.length)

    @property
    def steps_of_epoch(self) -> int:
        """How many steps this epoch has."""
        left = round(self.length * self.steps_per_epoch) - self.epoch * self.steps_per_epoch
        return min(self.steps_per_epoch, left)

    @property
    def updates(self) -> int:
        """How many steps have been made."""
        return self.epoch * self.steps_per_epoch + self.step

    def _phase(self) -> GatePhase:
        phase = gate_phase(self.recipe, self.updates / self.steps_per_epoch, self.length)
        if self.dynamic:
            for controller in controllers(self.model):
                controller.tau = phase.tau
        return phase

    def _train_step(self, batch: Batch, phase: GatePhase) -> None:
        device = self.processes.device
        self.bad_images += len(checked(batch, self.recipe).bad)
        images, targets = (t.to(device, non_blocking=True) for t in batch[:2])
        if self.recipe.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        if self.mixing is not None:
            images, targets = self.mixing(images, targets)
        self.schedule.step_update(self.updates)
        losses, logits, paths = self._forward(images, targets, phase)
        self.watched.see(losses.total, self.epoch, self.step)
        self._update(losses.total)
        self.averages.add(measured(losses, logits, targets, paths), len(images))

    def _forward(
        self, images: Tensor, targets: Tensor, phase: GatePhase
    ) -> tuple[Losses, Tensor, Paths | None]:
        paths, own = None, images.clone()  # the network may write into it
        with self._autocast():
            if self.dynamic:
                opened = force_gates(self.model, True) if phase.open else nullcontext()
                with opened, record_paths(self.model) as paths:
                    output = self.wrapped(own)
            elif self.recipe.levels:
                with force_gates(self.model, True):
                    output = self.wrapped(own)
            else:
                output = self.wrapped(own)
            logits = logits_of(output, len(images), "finetune")
            taught = self._taught(images)
            levels = self._levels(images, logits)
        losses = self.objective(logits, targets, paths, phase, taught)
        losses = losses._replace(total=losses.total + levels, levels=levels)
        return losses, logits, paths

    def _levels(self, images: Tensor, logits: Tensor) -> Tensor:
        """Return the divergence of the step's lower paths from the answers of all sub-blocks."""
        total = logits.new_zeros((), dtype=torch.float32)
        if self.recipe.levels:
            levels, seed = self.recipe.levels, self.recipe.seed
            for path in step_paths(self.model, levels, self.updates, seed):
                total = total + divergence(self.model, images, logits, path)
        return total

    def _taught(self, images: Tensor) -> Tensor | None:
        if self.teacher is None:
            return None
        with torch.no_grad():
            return logits_of(self.teacher(images.clone()), len(images), "teacher")

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.processes.device.type, self.dtype)

    def _update(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        if self.recipe.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.model, step=self.updates)
