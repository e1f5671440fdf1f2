"""The training loop and the evaluation that the examples share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

import dmnn_convert
from dmnn_convert import DMNNLoss, Paths


class Evaluation(NamedTuple):
    """What a network does on a test set."""

    top1: float
    paths: Paths | None


def evaluate(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], what: str) -> Evaluation:
    """Return the top-1 accuracy in percent, and of a dynamic network the paths that images took."""
    dynamic = any(isinstance(module, dmnn_convert.MultiPathBlock) for module in model.modules())
    if not dynamic:
        return Evaluation(_top1(model, loader, what), None)
    with dmnn_convert.record_paths(model) as paths:
        return Evaluation(_top1(model, loader, what), paths)


@torch.no_grad()
def _top1(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], what: str) -> float:
    model.eval()
    right = total = 0
    for images, labels in tqdm(loader, what, leave=False):
        right += int((model(images).argmax(1) == labels).sum())
        total += len(labels)
    return 100 * right / total


def train(
    model: nn.Module,
    step: Callable[[Tensor, Tensor], Tensor],
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    epochs: int,
    lr: float,
    gate_lr: float | None = None,
    weight_decay: float = 1e-4,
    max_steps: int | None = None,
    what: str = "train",
    progress: bool = True,
) -> None:
    """Train by Nesterov SGD with a warm-up and a cosine; `step` returns a batch's loss.

    With `gate_lr` the gate controllers learn at a rate of their own, without weight decay.
    """
    steps = epochs * len(loader) if max_steps is None else max_steps  # type: ignore[arg-type]
    gates = list(dmnn_convert.gate_parameters(model)) if gate_lr else []
    others = [p for p in model.parameters() if not any(p is gate for gate in gates)]
    groups = [{"params": others, "lr": lr, "weight_decay": weight_decay}]
    if gates:
        groups.append({"params": gates, "lr": gate_lr, "weight_decay": 0.0})
    optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True)
    rates = [group["lr"] for group in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rates, total_steps=steps, pct_start=0.1
    )
    model.train()
    batches = islice(repeated(loader), steps)
    bar = tqdm(batches, what, steps, leave=False, disable=not progress)
    for images, labels in bar:
        loss = step(images, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")


def repeated(loader: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the loader's batches, epoch after epoch, without end."""
    while True:
        yield from loader


def classification_step(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a step of ordinary training."""
    return lambda images, labels: nn.functional.cross_entropy(model(images), labels)


def dynamic_step(model: nn.Module, loss: DMNNLoss) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a step of dynamic training: the gates are recorded and the loss reads them."""

    def step(images: Tensor, labels: Tensor) -> Tensor:
        with dmnn_convert.record_paths(model) as paths:
            logits = model(images)
        return loss(logits, labels, paths)

    return step
