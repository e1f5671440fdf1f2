"""The folder that `deploy` writes: models, their description, the runner, and a README."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ArgumentError
from ..files import write_all, write_text
from ..foreign import parsed_json, text_of
from . import run_deployed
from .run_deployed import DESCRIPTION, FORMAT, digest
from .shared_weights import WEIGHTS

RUNNER = Path(run_deployed.__file__)
README = "README.md"

_VERSIONS = ("dmnn-convert", "torch", "numpy", "onnx", "onnxscript", "onnxruntime", "openvino")


def describe(folder: Path, files: Sequence[str], told: Mapping[str, Any]) -> None:
    """Write the description of files in a folder, with their checksums and its own.

    Args:
        folder: where they lie.
        files: their names.
        told: whatever else it is to say.
    """
    described = {
        "format": FORMAT,
        **told,
        "versions": _versions(),
        "files": {name: digest((folder / name).read_bytes()) for name in files},
    }
    # As it will be read: JSON turns a tuple into a list.
    described = json.loads(json.dumps(described, default=_plain))
    described["sha256"] = digest(described)
    write_text(folder / DESCRIPTION, json.dumps(described, indent=1))


def _plain(value: Any) -> Any:
    """Return the plain numbers of an array or a tensor.

    Raises:
        ArgumentError: for anything else, which JSON cannot say.
    """
    if not hasattr(value, "tolist"):
        raise ArgumentError(
            f"deploy: {type(value).__name__} in the description; give preprocessing of numbers, "
            "texts, lists and dicts."
        )
    return value.tolist()


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def check_free(folder: Path, names: Iterable[str] = (DESCRIPTION, RUNNER.name, README)) -> None:
    """Check that files may be written into a folder.

    Raises:
        ArgumentError: if somebody else's files of these names lie there.
    """
    others = sorted(n for n in set(names) - _deployed(folder) if (folder / n).exists())
    if others:
        raise ArgumentError(
            f"deploy: {folder} holds {', '.join(others)}, which no deployment that is described "
            "there has written; give another directory, or remove what is there."
        )


def move_in(staged: Path, folder: Path) -> None:
    """Put files into a folder, all or none; those that an earlier `deploy` left are replaced.

    Raises:
        ArgumentError: if somebody else's files of the same names lie there.
        CheckpointError: if the folder cannot be written; what lay there stays.
    """
    names = sorted(file.name for file in staged.iterdir())
    names.sort(key=lambda name: name == DESCRIPTION)  # last, for it vouches for the others
    check_free(folder, names)
    left = _deployed(folder) - set(names)
    write_all(folder, {name: _copier(staged / name) for name in names})
    for name in left:
        (folder / name).unlink(missing_ok=True)


def _copier(source: Path) -> Any:
    return lambda path: shutil.copyfile(source, path)


def _deployed(folder: Path) -> set[str]:
    """Return the plain names of the files that an earlier `deploy` left, by its description."""
    try:
        told = parsed_json(text_of(folder / DESCRIPTION))
        if told.pop("sha256") != digest(told):  # anybody's file may have this name
            return set()
        listed = {name for name in told["files"] if Path(name).name == name}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()
    return {DESCRIPTION, RUNNER.name, README, *listed}


_README = """\
# A deployed {policy}

Precision {precision}, for {engines}. Images are float32 (B, {shape}), preprocessed as deploy.json
says, or else as for the network that this was made from.

```python
from {module} import {name}
network = {name}("path/to/this/folder")
answers = network(images)
```
"""

_GATES = """
Gates decide image by image: a batch takes as long as its images one after another. Where this was
made, an image took {gated:.2f} ms in {engine}, and in the dense network {dense:.2f} ms.
"""

_STANDALONE = """
run_deployed.py needs NumPy and an engine (`pip install numpy {first}`), neither PyTorch nor
dmnn-convert. It answers the images of a file, too:

```sh
python run_deployed.py images.npy answers.npy --time
```

Where dmnn-convert is installed, `dmnn-convert evaluate path/to/this/folder --data photos` prepares
the images in `photos/test/CLASS/` and tells accuracy and time.
"""


_CASCADE = """
{cascade} the whole cascade, for programs without Python, too: any engine that has ONNX's If
turns "images" (batch, {shape}) into "answers" and "levels", the number of the network that gave
each.
"""


def readme(told: Mapping[str, Any], files: Sequence[str]) -> str:
    """Return a text that says what the folder holds and how it is run."""
    alone = told["engines"] != ["torch"]
    where = ("run_deployed", "Deployed") if alone else ("dmnn_convert", "load_deployed")
    text = _README + _GATES * ("times" in told) + _STANDALONE * alone
    text += _CASCADE * ("cascade" in told)
    said: str = text.format(
        policy=told["policy"],
        precision=told["precision"],
        engines=" and ".join(told["engines"]),
        **told.get("times", {}),
        first=told["engines"][0],
        shape=", ".join(map(str, told["input"])),
        module=where[0],
        name=where[1],
        cascade=told.get("cascade", "") + (f" and {WEIGHTS} are" if WEIGHTS in files else " is"),
    )
    return said.rstrip()
