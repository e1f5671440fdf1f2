"""The recipe: every option of fine-tuning, as one frozen dataclass that YAML and command share.

A field declared here is at once an option of ``dmnn-convert finetune``, a key of the YAML files in
``recipes/`` and a row of the effective configuration that is saved beside the results.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple

from ..budget import check_levels, smallest_for
from ..config import MOST_SEED, ORDERS, SPLITS, TAIL_NORMS
from ..errors import ArgumentError
from .option import checked, option


class SplitUp(NamedTuple):
    """The split of blocks: sub-blocks each, the kind of split, and the place of the last norm."""

    n: int
    split: str
    tail_norm: str


@dataclass(frozen=True)
class Recipe:
    """The options of a conversion, its training and its evaluation; see each option's help."""

    # --- the network
    arch: str | None = option(None, "Source network: resnet50, timm:NAME, FILE.py:factory.")
    checkpoint: str | None = option(None, "Weights of the source, .pth or .safetensors.")
    pretrained: bool = option(False, "The zoo's own weights; needs a network.")
    weights: str = option(
        "inherited",
        "Start from the source's weights, or from random ones; own: from those that its factory "
        "brings. A factory that always builds the same weights counts as one that brings them.",
        choices=("inherited", "own", "random"),
    )
    num_classes: int | None = option(
        None, "Classes; another number than the source's replaces its classifier.", least=2
    )
    input_size: int | None = option(
        None, "Pixels per side: 32; a command also takes 3x32x32. [the architecture's own]", least=1
    )
    # --- the conversion
    converted: str | None = option(
        None,
        "Directory of a saved conversion (dmnn-convert -o, or dmnn_convert.save) to start from, "
        "instead of converting again.",
    )
    levels: tuple[float, ...] = option(
        (),
        "Train one network for all of these shares of its sub-blocks, such as 0.25,0.5,0.75,1, "
        "instead of gates.",
        above=0,
        most=1,
    )
    n: int | None = option(
        None,
        "Sub-blocks per block; 1 skips whole blocks; 0 trains it dense.  [2; with --levels as many "
        "as these need]",
        least=0,
    )
    split: str | None = option(
        None, "matched (the paper's) or exact.  [matched; with --levels exact]", choices=SPLITS
    )
    tail_norm: str | None = option(
        None,
        "A block's last batch norm: one per sub-block, or one shared, on the gated sum: another "
        "model, whose statistics see gated zeros.  [per-sub-block; with --levels shared]",
        choices=TAIL_NORMS,
    )
    order: str = option(
        "importance",
        "Which hidden channels sub-blocks get: importance gives the most important ones to the "
        "first sub-block; source gives runs in the source's order.",
        choices=ORDERS,
    )
    where: tuple[str, ...] = option(
        (), "Blocks to convert: names, patterns, kind:, stage:, depth:, !."
    )
    chained: bool = option(True, "Controllers read the previous one's state (PREV).")
    normalized: bool = option(False, "Controllers normalise what they read over the batch.")
    spread: float = option(
        3.0,
        "Standard deviation over images to which gates' margins are normalised, which keeps gates "
        "dynamic; 0 for the paper's gates.",
        least=0,
    )
    hidden: int = option(32, "Width of the controllers.", least=1)
    certainty: float = option(
        0.93,
        "Execution rate at which the first sub-blocks of a block start; the last ones start at one "
        "minus that, and --init-rate is their mean. 0: all start alike, as in the paper.",
        least=0,
        below=1,
    )
    init_rate: float | None = option(
        None,
        "Execution rate at the start.  [--target; 0.9 where --certainty is 0]",
        above=0,
        below=1,
    )
    reconstruct: int = option(
        8, "Batches to fit approximate blocks to the source's on, before training.", least=0
    )
    calibrate: int = option(8, "Batches for tail-norm statistics before training.", least=0)
    reestimate: int = option(0, "Batches for all norms' statistics after training.", least=0)
    # --- the data
    data: str | None = option(None, "Folder with train/ and val/ or test/, a folder per class.")
    dataset: str = option(
        "folder",
        "What it holds: images in folders, or torchvision's CIFAR files.",
        choices=("folder", "cifar10", "cifar100"),
    )
    crop: str = option(
        "auto",
        "pad: pad by an eighth and crop; resize: random resized crop; auto: pad up to 64 pixels.",
        choices=("auto", "pad", "resize", "none"),
    )
    flip: bool = option(True, "Mirror half of the training images.")
    auto_augment: str | None = option(None, "timm's policy, e.g. rand-m9-mstd0.5.")
    erase: float = option(0.0, "Probability of random erasing.", least=0, most=1)
    mixup: float = option(0.0, "Alpha of mixup; 0 for none.", least=0)
    cutmix: float = option(0.0, "Alpha of CutMix; 0 for none.", least=0)
    smoothing: float = option(0.0, "Label smoothing.", least=0, below=1)
    mean: tuple[float, ...] = option((), "Mean of each channel.  [the architecture's, ImageNet's]")
    std: tuple[float, ...] = option((), "Deviation of each channel.  [likewise]", above=0)
    on_bad_image: str = option(
        "stop", "Stop at images that cannot be read, or skip them.", choices=("stop", "skip")
    )
    held_out: float = option(
        0.0,
        "Share of the training images that is not trained on, for what is chosen afterwards.",
        least=0,
        below=1,
    )
    in_memory: bool = option(
        False,
        "Decode all images once and keep them; crops and flips are made of whole batches, as "
        "likely as without, but drawn otherwise.",
    )
    workers: int = option(2, "Loader processes.", least=0)
    # --- the optimisation
    epochs: int = option(20, "Epochs.", least=1)
    batch_size: int = option(128, "Images per step, over all processes.", least=1)
    opt: str = option("sgd", "timm's name of the optimiser.")
    lr: float = option(0.05, "Learning rate of the network.", above=0)
    gate_lr: float | None = option(
        0.3, "Learning rate of the controllers; none for the network's rate.", above=0
    )
    momentum: float = option(0.9, "Momentum.", least=0, below=1)
    weight_decay: float = option(1e-4, "Weight decay of the network.", least=0)
    gate_weight_decay: float = option(0.0, "Weight decay of the controllers.", least=0)
    clip_grad: float | None = option(None, "Largest norm of the gradient.", above=0)
    sched: str = option(
        "cosine", "timm's name of the learning-rate schedule: cosine, multistep, step, poly, …"
    )
    milestones: tuple[int, ...] = option((), "Epochs at which multistep lowers the rate.", least=1)
    decay_rate: float = option(0.1, "Factor of the rate at each of these epochs.", above=0, most=1)
    warmup_epochs: float = option(1.0, "Epochs of rising learning rate.", least=0)
    min_lr: float = option(0.0, "Learning rate at the end.", least=0)
    amp: str | None = option(None, "Mixed precision.", choices=("bf16", "fp16"))
    ema: float | None = option(None, "Decay of averaged weights, e.g. 0.9998.", above=0, below=1)
    channels_last: bool = option(False, "Keep images as (B, H, W, C) in memory.")
    sync_bn: bool = option(False, "Batch norms over all processes.")
    # --- the gates
    target: float = option(0.5, "Share r of the gated FLOPs to keep.", above=0, most=1)
    open_epochs: float = option(0.0, "Epochs with all gates on, to begin with.", least=0)
    anneal: str = option(
        "linear",
        "How the target falls to r.",
        choices=("none", "linear", "cosine"),
    )
    anneal_from: float | None = option(
        None, "From which target.  [what gates start from]", above=0, most=1
    )
    anneal_epochs: float | None = option(None, "Over how many.  [half of the rest]", least=0)
    tau: float = option(1.0, "Temperature of the Gumbel-softmax at first …", above=0)
    tau_end: float | None = option(None, "… and at last.  [the same]", above=0)
    resource: float = option(20.0, "Weight of the resource loss (eq. 16).", least=0)
    rates: str = option(
        "network",
        "Execution rates to hold at the target: each block's (eq. 12), the network's, or none.",
        choices=("block", "network", "none"),
    )
    diversity: float = option(
        0.0, "Weight of what gates tell about images (mutual information, nats).", least=0
    )
    shaping: float = option(
        0.0, "Weight of a prior on each gate's distribution over a batch; not the paper's.", least=0
    )
    categories: str | None = option(
        None, "Category supervision (CAT): imagenet58, cifar100, clusters:K or a file."
    )
    category: float = option(1.0, "Weight of the category loss (eq. 16).", least=0)
    # --- distillation
    distill: float | None = option(
        None,
        "Weight alpha of the source as a teacher; the labels have 1 - alpha.  [0.5 where it is "
        "trained and --num-classes is not given, else 0]",
        least=0,
        most=1,
    )
    distill_temperature: float = option(2.0, "Its temperature T.", above=0)
    teacher: str | None = option(None, "Another network to learn from.  [the source]")
    teacher_checkpoint: str | None = option(None, "Its weights, .pth or .safetensors.")
    # --- the run
    seed: int = option(0, "Seed of everything that is random.", least=0, most=MOST_SEED)
    device: str | None = option(None, "cpu, cuda, …  [cuda where there is one]")
    save_minutes: float = option(10.0, "Save the state at least this often.", above=0)
    output: str = option("dmnn-run", "Folder for checkpoints, logs and results.")

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            value = checked(entry.name, value, str(entry.type), entry.metadata)
            object.__setattr__(self, entry.name, value)
        self._check_together()

    def _check_together(self) -> None:
        if len(self.mean) != len(self.std):
            raise ArgumentError(
                f"Recipe(mean={list(self.mean)}, std={list(self.std)}): give both mean= and std=, "
                "with a number for each channel, or none of them."
            )
        if bool(self.teacher) != bool(self.teacher_checkpoint):
            raise ArgumentError("Recipe: give both teacher= and teacher_checkpoint=, or none.")
        if 0 < self.certainty <= 0.5:
            raise ArgumentError(
                f"Recipe(certainty={self.certainty}): give a number above 0.5 and below 1; or 0, "
                "and all sub-blocks start alike."
            )
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ArgumentError(f"Recipe(milestones={list(self.milestones)}): give rising epochs.")
        if self.levels:
            self._check_levels()
            return
        if not self.dense and self.open_epochs >= self.epochs:
            raise ArgumentError(
                f"Recipe(open_epochs={self.open_epochs}, epochs={self.epochs}): the gates would "
                "never be trained; give fewer --open-epochs, or -N 0 for the dense network."
            )
        if not self.dense and self.anneal != "none":
            self._check_annealing()

    def _check_levels(self) -> None:
        N = self.split_up.n
        if N == 0 or self.categories is not None:
            odd = "n=0" if N == 0 else f"categories={self.categories!r}"
            raise ArgumentError(
                f"Recipe(levels={list(self.levels)}, {odd}): levels are paths of a converted "
                "network, decided without controllers; leave one of the two out."
            )
        check_levels(self.levels, [N])

    def _check_annealing(self) -> None:
        least = self.open_epochs + (self.anneal_epochs or 0.0)
        if least > self.epochs:
            raise ArgumentError(
                f"Recipe(open_epochs={self.open_epochs}, anneal_epochs={self.anneal_epochs}, "
                f"epochs={self.epochs}): the target would not be reached; give {least:g} epochs or "
                "more, or fewer --anneal-epochs."
            )
        if self.anneal_from is not None and self.anneal_from < self.target:
            raise ArgumentError(
                f"Recipe(anneal_from={self.anneal_from}, target={self.target}): a target falls; "
                "give --anneal-from at or above --target, or --anneal none."
            )

    @property
    def trained(self) -> bool:
        """Whether the source comes with weights that are worth keeping."""
        given = bool(self.checkpoint or self.pretrained)
        return self.weights == "own" or (self.weights == "inherited" and given)

    @property
    def alpha(self) -> float:
        """Weight of the teacher: `distill`, or what stands for it where none is given."""
        if self.distill is not None:
            return self.distill
        return 0.5 if self.teacher or (self.trained and self.num_classes is None) else 0.0

    @property
    def start_rate(self) -> float:
        """Execution rate to start from: `init_rate`, or what stands for it where none is given.

        Sub-blocks that start unequal start at the target, so that there is nothing to anneal.
        """
        if self.init_rate is not None:
            return self.init_rate
        return self.target if self.certainty and self.target < 1 else 0.9

    @property
    def dense(self) -> bool:
        """Whether the source is trained as it is, without gates."""
        return self.n == 0

    @property
    def split_up(self) -> SplitUp:
        """How blocks are split: as given, or what stands for it where it is not."""
        many = bool(self.levels)
        n = self.n if self.n is not None else smallest_for(self.levels) if many else 2
        # With one norm on the sum, a level is a plain narrower network, at its price.
        tail_norm = self.tail_norm or ("shared" if many else "per-sub-block")
        return SplitUp(n, self.split or ("exact" if many else "matched"), tail_norm)

    def settled(self) -> Recipe:
        """Return the same recipe with all of that given."""
        return self.with_changes(self.split_up._asdict())

    def with_changes(self, changes: Mapping[str, Any]) -> Recipe:
        """Return the same recipe but for these fields.

        Raises:
            ArgumentError: for unknown fields or values out of range.
        """
        check_names(changes, "Recipe")
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for YAML and JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def differences(self, other: Recipe) -> list[str]:
        """Return, for each field that differs, "name: mine, not theirs"."""
        mine, theirs = self.to_dict(), other.to_dict()
        return [f"{k}: {mine[k]!r}, not {theirs[k]!r}" for k in mine if mine[k] != theirs[k]]


def check_names(values: Mapping[str, Any], where: str) -> None:
    known = {entry.name for entry in fields(Recipe)}
    unknown = sorted(set(values) - known)
    if unknown:
        close = {name: difflib.get_close_matches(name, known, 1) for name in unknown}
        meant = "".join(f" {name}: {found[0]}?" for name, found in close.items() if found)
        raise ArgumentError(
            f"{where}: unknown options {unknown}.{meant} Known are {', '.join(sorted(known))}."
        )


def parsed(yaml: Any, text: str) -> Any:
    # A few lines of anchors and aliases can stand for more than any memory holds.
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
        raise ValueError("it has an alias; write the value out")
    return yaml.safe_load(text)
