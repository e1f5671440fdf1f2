"""The folder of a run: its state, networks and results, while the run owns it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from ..errors import CheckpointError
from ..files import write_all, write_text
from ..io import WEIGHTS, save
from .file_names import CONFIG, RESULT
from .lock import Lock
from .recipe import Recipe
from .recipe_files import write_recipe
from .state import NONE_SETTLED, prepare_folder, write_state


class RunFolder:
    """The files that one process writes of a run.

    Args:
        path: of the folder.
        lock: on it; None in a process that writes nothing.
    """

    def __init__(self, path: Path, lock: Lock | None) -> None:
        self.path, self.lock = path, lock

    @property
    def mine(self) -> bool:
        """Whether this process writes, and the folder still belongs to the run."""
        return self.lock is not None and self.lock.holds()

    def write_recipe(self, recipe: Recipe) -> None:
        """Write the whole configuration."""
        if self.lock is not None:
            write_recipe(recipe, self.path / CONFIG)

    def write_state(self, state: dict[str, Any]) -> None:
        """Replace the state; if the folder was deleted, write the state for `--resume`.

        Raises:
            CheckpointError: if it was deleted, or cannot be written to.
        """
        if self._retaken():
            write_state(self.path, {**state, "best": NONE_SETTLED})  # the best network is lost, too
            raise CheckpointError(
                f"{self._gone()} The state is saved there again, and the same command with "
                "--resume continues the run; the rest is lost."
            )
        if self.mine:
            write_state(self.path, state)

    def write_model(self, name: str, model: nn.Module, recipe: Recipe) -> None:
        """Save the network in its own folder; for a dense one, only its weights."""
        if not self.mine:
            return
        if not recipe.dense:
            save(model, self.path / name, arch=recipe.arch, num_classes=recipe.num_classes)
            return
        tensors = {k: v.contiguous() for k, v in model.state_dict().items()}
        write_all(self.path / name, {WEIGHTS: lambda path: save_file(tensors, path)})

    def write_end(self, result: Mapping[str, Any], model: nn.Module, recipe: Recipe) -> None:
        """Write the last network and the result.

        Raises:
            CheckpointError: if the folder was deleted; it then holds only these two.
        """
        retaken = self._retaken()
        self.write_model("final", model, recipe)
        if self.lock is not None:
            text = json.dumps(result, indent=1)
            write_all(self.path, {RESULT: lambda path: write_text(path, text)})
        if retaken:
            raise CheckpointError(
                f"{self._gone()} {RESULT} and final/ are there again; the rest is lost."
            )

    def _retaken(self) -> bool:
        """Make the folder again if it is gone, unless another run has begun there."""
        if self.lock is None or self.lock.holds():
            return False
        prepare_folder(self.path, resume=False)
        self.lock.take()
        return True

    def _gone(self) -> str:
        return f"{self.path}: was deleted or replaced while the run wrote to it."
