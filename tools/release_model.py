"""Make a released network of a run: weights, a card and checksums in models/NAME.

    python tools/release_model.py RUN NAME --arch examples/cifar_resnet.py:resnet20 \\
        --licence "BSD-2-Clause, of the checkpoint that it started from"

`dmnn_convert.load(NAME)` then loads it. RUN is what `dmnn-convert finetune --output` wrote.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import dmnn_convert
from dmnn_convert.io import CONFIG, TABLE, WEIGHTS
from dmnn_convert.io.released import RELEASE, checksums_of

MODELS = Path(__file__).parents[1] / "models"
LARGEST = 5_000_000
TOLD = (
    "epochs",
    "batch_size",
    "lr",
    "levels",
    "target",
    "n",
    "split",
    "tail_norm",
    "order",
    "seed",
)


def card(name: str, arch: str, licence: str, result: dict[str, Any], table: str) -> str:
    """Return the model card: figures, recipe, costs and licence, as the run wrote them."""
    recipe = result["recipe"]
    rows = "\n".join(f"| {key} | {recipe[key]} |" for key in TOLD if recipe.get(key) is not None)
    return f"""# {name}

`model, table = dmnn_convert.load("{name}")`

The source is `{arch}`. Licence: {licence}.

## Results on the test images

{_figures(result)}

## Recipe

| option | value |
|---|---|
{rows}

## FLOPs table

```
{table}
```
"""


def _figures(result: dict[str, Any]) -> str:
    found = {f"level {name}": own for name, own in result.get("levels", {}).items()}
    found = found or {"gates": result["evaluation"]}
    lines = ["| policy | top-1, % | FLOPs of the network, over the source's |", "|---|---|---|"]
    for policy, own in found.items():
        lines.append(f"| {policy} | {own['top1']:.2f} | {own['network_flops_ratio']['mean']:.3f} |")
    return "\n".join(lines)


def release(run: Path, name: str, arch: str, licence: str, models: Path = MODELS) -> Path:
    """Write models/NAME, whole or not at all, after it was loaded once; return the folder."""
    if (models / name).exists():
        raise SystemExit(f"{models / name} is there already: remove it, or take another name.")
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    models.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=models) as temporary:
        folder = Path(temporary) / name
        folder.mkdir()
        for file in (CONFIG, TABLE, WEIGHTS):
            shutil.copyfile(run / "final" / file, folder / file)
        described = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        described["arch"] = arch
        (folder / CONFIG).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
        source = dmnn_convert.zoo.build(arch, num_classes=described.get("num_classes"))
        _, table = dmnn_convert.load(folder, source)
        text = card(name, arch, licence, result, str(table))
        (folder / "README.md").write_text(text, encoding="utf-8")
        size = sum(file.stat().st_size for file in folder.iterdir())
        if size > LARGEST:
            raise SystemExit(f"{name} has {size:,} bytes; {LARGEST:,} are the most for models/.")
        (folder / RELEASE).write_text(checksums_of(folder) + "\n", encoding="utf-8")
        folder.rename(models / name)
    return models / name


def main() -> None:
    """Read the command line, and release."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--arch", required=True, help="of a zoo, or examples/FILE.py:FACTORY")
    parser.add_argument("--licence", required=True, help="of weights and data that it started from")
    options = parser.parse_args()
    print(release(options.run, options.name, options.arch, options.licence))


if __name__ == "__main__":
    main()
