"""Networks deployed for the benchmark: dense, half as wide, in int8, cascaded, gated."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from dmnn_convert import Cascade, deploy, dynamize, freeze, load_deployed
from dmnn_convert.deployment import write_gated
from dmnn_convert.dryrun import measure
from dmnn_convert.nn import controllers

from .clock import ENGINES

ROOT = Path(__file__).parents[2]

IMAGES = 16
SHARE = 0.25
"""Of the images of a cascade, what its larger network answers as well."""

LEVELS = ("nested", "matched", "exact")
"""Splits whose level ½ is timed, the one to quantise first."""

SIZES = {"resnet50": (3, 224, 224), "mobilenet_v2": (3, 224, 224), "resnet20": (3, 32, 32)}

TRAINED = "resnet20"
"""The released network of models/, with its own weights and images; others have random ones."""


def write(arch: str, root: Path, wanted: set[str], threads: int) -> dict[str, float]:
    """Deploy what is wanted of an architecture to folders of a root; return each one's F.

    Args:
        arch: a key of `SIZES`.
        root: gets a folder for each form, and images.npy.
        wanted: of `LEVELS`, "int8", "cascade" and "gated"; "dense" is always written.
        threads: that gates are timed with, to choose their form.
    """
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    made = trained() if arch == TRAINED else random_networks(arch, wanted)
    size = SIZES[arch]
    images = made.pop("images")
    np.save(root / "images.npy", images.numpy())
    dense = measure(made["dense"], size).macs[""]
    ratios: dict[str, float] = {}
    for name, network in made.items():
        folder, how = root / name, {"engine": "onnxruntime"}
        if name == "gated":
            folder.mkdir()
            write_gated(
                network,
                images[:4].split(1),
                folder / "network.onnx",
                threads=threads,
                dense=made["dense"],
            )
            continue
        if name not in ("dense", *wanted):
            continue
        deploy(network, folder, images[:2], **how)
        if isinstance(network, Cascade):
            check_share(folder, images.numpy())
        ratios[name] = mean_macs(network, size) / dense
    if "int8" in wanted:
        batches = list(images.split(4))
        level = next(made[form] for form in LEVELS if form in made)
        how = {"precision": "int8", "calibration": batches}
        deploy(level, root / "int8", images[:2], engine="onnxruntime", **how)
    return ratios


def mean_macs(form: nn.Module, size: tuple[int, int, int]) -> float:
    """Return the multiply-accumulates of an image (C, H, W); a cascade's count all its runs."""
    networks = [*form.networks] if isinstance(form, Cascade) else [form]
    return sum(
        share * measure(each, size).macs[""]
        for share, each in zip((1.0, SHARE), networks, strict=False)
    )


def random_networks(arch: str, wanted: set[str]) -> dict[str, Any]:
    """Return forms of a torchvision network of random weights, and its images."""
    from torchvision import models

    source = getattr(models, arch)().eval()
    images = torch.randn(IMAGES, *SIZES[arch])
    made: dict[str, Any] = {"dense": source}
    for split in ("matched", "nested"):
        if split in wanted:
            made[split] = freeze(dynamize(source, 2, split=split).model.eval(), 0.5)
    if "cascade" in wanted:
        quartered = dynamize(source, 4, split="nested").model.eval()
        networks = [freeze(quartered, level) for level in (0.25, 1.0)]
        for network in networks:  # of random weights, whose answers would all be the same
            update_bn([images], network)
            network.eval()
        made["cascade"], images = _escalating(networks, images)
    if "gated" in wanted:
        # Gates could not tell images apart that unsettled norms make all alike.
        update_bn([images], source)
        source.eval()
        made["gated"] = _with_gates_at_half(dynamize(source, 2).model.eval(), images)
    return {**made, "images": images}


def trained() -> dict[str, Any]:
    """Return the released network's forms, with test images that its cascade escalates."""
    sys.path.insert(0, str(ROOT / "examples"))
    import budget_curve

    from dmnn_convert import load

    model = load("resnet20-cifar10-levels").model.eval()
    images = torch.cat([x for x, _ in budget_curve.batches("test")])
    half, whole = freeze(model, 0.5), freeze(model, 1.0)
    cascade, images = _escalating([freeze(model, 0.25), whole], images)
    return {"dense": whole, "exact": half, "cascade": cascade, "images": images}


def _escalating(networks: list[nn.Module], images: Tensor) -> tuple[Cascade, Tensor]:
    """Return a cascade that asks twice about SHARE of some images, and these, evenly spread."""
    images = images[:IMAGES]
    with torch.no_grad():
        best = networks[0](images).softmax(1).topk(2).values
    sure = (best[:, 0] - best[:, 1]).sort()
    count = round(SHARE * len(images))
    threshold = float(sure.values[count - 1 : count + 1].mean())
    order = torch.arange(len(images)).view(-1, count).t().flatten()  # each batch has its share
    return Cascade(networks, [threshold]), images[sure.indices[order]]


def check_share(folder: Path, images: np.ndarray[Any, Any]) -> None:
    """Refuse a deployed cascade whose larger network does not answer its share of each batch.

    Raises:
        RuntimeError: with how many it answers; times of such a cascade would say nothing.
    """
    batch = round(1 / SHARE)
    for engine in ENGINES:
        answered = load_deployed(str(folder), engine=engine).answered
        for i in range(0, len(images), batch):
            if (count := int((answered(images[i : i + batch])[1] > 0).sum())) != 1:
                raise RuntimeError(f"{folder.name} in {engine}: {count} of {batch} images go on")


def _with_gates_at_half(model: nn.Module, images: Tensor) -> nn.Module:
    """Let random gates run each sub-block on half of the images."""

    def balance(layer: nn.Linear, given: tuple[Tensor, ...]) -> None:
        nn.init.normal_(layer.weight)
        logits = F.linear(given[0], layer.weight, layer.bias).unflatten(-1, (-1, 2))
        margins = (logits[..., 1] - logits[..., 0]).sort(0).values
        half = len(margins) // 2
        # No image's own margin, for which rounding would decide.
        middle = margins[half - 1 : half + 1].mean(0)
        layer.bias.unflatten(0, (-1, 2))[:, 1] -= middle

    hooks = [c.w3.register_forward_pre_hook(balance) for c in controllers(model)]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return model
