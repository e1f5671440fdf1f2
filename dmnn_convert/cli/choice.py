"""The choice of a policy for a saved network: made, measured, reported and saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..budget import Cascade, ChosenPolicy, choose, freeze, measured
from ..distributed import Processes
from ..finetune import Recipe
from ..io import Cascade as SavedCascade
from ..io import save, save_level, zoo
from .subject import opened


def choice_of(
    recipe: Recipe,
    directory: Path,
    processes: Processes,
    target: float,
    policy: str,
    output: Path | None,
) -> dict[str, Any]:
    """Choose a policy for a saved network, measure it on the test images, and save it.

    Raises:
        ArgumentError: if no policy meets the target, or data or source is missing.
        CheckpointError: if the output cannot be written.
    """
    subject = opened(recipe, directory, processes)
    model, held_out, test = subject.model, subject.held_out, subject.test
    best, notes = choose(model, held_out, target, policy, progress=True)
    top1, ratio = measured(best, model, test)
    whole = ChosenPolicy("level", "1", 1.0, 0.0, freeze(model, 1.0), 1.0)
    whole_top1, whole_ratio = measured(whole, model, test)
    if output is not None:
        _save(best, model, output, subject.arch, subject.num_classes)
    return {
        "policy": best.policy,
        "name": best.name,
        "target": target,
        "held_out": {"flops_ratio": best.flops_ratio, "top1": best.top1},
        "test": {"flops_ratio": ratio, "top1": top1},
        "all_on": {"flops_ratio": whole_ratio, "top1": whole_top1},
        "notes": list(notes),
        "arch": subject.arch,
        "output": None if output is None else str(output),
    }


def _save(
    best: ChosenPolicy, model: Any, output: Path, arch: str | None, classes: int | None
) -> None:
    if isinstance(best.network, Cascade):
        found = best.network
        thresholds = found.thresholds.tolist()
        cascade = SavedCascade([*found.networks], thresholds, mean=found.mean)
        cascade.fitted = found.fitted
        cascade.save(output, arch, num_classes=classes)
    elif best.level is not None:
        save_level(model, best.level, output, arch=arch, num_classes=classes)
    else:
        save(best.network, output, arch=arch, num_classes=classes)


_LOADERS = {
    "cascade": "dmnn_convert.Cascade.load",
    "level": "dmnn_convert.load_level",
    "gates": "dmnn_convert.load",
}


def as_text(described: dict[str, Any]) -> str:
    """Return a choice as text for people."""
    lines = [f"{described['policy']} {described['name']}"]
    for name, where in (
        ("held_out", "held-out images"),
        ("test", "test images"),
        ("all_on", "test images, all sub-blocks on"),
    ):
        own = described[name]
        lines.append(
            f"  {where + ':':32}top-1 {own['top1']:.2f} %  at {own['flops_ratio']:.3f} of the FLOPs"
        )
    lines += described["notes"]
    if described["output"]:
        loader = _LOADERS[described["policy"]]
        named = described["arch"] and zoo.is_zoo_name(described["arch"])
        source = "" if named else ", <your unconverted network>"
        lines.append(f"Saved. Load it with {loader}({described['output']!r}{source}).")
    return "\n".join(lines)
