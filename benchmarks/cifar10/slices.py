"""CIFAR networks: pretrained, and as plain slices with fewer hidden channels."""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

import torch

from dmnn_convert import dynamize
from dmnn_convert.files import write_all
from dmnn_convert.io import load_source_checkpoint, zoo

FACTORIES = Path(__file__).parents[2] / "examples" / "cifar_resnet.py"


def checkpoint_of(factory: str, options: argparse.Namespace) -> Path:
    """Return the file of a network's pretrained weights."""
    found = sorted(options.checkpoints.glob(f"{factory}*"))
    if not found:
        sys.exit(f"{options.checkpoints}: holds no {factory}*; give --checkpoints DIR.")
    return Path(found[0])


def sliced(network: str, factory: str, share: float, checkpoint: Path, folder: Path) -> Path:
    """Write the weights of a narrower network: of each block's hidden channels, the larger ones.

    A channel counts by the size of its batch norm's scale times that of the weights that read it,
    as it does in the order of sub-blocks.

    Args:
        network: factory of the network that the checkpoint is of.
        factory: of the narrower one; the file's name.
        share: of the hidden channels that it has.
        checkpoint: of the network.
        folder: where to write.
    """
    source = zoo.build(f"{FACTORIES}:{network}")
    load_source_checkpoint(source, checkpoint)
    weights = source.state_dict()
    for block in (name for name, m in source.named_modules() if hasattr(m, "conv2")):
        readers = weights[f"{block}.conv2.weight"]
        size = weights[f"{block}.bn1.weight"].abs() * readers.square().sum((0, 2, 3)).sqrt()
        kept = size.topk(int(len(size) * share)).indices.sort().values
        weights[f"{block}.conv2.weight"] = readers[:, kept]
        for key in (f"{block}.conv1.weight", *(k for k in weights if k.startswith(f"{block}.bn1"))):
            if weights[key].dim():
                weights[key] = weights[key][kept]
    file = folder / f"{factory}.pth"
    write_all(file.parent, {file.name: lambda path: torch.save(weights, path)})
    return file


@functools.cache
def dense_macs(factory: str) -> int:
    """Return the MACs of one image in a dense network."""
    source = zoo.build(f"{FACTORIES}:{factory}")
    return dynamize(source, 2, input_size=(3, 32, 32)).table.dense_total
