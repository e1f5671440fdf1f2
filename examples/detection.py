"""A detector with a dynamic backbone: torchvision's Faster R-CNN on images of squares.

    python examples/detection.py --steps 60

The backbone is converted before training; the detector's own losses and the resource loss train it
together. Any data set of torchvision's form will do in place of the squares: images, and targets
with boxes and labels.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import box_iou

import dmnn_convert
from dmnn_convert import FlopsTable, GateConfig

SIDE, COLOURS = 96, ((1.0, 0.2, 0.2), (0.2, 1.0, 0.2))


class Batch(NamedTuple):
    """Images (3, H, W), and for each its boxes (n, 4) and labels (n,)."""

    images: list[Tensor]
    targets: list[dict[str, Tensor]]


def squares(batch: int, seed: int) -> Iterator[Batch]:
    """Yield batches of noise with one square each, red or green, without end."""
    draws = torch.Generator().manual_seed(seed)
    while True:
        images, targets = [], []
        for _ in range(batch):
            image = 0.3 * torch.rand(3, SIDE, SIDE, generator=draws)
            size = int(torch.randint(24, 56, (), generator=draws))
            x, y = torch.randint(0, SIDE - size, (2,), generator=draws).tolist()
            label = int(torch.randint(2, (), generator=draws))
            image[:, y : y + size, x : x + size] = torch.tensor(COLOURS[label])[:, None, None]
            images.append(image)
            box = torch.tensor([[x, y, x + size, y + size]], dtype=torch.float32)
            targets.append({"boxes": box, "labels": torch.tensor([label + 1])})
        yield Batch(images, targets)


def detector(seed: int = 0) -> tuple[FasterRCNN, FlopsTable]:
    """Return a detector whose backbone is converted, and the backbone's FLOPs table."""
    torch.manual_seed(seed)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        norm_layer=nn.BatchNorm2d,  # trained from random weights
        trainable_layers=5,
        returned_layers=[3, 4],
    )
    gate = GateConfig(init_rate=0.7, spread=3.0)
    converted, table = dmnn_convert.dynamize(backbone, 2, gate=gate, input_size=(3, SIDE, SIDE))
    anchors = AnchorGenerator(((32,), (48,), (64,)), ((1.0,),) * 3)
    # Images keep their size, for which the table holds.
    model = FasterRCNN(
        converted,
        3,
        min_size=SIDE,
        max_size=SIDE,
        rpn_anchor_generator=anchors,
        box_detections_per_img=5,
    )
    return model, table


def train(model: nn.Module, table: FlopsTable, steps: int, target: float) -> list[float]:
    """Train for so many steps; return the loss of each."""
    groups = dmnn_convert.parameter_groups(model, weight_decay=1e-4, lr=0.01, gate_lr=0.1)
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9)
    losses = []
    model.train()
    for _, (images, targets) in zip(range(steps), squares(4, seed=1), strict=False):
        with dmnn_convert.record_paths(model) as paths:
            parts = model(images, targets)
        loss = sum(parts.values()) + 2 * dmnn_convert.resource_loss(paths, table, target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@torch.no_grad()
def evaluate(model: nn.Module, batches: int) -> tuple[float, float]:
    """Return how many squares are found (IoU above one half, right colour), and the FLOPs ratio."""
    model.eval()
    found = total = 0
    with dmnn_convert.record_paths(model) as paths:
        for _, (images, targets) in zip(range(batches), squares(4, seed=2), strict=False):
            for answer, target in zip(model(images), targets, strict=True):
                total += 1
                if len(answer["boxes"]):
                    near = box_iou(answer["boxes"][:1], target["boxes"]).item() > 0.5
                    found += near and bool(answer["labels"][0] == target["labels"][0])
    return found / total, float(paths.network_flops_ratio())


def main() -> None:
    """Convert, train, and say what was found at which cost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--target", type=float, default=0.5)
    options = parser.parse_args()
    model, table = detector()
    losses = train(model, table, options.steps, options.target)
    found, ratio = evaluate(model, 8)
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}")
    print(f"found {100 * found:.0f} % of the squares; backbone at {ratio:.2f} of its FLOPs")


if __name__ == "__main__":
    main()
