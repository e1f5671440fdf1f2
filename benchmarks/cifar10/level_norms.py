"""Batch norms of levels: one scale and shift for all of them, or one for each.

    python benchmarks/cifar10/level_norms.py --data DIR --checkpoints DIR
    python benchmarks/cifar10/level_norms.py --data DIR --checkpoints DIR --size 16

Trains He et al.'s ResNet-20 twice for all levels, by the same recipe and with the same images in
the same order: as `level_losses` does, and with a scale and shift in each block for every number of
sub-blocks that may run (switchable batch norm; Yu et al., Slimmable Neural Networks, ICLR 2019).
Both get norm statistics of each level after training. Prints top-1 of the levels on the test
images.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from budget_runs import LEVELS, Run, recipe_of
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from dmnn_convert import (
    at_level,
    dynamize,
    estimate_levels,
    evaluate,
    force_gates,
    level_path,
    parameter_groups,
)
from dmnn_convert.budget.sandwich import divergence, step_paths
from dmnn_convert.data import (
    Batch,
    EpochOrder,
    MemoryBatches,
    images,
    preprocessing,
    test_loader,
    test_transform,
)
from dmnn_convert.distributed import Processes
from dmnn_convert.finetune import Recipe
from dmnn_convert.io import load_source_checkpoint, zoo
from dmnn_convert.nn import multi_path_blocks


class Shared:
    """One scale and shift for all paths: the network's own, which need nothing."""

    def choose(self, path: Tensor) -> None:
        """Let the norms have the scales and shifts of a path (total sub-blocks,)."""

    def learned(self) -> None:
        """Note the gradients of the pass that has just ended."""


class PerLevel(Shared):
    """A scale and shift for each number of running sub-blocks, in the norms of every block.

    Each has its parameters swapped into the network for a pass, and learns from this pass alone.

    Args:
        model: a converted model with the same number of sub-blocks everywhere.
        optimizer: gets the new parameters, in place of the norms' own.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.sizes = [len(block.sub_blocks) for block in multi_path_blocks(model)]
        self.places: list[tuple[int, nn.Parameter, list[nn.Parameter]]] = []
        for number, block in enumerate(multi_path_blocks(model)):
            norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.affine]
            for parameter in (p for norm in norms for p in (norm.weight, norm.bias)):
                rows = [nn.Parameter(parameter.detach().clone()) for _ in block.sub_blocks]
                self.places.append((number, parameter, rows))
        own = {id(parameter) for _, parameter, _ in self.places}
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in own]
        new = [row for _, _, rows in self.places for row in rows]
        optimizer.add_param_group({"params": new, "weight_decay": 0.0})
        self.now: list[nn.Parameter] = []

    def choose(self, path: Tensor) -> None:
        """Swap in the scales and shifts of a path."""
        counts = [int(part.sum()) for part in path.split(self.sizes)]
        self.now = [rows[counts[number] - 1] for number, _, rows in self.places]
        for (_, parameter, _), row in zip(self.places, self.now, strict=True):
            parameter.data, parameter.grad = row.data, None

    def learned(self) -> None:
        """Hand the gradients of the pass to the scales and shifts that it had."""
        for (_, parameter, _), row in zip(self.places, self.now, strict=True):
            if parameter.grad is not None:
                row.grad = parameter.grad if row.grad is None else row.grad + parameter.grad
                parameter.grad = None


def train(model: nn.Module, way: str, loader: MemoryBatches, recipe: Recipe) -> Shared:
    """Train for all levels; return the norms that the levels have."""
    groups = parameter_groups(model, weight_decay=recipe.weight_decay, lr=recipe.lr)
    optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum)
    norms = PerLevel(model, optimizer) if way == "per level" else Shared()
    steps = recipe.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    every = level_path(model, 1.0)
    model.train()
    bar = tqdm(enumerate(_epochs(loader, recipe.epochs)), way, total=steps, mininterval=30)
    for step, batch in bar:
        optimizer.zero_grad()
        pictures = batch.images.contiguous(memory_format=torch.channels_last)
        norms.choose(every)
        with force_gates(model, True):
            logits = model(pictures)
        F.cross_entropy(logits, batch.labels).backward()
        norms.learned()
        for path in step_paths(model, LEVELS, step, recipe.seed):
            norms.choose(path)
            divergence(model, pictures, logits, path).backward()
            norms.learned()
        optimizer.step()
        schedule.step()
    return norms


def _epochs(loader: MemoryBatches, epochs: int) -> Iterator[Batch]:
    for epoch in range(epochs):
        loader.order.epoch = epoch
        yield from loader


def main() -> None:
    """Train both ways, and print a row for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--size", type=int, default=32, help="pixels per side; 16 takes a quarter")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(amp=None, runs=Path())
    options = parser.parse_args()
    recipe = recipe_of(Run("resnet20", "levels", seed=options.seed), options)
    here = Processes(0, 1, torch.device("cpu"))
    data = images.open_data(recipe)
    print("| scale and shift | minutes |", *(f"level {level:g} |" for level in LEVELS))
    print("|---" * (2 + len(LEVELS)) + "|", flush=True)
    for way in ("shared", "per level"):
        torch.manual_seed(options.seed)
        source = zoo.build(recipe.arch)
        load_source_checkpoint(source, Path(str(recipe.checkpoint)))
        how = preprocessing(recipe, source, options.size)
        order = EpochOrder(data.train, recipe.seed, here)
        loader = MemoryBatches(recipe, data.train, how, order, recipe.batch_size, shown=False)
        tests = test_loader(recipe, data.test, test_transform(how), here)
        shape = (3, options.size, options.size)
        model, table = dynamize(source, 4, split="exact", tail_norm="shared", input_size=shape)
        model.to(memory_format=torch.channels_last)
        begun = time.monotonic()
        norms = train(model, way, loader, recipe)
        cells = [f"{(time.monotonic() - begun) / 60:.0f}"]
        for level in LEVELS:
            norms.choose(level_path(model, level))
            estimate_levels(model, loader, [level])
            with torch.no_grad(), at_level(model, level):
                cells.append(f"{evaluate(model, table, tests, channels_last=True).top1:.2f}")
        print(f"| {way} |", *(f"{cell} |" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
