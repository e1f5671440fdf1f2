"""The accuracy that int8 costs: the released network, and CIFAR-10 checkpoints where they are."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dmnn_convert import Cascade, deploy, dynamize, freeze, load, load_deployed

EXAMPLES = Path(__file__).parents[2] / "examples"


def released() -> tuple[dict[str, nn.Module], list[Any], list[Any]]:
    """Return networks of the released ResNet-20, images to calibrate on, and test images."""
    sys.path.insert(0, str(EXAMPLES))
    import budget_curve

    model = load("resnet20-cifar10-levels").model.eval()
    held_out, test = budget_curve.batches("held_out"), budget_curve.batches("test")
    cascade = Cascade.fit(model, held_out, levels=(0.25, 1.0), flops_ratio=0.6)
    networks = {"level 1": freeze(model, 1.0), "level 0.5": freeze(model, 0.5)}
    return {**networks, "cascade 0.25 → 1": cascade}, held_out, test


def of_checkpoints(
    data: Path, checkpoints: Path
) -> tuple[dict[str, nn.Module], list[Any], list[Any]]:
    """Return CIFAR-10 ResNets and a cascade of them, images to calibrate on, and test images."""
    from torchvision import transforms as T
    from torchvision.datasets import ImageFolder

    sys.path.insert(0, str(EXAMPLES))
    import cifar_resnet

    norm = T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    how = T.Compose([T.ToTensor(), norm])
    train, test = (ImageFolder(str(data / part), how) for part in ("train", "test"))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:1000].tolist()
    held = [train[i] for i in order]
    batches = [_stacked(held[i : i + 50]) for i in range(0, len(held), 50)]
    tested = [_stacked([test[j] for j in range(i, i + 250)]) for i in range(0, len(test), 250)]
    levels = {}
    for depth in (20, 56):
        net = getattr(cifar_resnet, f"resnet{depth}")()
        (file,) = checkpoints.glob(f"resnet{depth}-*.th")
        state = torch.load(file, weights_only=True, map_location="cpu")["state_dict"]
        net.load_state_dict({k.removeprefix("module."): v for k, v in state.items()})
        model = dynamize(net, 2, split="exact", input_size=(3, 32, 32)).model.eval()
        levels[depth] = freeze(model, 1.0)
    cascade = Cascade.fit([levels[20], levels[56]], batches, flops_ratio=0.7)
    networks = {"ResNet-20": levels[20], "ResNet-56": levels[56], "ResNet-20 → 56": cascade}
    return networks, batches, tested


def _stacked(samples: list[Any]) -> tuple[Any, Any]:
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels)


def lost_by_int8(
    networks: dict[str, nn.Module], batches: list[Any], tested: list[Any], threads: int
) -> Iterator[tuple[str, float, float]]:
    """Yield each network's name, its top-1 in fp32, and that in int8, in percent."""
    for name, network in networks.items():
        right = {}
        for precision in ("fp32", "int8"):
            with tempfile.TemporaryDirectory() as folder:
                ways = {"engine": "onnxruntime", "precision": precision, "calibration": batches}
                deploy(network, folder, batches[0][0], **ways)
                run = load_deployed(folder, threads=threads)
                hits = [(run(x.numpy()).argmax(1) == y.numpy()).mean() for x, y in tested]
            right[precision] = 100 * float(np.mean(hits))
        yield name, right["fp32"], right["int8"]
