"""Released networks: directories of models/, found by name and checked against their checksums."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from ..errors import CheckpointError
from ..foreign import parsed_json, text_of
from ..text import shown

MODELS = "DMNN_CONVERT_MODELS"
RELEASE = "release.json"
_FORMAT = 1
_CHECKOUT = Path(__file__).resolve().parents[2]


def released(name: str) -> Path | None:
    """Return the directory of the released network of this name; None if there is none.

    The search looks in $DMNN_CONVERT_MODELS, or else in the models/ of the checkout that the
    package is imported from.

    Raises:
        CheckpointError: if one of its files is missing or differs from the released one.
    """
    if not name or Path(name).name != name or name.startswith("."):
        return None
    folder = models_folder() / name
    if not (folder / RELEASE).is_file():
        return None
    for file, checksum in _checksums(folder / RELEASE).items():
        _check(folder / file, checksum)
    return folder


def models_folder() -> Path:
    """Return the folder of released networks, which may not exist."""
    return Path(os.environ.get(MODELS) or _CHECKOUT / "models")


def own_source(arch: str) -> str | None:
    """Return the factory that a released network names in the checkout's examples; None for others.

    That code comes with the package. No other code is run because a file names it.
    """
    file, _, factory = arch.partition(":")
    examples = _CHECKOUT / "examples"
    path = (_CHECKOUT / file).resolve()
    if not factory.isidentifier() or path.parent != examples or not path.is_file():
        return None
    return f"{path}:{factory}"


def released_names() -> list[str]:
    """Return the names of the available released networks."""
    return sorted(path.parent.name for path in models_folder().glob(f"*/{RELEASE}"))


def checksums_of(folder: Path) -> str:
    """Return the content of a folder's `RELEASE`: the checksums of all its other files."""
    files = sorted(path for path in folder.iterdir() if path.name != RELEASE)
    return json.dumps({"format": _FORMAT, "sha256": {f.name: sha256(f) for f in files}}, indent=1)


def sha256(file: Path) -> str:
    """Return a file's checksum, in hexadecimal."""
    with file.open("rb") as opened:
        digest = hashlib.sha256()
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _checksums(file: Path) -> dict[str, str]:
    try:
        described = parsed_json(text_of(file))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}); fetch it again.") from error
    found = described.get("sha256") if isinstance(described, dict) else None
    if not isinstance(found, dict) or described.get("format") != _FORMAT:
        raise CheckpointError(
            f"{file}: is not the list of a released network that this version reads, but "
            f"{shown(described)}; fetch it again, or use another version of dmnn-convert."
        )
    if any(Path(name).name != name or not isinstance(found[name], str) for name in found):
        raise CheckpointError(f"{file}: names files outside its folder; fetch it again.")
    return found


def _check(file: Path, checksum: str) -> None:
    try:
        right = sha256(file) == checksum
    except OSError as error:
        raise CheckpointError(
            f"{file}: cannot be read ({error.strerror}); fetch the released network again."
        ) from error
    if not right:
        raise CheckpointError(
            f"{file}: is not the file that was released (its SHA-256 differs); fetch it again."
        )
