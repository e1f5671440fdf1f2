"""Accuracy that `reconstruct` wins back after the matched-width split of a trained network.

    python benchmarks/reconstruction.py

Trains a small bottleneck ResNet on scikit-learn's digits for each seed, converts it, and prints
medians of the accuracy right after conversion, all gates on, without any training: as converted,
with `reestimate_norms` alone, with every block fitted to the source on the source's inputs, with
`reconstruct` (which fits it on the converted network's own inputs), and with `calibrate` after it.
Beside it the error of the network's output, and the accuracy when norms divide by the batch's own
statistics, as in training.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Iterator

import torch
from channel_selection import network  # finds the examples, too
from digits import loaders
from loop import classification_step, evaluate, train
from torch import Tensor, nn

import dmnn_convert

SIZE = (3, 8, 8)
Batches = list[tuple[Tensor, Tensor]]


def convert(source: nn.Module, N: int, where: list[str] | None = None) -> nn.Module:
    """Convert a network or some of its blocks."""
    return dmnn_convert.dynamize(source, N, input_size=SIZE, where=where).model


def on_source_inputs(source: nn.Module, N: int, training: Batches) -> nn.Module:
    """Convert; fit each block in a network whose other blocks are still the source's."""
    model = convert(source, N)
    blocks = {name: m for name, m in model.named_modules() if name.endswith("multi_path")}
    for path, block in blocks.items():
        alone = convert(source, N, [path.rpartition(".")[0]])
        dmnn_convert.reconstruct(alone, source, training, len(training))
        block.sub_blocks.load_state_dict(alone.get_submodule(path).sub_blocks.state_dict())
    return model


def with_new_norms(model: nn.Module, training: Batches) -> nn.Module:
    """Give every norm the statistics that it meets in the converted network."""
    with dmnn_convert.force_gates(model, True):
        dmnn_convert.reestimate_norms(model, training, len(training))
    return model


def ways(source: nn.Module, N: int, training: Batches) -> Iterator[tuple[str, nn.Module]]:
    """Yield the converted networks to compare, and what was done to them."""
    yield "as converted", convert(source, N)
    yield "norms re-estimated, all gates on", with_new_norms(convert(source, N), training)
    yield "each block fitted on the source's inputs", on_source_inputs(source, N, training)
    model = convert(source, N)
    dmnn_convert.reconstruct(model, source, training, len(training))
    yield "`reconstruct`", copy.deepcopy(model)
    dmnn_convert.calibrate(model, training, len(training))
    yield "`reconstruct`, `calibrate`", model


@torch.no_grad()
def top1_in_training(model: nn.Module, test: Batches) -> float:
    """Return the top-1 accuracy with all gates on in training mode; the model is spoilt."""
    model.train()
    with dmnn_convert.force_gates(model, True):
        right = sum(int((model(x).argmax(1) == labels).sum()) for x, labels in test)
    return 100 * right / sum(len(labels) for _, labels in test)


def main() -> None:
    """Train, convert, fit, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3, help="networks to train")
    parser.add_argument("--batches", type=int, default=8, help="batches of 64 images to fit on")
    options = parser.parse_args()
    torch.set_num_threads(1)  # images of 8×8 pixels are too small to share out
    rows: dict[tuple[int, str], list[tuple[float, ...]]] = {}
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        training, test = loaders(seed)
        source = network()
        train(source, classification_step(source), training, epochs=options.epochs, lr=0.1)
        print(f"seed {seed}: source {evaluate(source, test, 'source').top1:.2f} %", flush=True)
        given = [batch for batch, _ in zip(training, range(options.batches), strict=False)]
        images = torch.cat([batch for batch, _ in test])
        for N in (2, 4):
            for name, model in ways(source, N, given):
                error = 100 * dmnn_convert.block_errors(source, model, images)[""]
                top1 = evaluate(model, test, name).top1
                values = (error, top1, top1_in_training(model, list(test)))
                rows.setdefault((N, name), []).append(values)
    print("| N | | output error | top-1 | top-1 in training mode |")
    print("|---|---|---|---|---|")
    for (N, name), values in rows.items():
        columns = (statistics.median(column) for column in zip(*values, strict=True))
        error, top1, in_training = columns
        print(f"| {N} | {name} | {error:.1f} % | {top1:.2f} % | {in_training:.2f} % |")


if __name__ == "__main__":
    main()
