"""Saved networks on the Hugging Face Hub: JSON, safetensors and a card, never a pickle."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from ..convert import Dynamized
from ..errors import ArgumentError, CheckpointError
from ..evaluation import DenseEvaluation, Evaluation
from ..finetune import CONFIG as RECIPE
from ..finetune import RESULT, Recipe, read_recipe
from ..foreign import parsed_json, text_of
from ..io import CASCADE, CONFIG, LEVEL, WEIGHTS, Cascade, load, load_level, save
from ..optional import needed
from ..report import Curve
from ..text import first_line
from .card import TABLE, kind_in, model_card

CARD = "README.md"

_FILES = {
    CONFIG: (CONFIG, WEIGHTS, TABLE),
    CASCADE: (CASCADE, "cascade.safetensors"),
    LEVEL: (LEVEL, "level.safetensors"),
}
"""All files of each kind of saved network; no others are sent or fetched."""


def push_to_hub(
    network: nn.Module | str | os.PathLike[str],
    repo_id: str,
    *,
    arch: str | None = None,
    num_classes: int | None = None,
    results: DenseEvaluation | None = None,
    curve: Curve | None = None,
    license: str | None = None,
    source: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    message: str = "Upload a network by dmnn-convert",
) -> str:
    """Send a converted model, a cascade or a saved directory to the Hub, with a card.

    The card holds the FLOPs table, the results, the recipe and the licence. For a run's folder,
    such as ``run/final``, results and recipe come from the files beside it, without the paths of
    the author's machine.

    Args:
        network: the result of `dynamize` or `Cascade.fit`, or a saved directory.
        repo_id: "user/name"; made if need be.
        arch: of a model: the zoo's name of its source, so that it can be rebuilt ("resnet50").
        num_classes: of a model: classes that the source was built with, if not its default.
        results: its evaluation; None for the one beside a run's folder.
        curve: its results at other budgets.
        license: of the source's weights, as the Hub names it ("bsd-3-clause").
        source: where these came from.
        private: whether only you see it; None for the account's default.
        token: of the Hub; None for the one that ``hf auth login`` keeps.
        message: of the commit.

    Returns:
        The address of the network.

    Raises:
        ArgumentError: for a directory without a saved network, a wrong name, or an error of the
            Hub's; or if huggingface_hub is missing.

    Example:
        >>> push_to_hub("run/final", "me/resnet50-half", license="bsd-3-clause")  # doctest: +SKIP
        >>> model, table = from_pretrained("me/resnet50-half")  # doctest: +SKIP
    """
    hub = needed("huggingface_hub", "hub")
    recipe = None
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "network")
        if isinstance(network, nn.Module):
            _save(network, folder, arch, num_classes)
        else:
            if arch is not None or num_classes is not None:
                raise ArgumentError(
                    "push_to_hub(arch=..., num_classes=...): a saved directory has its own."
                )
            _copy(Path(network), folder)
            found, recipe = _beside(Path(network))
            results = found if results is None else results
        card = model_card(
            folder,
            repo_id,
            results=results,
            recipe=recipe,
            curve=curve,
            license=license,
            source=source,
        )
        (folder / CARD).write_text(card, encoding="utf-8")
        api = hub.HfApi(token=token)
        try:
            url = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
        except _errors(hub) as error:
            raise _told("push_to_hub", repo_id, error) from error
    return str(url)


def from_pretrained(
    name: str | os.PathLike[str],
    model: nn.Module | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Dynamized | Cascade | nn.Module:
    """Load a network from the Hub, or from a directory.

    Only JSON and safetensors are fetched, and no code from the Hub is run.

    Args:
        name: "user/name", or a directory that was saved.
        model: a fresh, unconverted source; None builds it by the saved architecture name.
        revision: branch, tag or commit.
        token: of the Hub; None for the one that ``hf auth login`` keeps.
        cache_dir: where files are kept; None for huggingface_hub's own place.
        local_files_only: whether to use only cached files, without a network.

    Returns:
        A converted model with its table, a cascade, or a frozen level, whichever was saved.

    Raises:
        ArgumentError: if there is no such network, or its source cannot be built by name.
        CheckpointError: if it is incomplete or damaged.

    Example:
        >>> save(model, "converted")
        >>> same, table = from_pretrained("converted", model=Net())  # or "user/name"
    """
    folder = Path(name)
    if not folder.is_dir():
        hub = needed("huggingface_hub", "hub")
        wanted = sorted({file for files in _FILES.values() for file in files})
        try:
            folder = Path(
                hub.snapshot_download(
                    str(name),
                    revision=revision,
                    token=token,
                    cache_dir=cache_dir,
                    local_files_only=local_files_only,
                    allow_patterns=wanted,
                )
            )
        except _errors(hub) as error:
            raise _told("from_pretrained", str(name), error) from error
    kind = kind_in(folder)
    if kind == CASCADE:
        return Cascade.load(folder, model)
    if kind == LEVEL:
        return load_level(folder, model)
    return load(folder, model)


def _save(network: nn.Module, folder: Path, arch: str | None, classes: int | None) -> None:
    if isinstance(network, Cascade):
        network.save(folder, arch, num_classes=classes)
    else:
        save(network, folder, arch=arch, num_classes=classes)


def _copy(directory: Path, folder: Path) -> None:
    folder.mkdir()
    for file in _FILES[kind_in(directory)]:
        try:
            shutil.copyfile(directory / file, folder / file)
        except OSError as error:
            raise CheckpointError(f"{directory / file}: cannot be read ({error}).") from error


def _beside(directory: Path) -> tuple[DenseEvaluation | None, Recipe | None]:
    """Return the results and the recipe that a run wrote beside its last network."""
    run = directory.resolve().parent
    if directory.resolve().name != "final" or not (run / RESULT).is_file():
        return None, None
    try:
        values = parsed_json(text_of(run / RESULT))["evaluation"]
        kind = Evaluation if "flops_ratio" in values else DenseEvaluation
        recipe = Recipe().with_changes(read_recipe(str(run / RECIPE)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{run / RESULT}: is damaged ({error!r}); give results=.") from error
    return kind.from_dict(values), recipe


def _errors(hub: Any) -> tuple[type[Exception], ...]:
    kinds = hub.errors
    return (kinds.HfHubHTTPError, kinds.HFValidationError, kinds.LocalEntryNotFoundError, OSError)


def _told(call: str, name: str, error: Exception) -> ArgumentError:
    return ArgumentError(
        f'{call}("{name}"): {first_line(error)}. Give "user/name" of a network '
        "that is there, or a directory; private ones need a token (hf auth login)."
    )
