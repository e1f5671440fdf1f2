"""The whole story in about a minute: train, convert, fine-tune, compare. No files, no network.

    python examples/digits.py

The images are the 1,797 handwritten digits that scikit-learn ships (8×8 pixels).
"""

from __future__ import annotations

import argparse

import torch
from cifar_resnet import CifarResNet
from loop import classification_step, dynamic_step, evaluate, train
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import dmnn_convert


def loaders(seed: int) -> tuple[DataLoader, DataLoader]:
    """Return training and test batches of (B, 3, 8, 8) images; a fifth is for testing."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1)
    images = (images - images.mean()) / images.std()
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    test, training = order.split([len(order) // 5, len(order) - len(order) // 5])
    return (
        DataLoader(TensorDataset(images[training], labels[training]), 64, shuffle=True),
        DataLoader(TensorDataset(images[test], labels[test]), 512),
    )


def parser(description: str) -> argparse.ArgumentParser:
    """Return the options that all examples on digits have."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--target", type=float, default=0.5, help="share of gated FLOPs to keep")
    parser.add_argument("--epochs", type=int, default=24, help="of each of the two trainings")
    parser.add_argument("--max-steps", type=int, help="cut each training short (to try it out)")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def trained_source(
    training: DataLoader, *, epochs: int, max_steps: int | None, progress: bool = True
) -> CifarResNet:
    """Train a small ResNet as usual; the same seed gives the same network."""
    source, length = CifarResNet(blocks_per_stage=2), {"epochs": epochs, "max_steps": max_steps}
    step = classification_step(source)
    train(source, step, training, lr=0.1, **length, what="train the source", progress=progress)
    return source


def summary(found: dmnn_convert.Evaluation, target: float) -> str:
    """Return what a dynamic network does on the test images, as one line."""
    return (
        f"top-1 {found.top1:.2f} % of {found.images} test images; "
        f"gated FLOPs ratio {found.flops_ratio.mean:.3f} (target {target}), "
        f"the whole network's {found.network_flops_ratio.mean:.3f}"
    )


def main() -> None:
    """Train a small ResNet, make it dynamic, and print both side by side."""
    options = parser(__doc__).parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)  # images of 8×8 pixels are too small to share out
    training, test = loaders(options.seed)
    length = {"epochs": options.epochs, "max_steps": options.max_steps}

    source = trained_source(training, **length)
    dense = evaluate(source, test, "test the source")

    model, table = dmnn_convert.dynamize(source, N=2, input_size=(3, 8, 8))
    converted = evaluate(model, test, "test the converted network")
    dmnn_convert.calibrate(model, training)
    loss = dmnn_convert.DMNNLoss(table, target=options.target)
    train(model, dynamic_step(model, loss), training, lr=0.05, **length, what="fine-tune")
    dynamic = evaluate(model, test, "test the dynamic network")

    paths = dynamic.paths
    million = table.dense_total / 1e6
    ratio = float(paths.network_flops_ratio())
    distinct = len(paths.gates.unique(dim=0))
    print(f"{'':28}{'top-1':>8}{'MACs per image':>18}")
    print(f"{'source':28}{dense.top1:7.2f} %{million:14.2f} M")
    print(f"{'converted, all gates on':28}{converted.top1:7.2f} %{table.total / 1e6:14.2f} M")
    print(f"{'fine-tuned, dynamic':28}{dynamic.top1:7.2f} %{million * ratio:14.2f} M")
    print(
        f"Gated FLOPs: {float(paths.flops_ratio()):.2f} of all (target {options.target}); "
        f"the whole network's: {ratio:.2f} of the source's. "
        f"{len(paths.gates)} test images took {distinct} different paths."
    )


if __name__ == "__main__":
    main()
