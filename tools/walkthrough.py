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
        "Every block is split into four sub-blocks. `--split exact` keeps the function: with\n"
        "all gates on the network answers as before. `--arch` takes names of torchvision and\n"
        "timm, too.",
        f"""\
dmnn-convert {ARCH} --checkpoint mine.pth \\
    --input-size 32 -N 4 --split exact -o converted""",
    ),
    Step(
        "Look at every budget",
        "A level is a share of the sub-blocks of every block. Training for all of them at\n"
        "once is `dmnn-convert finetune --levels 0.25,0.5,0.75,1` with the options above and\n"
        "`--data`, and takes hours. The repository holds what such a run left behind.\n\n"
        "The curve shows accuracy, FLOPs and time of each level, and of cascades: a cheap\n"
        "level for all images, a larger one for those that it is unsure about. For a network\n"
        "of yours it is `dmnn-convert evaluate DIRECTORY --data photos --curve curve.csv`.",
        "python examples/budget_curve.py",
        (40, 0),
    ),
    Step(
        "Choose one",
        "The best cascade at 0.6 of the FLOPs, chosen on held-out images, measured on the others.",
        f"""\
dmnn-convert budget models/resnet20-cifar10-levels {ARCH} \\
    --data photos --held-out 0.9 --workers 0 -q \\
    --policy cascade --target 0.6 -o chosen""",
    ),
    Step(
        "Deploy it",
        "ONNX files and a runner of one file, which needs NumPy and ONNX Runtime alone. Answers\n"
        "were compared with PyTorch's. The dense network is deployed as well, to compare times.",
        f"""\
dmnn-convert deploy chosen {ARCH} \\
    --data photos --workers 0 -q --engine onnxruntime -o deployed
dmnn-convert deploy models/resnet20-cifar10-levels {ARCH} \\
    --level 1 --data photos --workers 0 -q --engine onnxruntime -o dense""",
    ),
    Step(
        "Run and time it",
        "The test images, prepared as `deploy.json` says, in one batch of ONNX Runtime.",
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
for network in dense deployed; do
  python $network/run_deployed.py images.npy $network.npy --threads 1 --time
  python -c "import numpy as np; print(
    '$network:', (np.load('$network.npy').argmax(1) == np.load('labels.npy')).mean())"
done""",
    ),
)

OPENING = """\
# A walk from a checkpoint to a deployed network

Every command of the way, and what it answered; `make walkthrough` writes this page anew. All of
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
