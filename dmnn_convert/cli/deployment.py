"""The deployment of a saved network, and its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from ..budget import freeze
from ..data import image_size, images, preprocessing, test_loader, test_transform
from ..deployment import deploy, load_deployed
from ..distributed import joined
from ..dryrun import example_images
from ..errors import ArgumentError
from ..finetune import EvaluationBatches, Recipe, check_logits
from ..io import CASCADE, LEVEL, Cascade, load_level, read_described
from .saved import built, read_network

_EXAMPLES = 4


def deployed(
    recipe: Recipe,
    directory: Path,
    output: Path,
    engine: str,
    precision: str,
    level: float | None,
    calibration: int,
) -> dict[str, Any]:
    """Deploy a saved network, and return its description.

    Args:
        recipe: names the images and the source.
        directory: the saved network.
        output: where to write.
        engine: as `deploy` takes it.
        precision: likewise.
        level: of a converted network.
        calibration: number of images to calibrate with; 0 for none.

    Raises:
        ArgumentError: if data or source is missing, or the network cannot be deployed so.
        CheckpointError: if the directory holds no network.
    """
    network, size = _network(recipe, directory, level)
    network.eval()
    how = preprocessing(recipe, network, size[-1])
    batches: Any = None
    classes: tuple[str, ...] = ()
    if recipe.data is not None or calibration:
        data = images.open_data(recipe)
        classes = data.classes
        check_logits(recipe, network, size, len(classes))
        kept: Any = data.held_out if len(data.held_out) else data.train  # type: ignore[arg-type]
        with joined("cpu") as processes:
            some = _drawn(kept, calibration)
            loader = test_loader(recipe, some, test_transform(how), processes)
            batches = list(EvaluationBatches(recipe, loader, processes)) if calibration else None
    example = example_images(network, size, batch=_EXAMPLES)
    deploy(
        network,
        output,
        batches[0].images if batches else example,
        engine=engine,
        precision=precision,
        calibration=batches,
        preprocessing=how._asdict(),
        classes=classes,
    )
    return dict(load_deployed(output).told)


def _network(recipe: Recipe, directory: Path, level: float | None) -> tuple[nn.Module, Any]:
    """Return a saved network, and the size (C, H, W) of its images."""
    kind = next((name for name in (CASCADE, LEVEL) if (directory / name).is_file()), None)
    if kind is None:
        network, table, _ = read_network(directory, recipe)
        if table is None:
            return network, image_size(recipe, network)
        if level is None:
            raise ArgumentError(
                f"{directory}: holds a converted network, whose gates no engine runs fast. Give "
                "--level 0.5 for a level of it, or let a level or a cascade be chosen: "
                f"dmnn-convert budget {directory} --target 0.6 -o chosen."
            )
        return freeze(network.eval(), level), table.input_size
    if level is not None:
        raise ArgumentError(f"--level {level:g}: {directory} no longer holds a converted network.")
    saved = read_described(directory / kind)
    source = built(directory, saved["arch"], saved["num_classes"], recipe)
    load = Cascade.load if kind == CASCADE else load_level
    network = load(directory, source)
    return network, tuple(saved["conversion"]["input_size"])


def _drawn(kept: Any, count: int) -> Dataset[Any]:
    order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))
    return Subset(kept, order[:count].tolist())


def as_text(told: dict[str, Any], output: Path) -> str:
    """Return the report on a deployment."""
    engines = ", ".join(f"{name} (off by {far:.1g})" for name, far in told["parity"].items())
    files = ", ".join(told["files"])
    lines = [f"Deployed a {told['policy']} of {told['precision']} to {output}: {files}"]
    lines.append(f"  engines, the one to use first: {engines}")
    if told["thresholds"]:
        lines.append(f"  thresholds: {', '.join(f'{t:.4f}' for t in told['thresholds'])}")
    lines.append(f"Run it: dmnn_convert.load_deployed({str(output)!r}), or see README.md there.")
    return "\n".join(lines)
