"""A pretrained CIFAR-10 network, converted exactly, and another, fine-tuned for one epoch.

    python examples/quickstart.py --data DIR --checkpoint resnet56.th --finetune resnet20.th

DIR holds train/<class>/*.jpg and test/<class>/*.jpg. The checkpoints are those of He et al.'s CIFAR
ResNets as cifar_resnet.py writes them; the depth is read from the file.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import torch
from cifar_resnet import CifarResNet
from loop import dynamic_step, evaluate, train
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

import dmnn_convert

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = (3, 32, 32)


def loader(folder: Path, *, training: bool, workers: int) -> DataLoader:
    """Return batches of 128 normalised images (B, 3, 32, 32), augmented for training."""
    augment = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    steps = [*(augment if training else []), transforms.ToTensor()]
    images = ImageFolder(folder, transforms.Compose([*steps, transforms.Normalize(MEAN, STD)]))
    return DataLoader(images, 128, shuffle=training, drop_last=training, num_workers=workers)


def pretrained(file: Path) -> CifarResNet:
    """Build the network whose weights a checkpoint holds."""
    saved = torch.load(file, map_location="cpu", weights_only=True)
    keys = saved.get("state_dict", saved)
    stages = Counter(
        key.split("layer")[1][0] for key in keys if key.endswith("conv1.weight") and "layer" in key
    )
    model = CifarResNet(blocks_per_stage=stages["1"])
    dmnn_convert.load_source_checkpoint(model, file)
    return model


def main() -> None:
    """Show that conversion is exact, then fine-tune at a target."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and test/")
    parser.add_argument("--checkpoint", type=Path, required=True, help="network to convert")
    parser.add_argument(
        "--finetune", type=Path, help="network to fine-tune (default: resnet20* beside the other)"
    )
    parser.add_argument("--target", type=float, default=0.5, help="share of gated FLOPs to keep")
    parser.add_argument("--max-steps", type=int, help="cut the epoch short (to try it out)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    beside = sorted(options.checkpoint.parent.glob("resnet20*"))
    options.finetune = options.finetune or (beside[0] if beside else options.checkpoint)
    torch.manual_seed(options.seed)
    test = loader(options.data / "test", training=False, workers=options.workers)
    training = loader(options.data / "train", training=True, workers=options.workers)

    source = pretrained(options.checkpoint)
    before = evaluate(source, test, f"{options.checkpoint.stem}, source").top1
    model, table = dmnn_convert.dynamize(source, N=2, input_size=SIZE)
    with dmnn_convert.force_gates(model, True):
        after = evaluate(model, test, f"{options.checkpoint.stem}, converted").top1
    print(f"{options.checkpoint.stem}: {len(table.sizes)} blocks, {table.dense_total:,} MACs")
    print(f"  top-1 before conversion          {before:6.2f} %")
    print(f"  top-1 after, all gates on        {after:6.2f} %")

    source = pretrained(options.finetune)
    before = evaluate(source, test, f"{options.finetune.stem}, source").top1
    model, table = dmnn_convert.dynamize(source, N=2, input_size=SIZE)
    dmnn_convert.calibrate(model, training, progress=True)
    loss = dmnn_convert.DMNNLoss(table, target=options.target)
    train(
        model,
        dynamic_step(model, loss),
        training,
        epochs=1,
        lr=0.05,
        gate_lr=0.5,
        max_steps=options.max_steps,
        what=f"{options.finetune.stem}, one epoch",
    )
    top1, paths = evaluate(model, test, f"{options.finetune.stem}, dynamic")
    rates = " ".join(f"{rate:.2f}" for rate in paths.execution_rates().tolist())
    print(f"{options.finetune.stem}: one epoch at target {options.target}")
    print(f"  top-1 of the source, as it is    {before:6.2f} %")
    print(f"  top-1 of the dynamic network     {top1:6.2f} %")
    print(f"  execution rate of each block     {rates}")
    print(f"  gated FLOPs ratio                {float(paths.flops_ratio()):6.3f}")
    print(f"  whole network's FLOPs ratio      {float(paths.network_flops_ratio()):6.3f}")


if __name__ == "__main__":
    main()
