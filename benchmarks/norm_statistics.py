"""Norm statistics after dynamic training: the images that should count inside a sub-block.

    python benchmarks/norm_statistics.py

Trains a ResNet and a bottleneck ResNet on scikit-learn's digits for each seed, converts each
exactly (N=2), fine-tunes it at target 0.5, and prints top-1 and test loss with the statistics that
training left, with those of `reestimate_norms` (count="all" and count="running"), and with those
of `torch.optim.swa_utils.update_bn`.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator

import torch
from channel_selection import network  # finds the examples, too
from cifar_resnet import CifarResNet
from digits import loaders
from loop import classification_step, dynamic_step, evaluate, train
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader

import dmnn_convert


def ways(model: nn.Module, training: DataLoader) -> Iterator[tuple[str, nn.Module]]:
    """Yield copies of a trained model whose norms got statistics in one way or another."""
    yield "as trained", model
    for count in ("all", "running"):
        renewed = copy.deepcopy(model)
        dmnn_convert.reestimate_norms(renewed, training, count=count)
        yield count, renewed
    renewed = copy.deepcopy(model)
    update_bn(training, renewed)
    yield "update_bn", renewed


@torch.no_grad()
def loss(model: nn.Module, test: DataLoader) -> float:
    """Return the mean cross-entropy in evaluation."""
    losses: list[Tensor] = []
    for images, labels in test:
        logits = model.eval()(images)
        losses.append(nn.functional.cross_entropy(logits, labels, reduction="none"))
    return float(torch.cat(losses).mean())


def main() -> None:
    """Train, convert, fine-tune, print a row for each way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="networks of each kind to train")
    parser.add_argument("--epochs", type=int, default=6, help="of each of the two trainings")
    options = parser.parse_args()
    torch.set_num_threads(1)  # images of 8×8 pixels are too small to share out
    for seed in range(options.seeds):
        for name, build in (("basic", lambda: CifarResNet(2)), ("bottleneck", network)):
            torch.manual_seed(seed)
            training, test = loaders(seed)
            source = build()
            length = {"epochs": options.epochs}
            train(source, classification_step(source), training, lr=0.1, **length)
            model, table = dmnn_convert.dynamize(source, 2, split="exact", input_size=(3, 8, 8))
            dmnn_convert.calibrate(model, training)
            step = dynamic_step(model, dmnn_convert.DMNNLoss(table, target=0.5))
            train(model, step, training, lr=0.05, gate_lr=0.5, **length)
            rates = evaluate(model, test, "test").paths.execution_rates()
            print(f"seed {seed}, {name}: execution rates", *(f"{rate:.2f}" for rate in rates))
            for way, renewed in ways(model, training):
                top1 = evaluate(renewed, test, way).top1
                print(f"  {way:12} {top1:6.2f} %  loss {loss(renewed, test):.4f}", flush=True)


if __name__ == "__main__":
    main()
