"""Dynamic training with the Trainer of transformers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import ArgumentError
from ..foreign import images_and_labels, logits_of
from ..loss import DMNNLoss, GateSchedule
from ..nn import parameter_groups
from .training_step import dynamic_step

try:
    from transformers import Trainer
except ImportError as error:
    raise ArgumentError(
        "dmnn_convert.integrations.transformers needs transformers; "
        'pip install "dmnn-convert[transformers]".'
    ) from error


class DynamicTrainer(Trainer):  # type: ignore[misc]
    """A Trainer for a converted image classifier.

    It minimises the paper's loss, lets target and temperature follow the schedule, logs execution
    rate and FLOPs as ``gates/...`` with everything else, and gives the controllers a learning rate
    of their own. Batches hold `pixel_values` and `labels`; the model may return logits, a dict or
    an output with logits.

    Args:
        gate_loss: the loss to minimise.
        gate_schedule: of target and temperature, in epochs; None leaves both unchanged.
        gate_lr: learning rate of the controllers; None for that of the network.
        arguments: the Trainer's.

    Example:
        >>> trainer = DynamicTrainer(  # doctest: +SKIP
        ...     model=model,
        ...     args=TrainingArguments("run", num_train_epochs=20, remove_unused_columns=False),
        ...     train_dataset=train,
        ...     gate_loss=DMNNLoss(table, target=0.5),
        ...     gate_schedule=GateSchedule(0.5, epochs=20),
        ...     gate_lr=0.3,
        ... )
        >>> trainer.train()  # doctest: +SKIP
    """

    def __init__(
        self,
        *arguments: Any,
        gate_loss: DMNNLoss,
        gate_schedule: GateSchedule | None = None,
        gate_lr: float | None = None,
        **options: Any,
    ) -> None:
        self.gate_loss, self.gate_schedule, self.gate_lr = gate_loss, gate_schedule, gate_lr
        self._figures: list[dict[str, Tensor | float]] = []
        config = getattr(arguments[0] if arguments else options.get("model"), "config", None)
        has_cache = hasattr(config, "use_cache")
        super().__init__(*arguments, **options)
        if config is not None and not has_cache and hasattr(config, "use_cache"):
            # The Trainer tells every network not to keep a cache. One that has none would hand it
            # on to its layers, and converted ones take no arguments but those of the conversion.
            del config.use_cache
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch
        # Arguments that only transformers' own networks take; labels are in every batch.
        self.label_names: Any = getattr(self, "label_names", None) or ["labels"]

    def create_optimizer(self, *arguments: Any) -> Any:
        """Build the optimiser, controllers in groups of their own, norms and biases undecayed."""
        if getattr(self, "optimizer", None) is None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            groups = parameter_groups(
                self.model,
                weight_decay=self.args.weight_decay,
                lr=options.get("lr", self.args.learning_rate),
                gate_lr=self.gate_lr,
            )
            self.optimizer: Any = kind(groups, **options)
        return self.optimizer

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, **more: Any
    ) -> Tensor | tuple[Tensor, Any]:
        """Return the loss of a batch (in evaluation, that of classification), and its outputs."""
        images, labels = images_and_labels(inputs, "DynamicTrainer")
        used = {id(images), id(inputs.get("labels", labels))}
        others = {key: value for key, value in inputs.items() if id(value) not in used}
        if model.training:
            step = dynamic_step(
                model,
                lambda: model(images, **others),
                labels,
                self.gate_loss.to(labels.device),
                self.gate_schedule,
                float(self.state.epoch or 0.0),
            )
            self._figures.append(step.figures)
            loss, output = step.loss, step.output
        else:  # gates are judged by accuracy and FLOPs, not by their training loss
            output = model(images, **others)
            logits = logits_of(output, len(labels), "DynamicTrainer", self.gate_loss.logits)
            loss = self.gate_loss.classification(logits, labels)
        # The Trainer takes a tuple's first part for the loss, and all of a dict for outputs.
        outputs = {"logits": output} if isinstance(output, Tensor) else output
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        """Log the means of the gates' figures since the last time as well."""
        if self._figures and "loss" in logs:
            steps, self._figures = self._figures, []
            for name in steps[-1]:
                mean = sum(float(figures[name]) for figures in steps) / len(steps)
                logs[f"gates/{name}"] = mean
        super().log(logs, *arguments, **options)
