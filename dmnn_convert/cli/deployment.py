"""The deployment of a saved network, and its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from ..budget import freeze
from ..data import Batch, images, preprocessing, test_loader, test_transform
from ..deployment import deploy, load_deployed
from ..distributed import joined
from ..errors import ArgumentError
from ..finetune import EvaluationBatches, Recipe, check_logits
from .saved import SavedNetwork, read_network

_EXAMPLES = 8
"""Images that answers are compared on, and gates timed on."""


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
    saved = read_network(directory, recipe)
    size = saved.image_size(recipe, directory)
    network = _at_level(saved, directory, level).eval()
    how = preprocessing(recipe, saved.described_by, size[-1])
    batches: list[Batch] = []
    classes: tuple[str, ...] = ()
    if recipe.data is not None or calibration:
        data = images.open_data(recipe)
        classes = data.classes
        check_logits(recipe, network, size, len(classes))
        kept: Any = data.held_out if len(data.held_out) else data.train  # type: ignore[arg-type]
        with joined("cpu") as processes:
            some = _drawn(kept, calibration or _EXAMPLES)
            loader = test_loader(recipe, some, test_transform(how), processes)
            batches = list(EvaluationBatches(recipe, loader, processes))
    noise = torch.randn(_EXAMPLES, *size, generator=torch.Generator().manual_seed(0))
    deploy(
        network,
        output,
        torch.cat([batch.images for batch in batches])[:_EXAMPLES] if batches else noise,
        engine=engine,
        precision=precision,
        calibration=batches if calibration else None,
        preprocessing=how._asdict(),
        classes=classes,
        dense=saved.build().eval() if saved.table is not None else None,
    )
    return dict(load_deployed(output).told)


def _at_level(saved: SavedNetwork, directory: Path, level: float | None) -> nn.Module:
    if level is None:
        return saved.model
    if saved.table is None:
        raise ArgumentError(f"--level {level:g}: {directory} no longer holds a converted network.")
    return freeze(saved.model.eval(), level)


def _drawn(kept: Any, count: int) -> Dataset[Any]:
    order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))
    return Subset(kept, order[:count].tolist())


def as_text(told: dict[str, Any], output: Path) -> str:
    """Return the report on a deployment."""
    engines = ", ".join(f"{n} (off by {told['parity'][n]:.1g})" for n in told["engines"])
    files = ", ".join(told["files"])
    lines = [f"Deployed a {told['policy']} of {told['precision']} to {output}: {files}"]
    lines.append(f"  engines, the one to use first: {engines}")
    if told["thresholds"]:
        lines.append(f"  thresholds: {', '.join(f'{t:.4f}' for t in told['thresholds'])}")
    if "times" in told:
        times = told["times"]
        lines.append(
            f"  an image takes {times['gated']:.2f} ms in {times['engine']}, where the dense "
            f"network takes {times['dense']:.2f} ms"
        )
    lines.append(f"Run it: dmnn_convert.load_deployed({str(output)!r}), or see README.md there.")
    return "\n".join(lines)
