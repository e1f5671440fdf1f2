"""One checkpoint at every budget: a trained ResNet-20, its levels and cascades, on real images.

    python examples/budget_curve.py

The network of models/ was trained for all levels by benchmarks/cifar10/budget.py. Thresholds are
chosen by images that were held out from its training, and measured on test images.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import normalize, pil_to_tensor

import dmnn_convert

MODELS = Path(__file__).parents[1] / "models"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def batches(kind: str, size: int = 100) -> list[tuple[Tensor, Tensor]]:
    """Return the sample's images of a kind, (100, 3, 32, 32) each time, with their classes."""
    with zipfile.ZipFile(MODELS / "cifar10-sample.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.startswith(f"{kind}/"))
        classes = sorted({name.split("/")[1] for name in names})
        pixels = [pil_to_tensor(Image.open(io.BytesIO(archive.read(name)))) for name in names]
    images = normalize(torch.stack(pixels).float() / 255, list(MEAN), list(STD))
    labels = torch.tensor([classes.index(name.split("/")[1]) for name in names])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return list(zip(images[order].split(size), labels[order].split(size), strict=True))


def main() -> None:
    """Print the curve, and what a cascade at the target comes to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", type=float, default=0.6, help="FLOPs of the dense network's")
    parser.add_argument("--plot", type=Path, help="draw the curve to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)  # images this small: more threads would wait for each other
    model, _ = dmnn_convert.load("resnet20-cifar10-levels")
    model.eval()
    held_out, test = batches("held_out"), batches("test")
    found = dmnn_convert.curve(model, test, policies=("level", "cascade"), held_out=held_out)
    print(found)
    if options.plot:
        found.plot(options.plot)
    cascade = dmnn_convert.Cascade.fit(
        model, held_out, levels=(0.25, 0.75), flops_ratio=options.target
    )  # levels=None tries all pairs and triples, as the curve does
    with torch.no_grad(), dmnn_convert.record_exits(cascade) as exits:
        answers = torch.cat([cascade(images).argmax(1) for images, _ in test])
    right = (answers == torch.cat([labels for _, labels in test])).float().mean()
    asked = torch.bincount(exits.levels, minlength=len(cascade.networks)).tolist()
    print(f"\nA cascade for {options.target:g} of the FLOPs: {100 * right:.1f} %, {asked} images")


if __name__ == "__main__":
    main()
