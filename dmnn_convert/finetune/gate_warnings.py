"""Warnings about gates that learn nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import torch
from tqdm import tqdm

from ..evaluation import DenseEvaluation, Evaluation


def gate_warnings(evaluation: Evaluation, target: float, *, final: bool) -> list[str]:
    """Return warnings about the gates; see the documentation of fine-tuning."""
    found = [] if target == 1 else list(_alike(evaluation))
    ratio = evaluation.flops_ratio.mean
    off = ratio - target
    if final and abs(off) > 0.03:
        found.append(
            f"the gated FLOPs ratio is {ratio:.3f}, {100 * abs(off):.1f} "
            f"points {'above' if off > 0 else 'below'} the target {target}. Try more "
            "--epochs, a larger --gate-lr or --resource."
        )
    return found


def broken(evaluation: DenseEvaluation) -> Iterator[str]:
    """Yield a warning with the number of images with non-finite logits, if any."""
    if evaluation.nan_images:
        yield (
            f"{evaluation.nan_images} of {evaluation.images} test images have NaN or infinite "
            "logits, and count as wrong. Start again with a lower --lr or --gate-lr, or without "
            "--amp."
        )


def left_out(training: int, testing: int) -> Iterator[str]:
    """Yield a warning with the number of unreadable images, if any.

    Args:
        training: images, each counted once per epoch.
        testing: images, counted once.
    """
    if training or testing:
        yield (
            f"images that cannot be read were left out: {training} over all epochs of training, "
            f"{testing} in evaluation; evaluate without --on-bad-image skip names the first."
        )


_REMEDY = "Try a larger --spread, a smaller --gate-lr, or --categories."


def _alike(evaluation: Evaluation) -> Iterator[str]:
    """Yield a warning if too many gates do the same for every image."""
    total, stuck = len(evaluation.blocks), _stuck(evaluation)
    count = sum(map(len, stuck.values()))
    if count == total:
        on, off = len(evaluation.always_on), len(evaluation.never_on)
        yield (
            f"every sub-block is always on ({on}) or always off ({off}): all images take one path, "
            f"a pruned network would do the same. {_REMEDY}"
        )
    elif 2 * count > total:
        listed = "; ".join(f"{words}: {_some(names)}" for words, names in stuck.items() if names)
        yield (
            f"{count} of {total} controllers do the same for every image ({listed}): there, a "
            f"pruned network would do the same. {_REMEDY}"
        )
    elif evaluation.path_entropy < 1:
        yield (
            f"{evaluation.distinct_paths} paths of {evaluation.path_entropy:.2f} bits: nearly all "
            f"images take the same one. {_REMEDY}"
        )


def _stuck(evaluation: Evaluation) -> dict[str, list[str]]:
    """Return the blocks whose gates are the same for every image, by those gates."""
    found: dict[str, list[str]] = {"all on": [], "all off": [], "some on": []}
    rates = torch.tensor(evaluation.sub_block_rates, dtype=torch.float64).split(evaluation.sizes)
    for name, own in zip(evaluation.blocks, rates, strict=True):
        on, off = own == 1, own == 0
        if (on | off).all():
            found["all on" if on.all() else "all off" if off.all() else "some on"].append(name)
    return found


def _some(names: Sequence[str]) -> str:
    return f"{len(names)}, {', '.join(names[:3])}" + (" …" if len(names) > 3 else "")


def warn(text: str) -> None:
    """Show a warning about the run on standard error, above any progress bar."""
    tqdm.write(f"warning: {text}", file=sys.stderr)
