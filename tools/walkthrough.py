"""Write docs/walkthrough.md: each step's command as it is typed, and what it answers.

python tools/walkthrough.py [PAGE]

The steps run one after another in a folder that holds examples/ and models/, as a checkout does.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "walkthrough.md"


class Step(NamedTuple):
    """A step of the walk.

    Attributes:
        title: of its section.
        prose: what there is to know before.
        command: for a shell.
        shown: lines of its output that the page keeps, from the start and from the end.
    """

    title: str
    prose: str
    command: str
    shown: tuple[int, int] = (12, 12)


ARCH = "--arch examples/cifar_resnet.py:resnet20"

STEPS = (
    Step(
        "Images and a checkpoint",
        "1,000 images of CIFAR-10 come with the repository: 500 that no training saw, to choose\n"
        "by, and 500 to test on. They are laid out as most image folders are. `mine.pth` is an\n"
        "ordinary state dict of a trained ResNet-20, such as you would have.",
        """\
python -m zipfile -e models/cifar10-sample.zip photos
mv photos/held_out photos/train
python - <<'CODE'
import torch, dmnn_convert
model, _ = dmnn_convert.load("resnet20-cifar10-levels")
torch.save(dmnn_convert.freeze(model.eval(), 1.0).state_dict(), "mine.pth")
CODE
ls photos photos/train""",
    ),
    Step(
        "Convert",
        "What converts, and what it costs. Every block is split into four sub-blocks.\n"
        "`--split exact` keeps the function: with all gates on the network answers as before.\n"
        "`--arch` takes names of torchvision and timm, too.",
        f"""\
dmnn-convert {ARCH} --checkpoint mine.pth \\
    --input-size 32 -N 4 --split exact -o converted""",
    ),
    Step(
        "Train it for every budget",
        "A level is a share of the sub-blocks of every block. One run trains the network for\n"
        "several levels at once. It converts the network itself; the step above only shows what\n"
        "to expect. It reads `photos/train`, tests on `photos/test`, and keeps a fifth of the\n"
        "training images out, to choose by. `run/recipe.yaml` holds all its options: later\n"
        "commands read them with `--config`.\n\n"
        "400 images and eight epochs show the way; a real run has all your images and takes\n"
        "hours. `mine.pth` has an easier start than yours will, because it comes from a network\n"
        "that was trained for levels before: [Results](results.md) tells what others reach.",
        f"""\
dmnn-convert finetune {ARCH} --checkpoint mine.pth \\
    --input-size 32 --data photos --held-out 0.2 --levels 0.25,0.5,0.75,1 \\
    --epochs 8 --in-memory --workers 0 --output run""",
        (20, 0),
    ),
    Step(
        "Look at every budget",
        "The curve shows accuracy, FLOPs and time of each level, of paths between levels, and\n"
        "of cascades: a cheap level for all images, a larger one for those that it is unsure\n"
        "about. `curve.png` instead draws it. The controllers' gates were not trained here.",
        "dmnn-convert evaluate run/final --config run/recipe.yaml -q --curve curve.csv",
        (40, 0),
    ),
    Step(
        "Choose one",
        "The best policy at 0.6 of the FLOPs, chosen on held-out images, measured on the others.",
        "dmnn-convert budget run/final --config run/recipe.yaml -q --target 0.6 -o chosen",
    ),
    Step(
        "Deploy it",
        "ONNX files and a runner of one file, which needs NumPy and ONNX Runtime alone. Answers\n"
        "were compared with PyTorch's. The network with all sub-blocks is deployed as well, to\n"
        "compare times.",
        """\
dmnn-convert deploy chosen --config run/recipe.yaml -q --engine onnxruntime -o deployed
dmnn-convert deploy run/final --level 1 --config run/recipe.yaml -q \\
    --engine onnxruntime -o whole""",
    ),
    Step(
        "Time it",
        "In its engine, on the test images.",
        """\
for network in whole deployed; do
  dmnn-convert evaluate $network --data photos --workers 0 -q
done""",
    ),
    Step(
        "Run it where PyTorch is not",
        "A service prepares images as `deploy.json` says, and calls the runner; here from a file.",
        """\
python - <<'CODE'
import json, pathlib
import numpy as np
from PIL import Image
how = json.load(open("deployed/deploy.json"))["preprocessing"]
files = sorted(pathlib.Path("photos/test").glob("*/*"))
images = np.stack([np.asarray(Image.open(file), np.float32) for file in files]) / 255
images = (images - how["mean"]) / how["std"]
np.save("images.npy", np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32))
classes = sorted({file.parent.name for file in files})
np.save("labels.npy", [classes.index(file.parent.name) for file in files])
CODE
python deployed/run_deployed.py images.npy answers.npy --threads 1 --time
python - <<'CODE'
import numpy as np
right = np.load("answers.npy").argmax(1) == np.load("labels.npy")
print(f"top-1 {100 * right.mean():.2f} %")
CODE""",
    ),
)

OPENING = """\
# A walk from a checkpoint to a deployed network

Every command along the way, with its output; `make walkthrough` writes this page again. All of
it takes a few minutes on two cores, without a network connection, in a checkout of the repository.
`pip install -e ".[deploy]"` installs what it needs.
"""

CLOSING = """\
## From here

[Budgets](budget.md) says how levels, cascades and gates differ, [Deploying](deploy.md) how the
files become a service, [Fine-tuning](finetune.md) what a run can do, and [Results](results.md) what
it reaches.
"""


def answered(command: str, folder: Path, environment: dict[str, str]) -> tuple[str, float]:
    """Return what a command prints, and its seconds.

    Raises:
        RuntimeError: if it fails.
    """
    begun = time.perf_counter()
    done = subprocess.run(
        ["bash", "-ec", command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{command}\n{done.stdout}")
    return done.stdout, time.perf_counter() - begun


def cut(text: str, shown: tuple[int, int]) -> str:
    """Return the first and last lines of a text."""
    lines, (first, last) = text.rstrip().splitlines(), shown
    if len(lines) <= first + last + 1:
        return "\n".join(lines)
    tail = lines[-last:] if last else []
    return "\n".join([*lines[:first], f"... ({len(lines) - first - last} lines)", *tail])


def section(step: Step, output: str, seconds: float) -> str:
    """Return a step as a section of the page."""
    said = f"\n```text\n{cut(output, step.shown)}\n```\n" if output.strip() else ""
    taken = f"\nThis took {seconds:.0f} s.\n"
    return f"## {step.title}\n\n{step.prose}\n\n```sh\n{step.command}\n```\n{said}{taken}"


def commands(page: str) -> list[str]:
    """Return the commands that a page shows."""
    return [text.rstrip("\n") for text in re.findall(r"^```sh\n(.*?)^```", page, re.M | re.S)]


def main() -> None:
    """Run every step and write the page."""
    page = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("examples", "models"):
            (folder / part).symlink_to(ROOT / part)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
        sections = []
        for step in STEPS:
            output, seconds = answered(step.command, folder, environment)
            sections.append(section(step, output.replace(f"{folder}/", ""), seconds))
            print(f"{step.title}: {seconds:.0f} s", flush=True)
    page.write_text("\n".join([OPENING, *sections, CLOSING]), encoding="utf-8")


if __name__ == "__main__":
    main()
