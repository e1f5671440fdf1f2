"""The choice of a cascade: what it is worth on images that it was not chosen on.

    python benchmarks/cifar10/choice.py --data DIR --checkpoints DIR

Draws held-out images from the 10,000 test images, again and again, chooses cascades of the released
ResNet-20 (models/) on these at several budgets, and measures them on the other images. Compared are
`Cascade.fit`'s choice, and the cascade and thresholds that are right most often on the held-out
images. The DIRs are those of budget.py. The answers of all levels take minutes; --answers keeps
them in a file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from budget_policies import images_of
from budget_runs import Run, recipe_of

from dmnn_convert import freeze, load
from dmnn_convert.budget.fit import AllAnswers, Candidate, ask, best_choice, candidates
from dmnn_convert.budget.statistics import trained_levels
from dmnn_convert.budget.thresholds import ThresholdFigures, figures_at

BUDGETS = (0.45, 0.55, 0.65, 0.75)

Choice = tuple[tuple[int, ...], bool, ThresholdFigures]


def most_often_right(among: list[Candidate], macs: float) -> Choice | None:
    """Return the cascade and thresholds within a budget that are right most often."""
    best: Choice | None = None
    for one in among:
        affordable = one.tried.macs <= macs
        if affordable.any():
            found = figures_at(one.tried.answers, one.tried.most_accurate(affordable))
            if best is None or found.top1 > best[2].top1:
                best = one.networks, one.mean, found
    return best


WAYS = {"right most often": most_often_right, "`Cascade.fit`": best_choice}


def answers(options: argparse.Namespace) -> AllAnswers:
    """Return all levels' answers to the test images, from the file if it is there."""
    if options.answers is not None and options.answers.exists():
        held = np.load(options.answers, allow_pickle=False)
        logits, sure, labels = (torch.from_numpy(held[k]) for k in ("logits", "sure", "labels"))
        return AllAnswers([*logits], [*sure], labels, held["macs"].tolist())
    model = load("resnet20-cifar10-levels").model.eval()
    networks = [freeze(model, path) for path in trained_levels(model).values()]
    _, test = images_of(recipe_of(Run("resnet20", "levels"), options), networks[-1])
    asked = ask(networks, test, "margin", progress=True)
    if options.answers is not None:
        logits, sure = (torch.stack(each).numpy() for each in (asked.logits, asked.confidence))
        labels = asked.labels.numpy()
        np.savez(options.answers, logits=logits, sure=sure, labels=labels, macs=asked.macs)
    return asked


def main() -> None:
    """Print a row for each budget: top-1 and FLOPs on images that were not chosen on."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--answers", type=Path, help="a .npz file to keep answers in")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--held-out", type=int, default=2500, help="images to choose on")
    parser.set_defaults(epochs=None, amp=None, runs=Path())
    options = parser.parse_args()
    asked = answers(options)
    dense = max(asked.macs)
    found: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for draw in range(options.draws):
        order = torch.randperm(len(asked.labels), generator=torch.Generator().manual_seed(draw))
        chosen, rest = (asked.about(part) for part in order.tensor_split([options.held_out]))
        among = candidates(chosen, fixed=False)
        for name, way in WAYS.items():
            for budget in BUDGETS:
                best = way(among, budget * dense)
                if best is None:
                    continue
                networks, mean, choice = best
                new = figures_at(rest.answers(networks, mean=mean), choice.thresholds)
                found.setdefault((name, budget), []).append((new.top1, new.macs / dense))
    print(f"| {options.held_out} held-out images |", *(f"{budget} |" for budget in BUDGETS))
    print("|---" * (1 + len(BUDGETS)) + "|")
    for name in WAYS:
        means = [np.mean(found[name, budget], 0) for budget in BUDGETS]
        print(f"| {name} |", *(f"{top1:.2f} at {ratio:.3f} |" for top1, ratio in means))


if __name__ == "__main__":
    main()
