"""Draw docs/images.jpg: what single CIFAR-10 images cost a cascade of two pretrained networks.

python tools/easy_and_hard.py --data DIR --checkpoints DIR   (needs matplotlib)

DIR holds train/ and test/, a folder of images for each class. The thresholds are chosen on 2,000
training images; the cascade then answers the 10,000 test images. Also writes the whole report,
images.csv and images.html, to --output.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Normalize, ToTensor

from dmnn_convert import Cascade, explain, load_source_checkpoint

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import cifar_resnet  # noqa: E402

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EACH = 4
HELD_OUT = 2000


def network(name: str, folder: Path) -> nn.Module:
    """Build a network of the example with its pretrained weights."""
    model: nn.Module = getattr(cifar_resnet, name)()
    load_source_checkpoint(model, next(folder.glob(f"{name}-*.th")))
    return model.eval()


def draw(rows: list[dict[str, str]], data: Path, file: Path) -> None:
    """Draw the easiest and hardest images of each class, and how many ask both networks."""
    by_class = defaultdict(list)
    for row in rows:
        by_class[row["label"]].append(row)
    figure, axes = plt.subplots(
        len(by_class), 2 * EACH + 2, figsize=(9, 8), width_ratios=[2.6, *[1] * (2 * EACH), 0.2]
    )
    for line, (name, own) in zip(axes, sorted(by_class.items()), strict=True):
        own.sort(key=lambda row: (float(row["flops_ratio"]), -float(row["confidence"])))
        asked = sum(row["level"] == "1" for row in own) / len(own)
        line[0].barh([0], [asked], color="#c9772b", height=0.6)
        line[0].barh([0], [1 - asked], left=[asked], color="#3b6ea8", height=0.6)
        line[0].text(0.02, 0, f"{100 * asked:.0f} %", va="center", color="white", fontsize=8)
        line[0].set(xlim=(0, 1), yticks=[], xticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        for place, row in zip(line[1:-1], [*own[:EACH], *own[: -EACH - 1 : -1]], strict=True):
            place.imshow(plt.imread(data / "test" / row["image"]))
            place.set(xticks=[], yticks=[])
            right = row["right"] == "1"
            place.set_xlabel(
                "" if right else row["answer"], fontsize=6, color="#c9772b", labelpad=1
            )
        line[-1].axis("off")
        for place in line[:-1]:
            place.spines[:].set_visible(False)
    axes[0][0].set_title("asked both networks", fontsize=9)
    axes[0][1].set_title("easiest", fontsize=9, loc="left")
    axes[0][1 + EACH].set_title("hardest, and what they were taken for", fontsize=9, loc="left")
    figure.subplots_adjust(0.1, 0.02, 1, 0.96, 0.05, 0.28)
    figure.savefig(file, dpi=100, pil_kwargs={"quality": 85})


def main() -> None:
    """Fit the cascade, report on the test images, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoints", type=Path, default=ROOT.parent / "shared" / "checkpoints")
    parser.add_argument("--output", type=Path, default=Path("."))
    options = parser.parse_args()
    prepare = Compose([ToTensor(), Normalize(MEAN, STD)])
    train, test = (ImageFolder(options.data / part, prepare) for part in ("train", "test"))
    some = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:HELD_OUT]
    held_out = DataLoader(Subset(train, some.tolist()), 256)
    networks = [network(name, options.checkpoints) for name in ("resnet20", "resnet56")]
    cascade = Cascade.fit(networks, held_out, flops_ratio=0.6)
    files = [options.output / "images.csv", options.output / "images.html"]
    found = explain(
        cascade,
        DataLoader(test, 256),
        files,
        names=(str(Path(file).relative_to(test.root)) for file, _ in test.samples),
        classes=test.classes,
        mean=MEAN,
        std=STD,
        title="ResNet-20, then ResNet-56 where it is unsure",
    )
    sys.stdout.write(
        f"top-1 {found.evaluation.top1:.2f} % at {found.flops_ratio:.3f} of ResNet-56's FLOPs\n"
        + "".join(f"{exit}\n" for exit in found.exits)
    )
    with files[0].open(newline="", encoding="utf-8") as file:
        draw(list(csv.DictReader(file)), options.data, ROOT / "docs" / "images.jpg")


if __name__ == "__main__":
    main()
