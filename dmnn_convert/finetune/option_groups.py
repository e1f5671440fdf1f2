"""The options of fine-tuning, in groups: each part of a run reads its own.

An option declared here is at once a field of `Recipe`, an option of ``dmnn-convert finetune``, a
key of the YAML files in ``recipes/`` and a row of the configuration saved beside the results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..config import ORDERS, SPLITS, TAIL_NORMS, Options, option
from ..errors import ArgumentError


class SplitUp(NamedTuple):
    """The split of blocks: sub-blocks each, the kind of split, and the place of the last norm."""

    n: int
    split: str
    tail_norm: str


@dataclass(frozen=True)
class NetworkOptions(Options):
    """The network to start from, and its weights."""

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

    @property
    def trained(self) -> bool:
        """Whether the source comes with weights that are worth keeping."""
        given = bool(self.checkpoint or self.pretrained)
        return self.weights == "own" or (self.weights == "inherited" and given)


@dataclass(frozen=True)
class ConversionOptions(Options):
    """How its blocks are split, and what is fitted to data before and after training."""

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
        None,
        "matched (the paper's), exact or nested.  [matched; with --levels exact]",
        choices=SPLITS,
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
    reconstruct: int = option(
        8, "Batches to fit approximate blocks to the source's on, before training.", least=0
    )
    calibrate: int = option(8, "Batches for tail-norm statistics before training.", least=0)
    reestimate: int = option(0, "Batches for all norms' statistics after training.", least=0)

    @property
    def dense(self) -> bool:
        """Whether the source is trained as it is, without gates."""
        return self.n == 0

    @property
    def gated(self) -> bool:
        """Whether there are gates to train: neither a dense network's nor those of levels."""
        return not self.dense and not self.levels

    @property
    def split_up(self) -> SplitUp:
        """How blocks are split: as given, or the default."""
        many, n = bool(self.levels), 2 if self.n is None else self.n
        if self.n is None and many:
            from ..budget import smallest_for  # not before it is needed: it needs PyTorch

            n = smallest_for(self.levels)
        # With one norm on the sum, a level is a plain narrower network, at its price.
        tail_norm = self.tail_norm or ("shared" if many else "per-sub-block")
        return SplitUp(n, self.split or ("exact" if many else "matched"), tail_norm)


@dataclass(frozen=True)
class OptimisationOptions(Options):
    """How weights are learned: optimiser, schedule, mixing, and numbers' precision."""

    epochs: int = option(20, "Epochs.", least=1)
    max_steps: int | None = option(
        None, "Steps after which training ends, its schedules too, if --epochs are more.", least=1
    )
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
    mixup: float = option(0.0, "Alpha of mixup; 0 for none.", least=0)
    cutmix: float = option(0.0, "Alpha of CutMix; 0 for none.", least=0)
    smoothing: float = option(0.0, "Label smoothing.", least=0, below=1)
    amp: str | None = option(None, "Mixed precision.", choices=("bf16", "fp16"))
    ema: float | None = option(None, "Decay of averaged weights, e.g. 0.9998.", above=0, below=1)
    channels_last: bool = option(False, "Keep images as (B, H, W, C) in memory.")
    sync_bn: bool = option(False, "Batch norms over all processes.")

    def length(self, steps_per_epoch: int) -> float:
        """Return the epochs of the whole training, in which `max_steps` may leave a part of one."""
        if self.max_steps is None or self.max_steps >= self.epochs * steps_per_epoch:
            return self.epochs
        return self.max_steps / steps_per_epoch

    def __post_init__(self) -> None:
        super().__post_init__()
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ArgumentError(f"{self.call('milestones')}: give rising epochs.")


@dataclass(frozen=True)
class GateOptions(Options):
    """The gates: how controllers are built, their target, and their losses."""

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
        "Execution rate at the start.  [--target; 0.9 if --certainty is 0]",
        above=0,
        below=1,
    )
    target: float = option(0.5, "Share r of the gated FLOPs to keep.", above=0, most=1)
    open_epochs: float = option(0.0, "Epochs with all gates on at the start.", least=0)
    anneal: str = option(
        "linear",
        "How the target falls to r.",
        choices=("none", "linear", "cosine"),
    )
    anneal_from: float | None = option(
        None, "Target at first.  [the gates' starting rate]", above=0, most=1
    )
    anneal_epochs: float | None = option(None, "Epochs of the fall.  [half of the rest]", least=0)
    tau: float = option(1.0, "Temperature of the Gumbel-softmax at first.", above=0)
    tau_end: float | None = option(None, "Temperature at the end.  [--tau]", above=0)
    resource: float = option(20.0, "Weight of the resource loss (eq. 16).", least=0)
    rates: str = option(
        "network",
        "Execution rates to hold at the target: each block's (eq. 12), the network's, or none.",
        choices=("block", "network", "none"),
    )
    categories: str | None = option(
        None, "Category supervision (CAT): imagenet58, cifar100, clusters:K or a file."
    )
    category: float = option(1.0, "Weight of the category loss (eq. 16).", least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.certainty <= 0.5:
            raise ArgumentError(
                f"{self.call('certainty')}: give a number above 0.5 and below 1; or 0, and all "
                "sub-blocks start alike."
            )

    @property
    def start_rate(self) -> float:
        """Execution rate to start from: `init_rate`, or its default.

        Sub-blocks that start unequal start at the target, which leaves nothing to anneal.
        """
        if self.init_rate is not None:
            return self.init_rate
        return self.target if self.certainty and self.target < 1 else 0.9


@dataclass(frozen=True)
class DistillationOptions(Options):
    """The teacher that the network learns from besides the labels."""

    distill: float | None = option(
        None,
        "Weight alpha of the source as a teacher; the labels have 1 - alpha.  [0.5 if it is "
        "trained and --num-classes is not given, else 0]",
        least=0,
        most=1,
    )
    distill_temperature: float = option(2.0, "Temperature of distillation.", above=0)
    teacher: str | None = option(None, "Another network to learn from.  [the source]")
    teacher_checkpoint: str | None = option(None, "Weights of the teacher, .pth or .safetensors.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.teacher) != bool(self.teacher_checkpoint):
            raise ArgumentError(
                f"{self.call('teacher', 'teacher_checkpoint')}: give both teacher= and "
                "teacher_checkpoint=, or neither."
            )


@dataclass(frozen=True)
class RunOptions(Options):
    """Where a run computes, and where it writes."""

    device: str | None = option(None, "cpu, cuda, …  [cuda if there is one]")
    track: tuple[str, ...] = option(
        (), "Also log to: wandb (Weights & Biases), mlflow.", choices=("wandb", "mlflow")
    )
    save_minutes: float = option(10.0, "Save the state at least this often.", above=0)
    output: str = option("dmnn-run", "Folder for checkpoints, logs and results.")
