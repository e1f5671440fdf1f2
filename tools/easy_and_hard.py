"""Draw docs/easy-and-hard.png: digits that a low level answers, and digits that it leaves open.

python tools/easy_and_hard.py          (about a minute; needs matplotlib and scikit-learn)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

import dmnn_convert

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

from digits import loaders, trained_source  # noqa: E402

LOW, CLASSES = 0.25, 10


def trained_levels(max_steps: int | None) -> tuple[torch.nn.Module, Tensor, Tensor]:
    """Return a network trained for levels, and the test images and labels."""
    training, test = loaders(seed=0)
    source = trained_source(training, epochs=10, max_steps=max_steps, progress=False)
    model, _ = dmnn_convert.dynamize(
        source, N=4, split="exact", tail_norm="shared", order="importance", input_size=(3, 8, 8)
    )
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.02, momentum=0.9)
    step = 0
    for _ in range(10):
        for images, labels in training:
            losses = dmnn_convert.level_losses(model, images, labels, step=step)
            optimizer.zero_grad()
            losses.total.backward()
            optimizer.step()
            step += 1
            if max_steps is not None and step >= max_steps:
                break
    dmnn_convert.estimate_levels(model, training, (LOW, 1.0))
    return model.eval(), *(torch.cat(part) for part in zip(*test, strict=True))


@torch.no_grad()
def drawn(model: torch.nn.Module, images: Tensor, labels: Tensor) -> plt.Figure:
    """Show what the low level is surest of in each class, and least sure of, with the answers."""
    low = dmnn_convert.freeze(model, LOW)(images).softmax(-1)
    full = dmnn_convert.freeze(model, 1.0)(images).argmax(-1)
    best, second = low.topk(2, dim=-1).values.unbind(-1)
    order = (best - second).argsort(descending=True)
    surest = [int(order[low[order].argmax(-1) == own][0]) for own in range(CLASSES)]
    titles = {
        f"the surest of each class, at a level of {LOW}": surest,
        "the least sure, and what the whole network makes of them": order[-CLASSES:].tolist(),
    }
    figure = plt.figure(figsize=(8, 3), layout="constrained")
    for part, (title, chosen) in zip(figure.subfigures(2), titles.items(), strict=True):
        part.suptitle(title, fontsize=9)
        for ax, i in zip(part.subplots(1, CLASSES), chosen, strict=True):
            ax.imshow(images[i, 0], cmap="gray_r")
            ax.set(xticks=[], yticks=[])
            answers = (
                str(int(low[i].argmax())) if chosen is surest else f"{low[i].argmax()} → {full[i]}"
            )
            right = (full[i] if chosen is not surest else low[i].argmax()) == labels[i]
            ax.set_xlabel(answers, fontsize=8, color="black" if right else "tab:red")
    return figure


def main() -> None:
    """Train, and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-steps", type=int, help="cut each training short (to try it out)")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "easy-and-hard.png")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    drawn(*trained_levels(options.max_steps)).savefig(options.output, dpi=110)


if __name__ == "__main__":
    main()
