"""Dynamic training in Lightning: a mixin for modules, and a callback for those without it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from ..errors import ArgumentError
from ..loss import DMNNLoss, GateSchedule
from .training_step import dynamic_step

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback
    except ImportError as error:
        raise ArgumentError(
            "dmnn_convert.integrations.lightning needs Lightning; "
            'pip install "dmnn-convert[lightning]".'
        ) from error


class DynamicTraining:
    """A mixin for a LightningModule whose network is converted.

    Call `set_dynamic` once the network is converted, and `dynamic_loss` in `training_step`: target
    and temperature follow the schedule, the loss is that of the paper, category heads included, and
    its parts, the execution rate and the FLOPs are logged as ``gates/...``.

    Example:
        >>> class Net(DynamicTraining, LightningModule):  # doctest: +SKIP
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net, table = dynamize(resnet50(), N=2)
        ...         self.set_dynamic(DMNNLoss(table, target=0.5), GateSchedule(0.5, epochs=20))
        ...
        ...     def training_step(self, batch, index):
        ...         images, labels = batch
        ...         return self.dynamic_loss(self.net, images, labels, index)
        ...
        ...     def configure_optimizers(self):
        ...         groups = parameter_groups(self.net, weight_decay=1e-4, gate_lr=0.3)
        ...         return torch.optim.SGD(groups, lr=0.05, momentum=0.9)
    """

    gate_loss: DMNNLoss
    gate_schedule: GateSchedule | None

    def set_dynamic(self, loss: DMNNLoss, schedule: GateSchedule | None = None) -> None:
        """Set the loss and the schedule of target and temperature; None leaves both unchanged."""
        self.gate_loss, self.gate_schedule = loss, schedule

    def dynamic_loss(self, network: nn.Module, images: Any, labels: Tensor, index: int) -> Tensor:
        """Run the network on a batch and return its loss, a scalar.

        Args:
            network: the converted one, or one that contains it.
            images: input of the network.
            labels: as the loss takes them.
            index: number of the batch in its epoch.

        Raises:
            ArgumentError: if `set_dynamic` was not called.
        """
        if not isinstance(getattr(self, "gate_loss", None), DMNNLoss):
            raise ArgumentError(
                f"{type(self).__name__}.dynamic_loss: call self.set_dynamic(loss, schedule) first."
            )
        trainer = self.trainer  # type: ignore[attr-defined]
        epoch = _epoch(trainer, index)
        step = dynamic_step(
            network, lambda: network(images), labels, self.gate_loss, self.gate_schedule, epoch
        )
        figures = {f"gates/{name}": value for name, value in step.figures.items()}
        self.log_dict(figures, batch_size=len(labels))  # type: ignore[attr-defined]
        return step.loss


class GateScheduleCallback(Callback):  # type: ignore[misc]
    """Sets temperature and target before every batch, in modules that write the step themselves.

    The module holds a converted network and a `DMNNLoss` as attributes, and records the paths in
    its `training_step`. Both are found among its modules.

    Args:
        schedule: of the target and the temperature.
    """

    def __init__(self, schedule: GateSchedule) -> None:
        self.schedule = schedule
        self._open = ExitStack()

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Check that there is a loss whose target can be set."""
        self._loss(pl_module)

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Set temperature and target; turn all gates on if the schedule says so."""
        self._open.close()
        epoch = _epoch(trainer, batch_idx)
        step = self.schedule.step(pl_module, self._loss(pl_module), epoch)
        phase = self._open.enter_context(step)
        pl_module.log_dict({"gates/target": phase.target, "gates/tau": phase.tau})

    def on_train_batch_end(self, *_: Any) -> None:
        """Leave the gates to their controllers."""
        self._open.close()

    def on_exception(self, *_: Any) -> None:
        """Leave the gates to their controllers."""
        self._open.close()

    def _loss(self, module: nn.Module) -> DMNNLoss:
        found = [each for each in module.modules() if isinstance(each, DMNNLoss)]
        if len(found) != 1:
            raise ArgumentError(
                f"GateScheduleCallback: {type(module).__name__} holds {len(found)} losses of type "
                "DMNNLoss; give it one, as an attribute."
            )
        return found[0]


def _epoch(trainer: Any, index: int) -> float:
    """Return the time in epochs; batches of unknown number count as whole epochs."""
    batches = trainer.num_training_batches
    part = index / batches if batches and batches != float("inf") else 0.0
    return float(trainer.current_epoch + part)
