"""`load_deployed`: a deployed network as a Python function."""

from __future__ import annotations

import os
import sys
from typing import Any

from ..errors import ArgumentError, CheckpointError
from .run_deployed import Deployed


def _on_torch(file: str, precision: str, threads: int | None, _: bool = True) -> Any:
    from .program import on_torch  # and PyTorch with it

    return on_torch(file, precision, threads)


class LoadedDeployment(Deployed):
    """A deployed network or cascade; NumPy arrays in and out, or PyTorch's tensors."""

    engines = {**Deployed.engines, "torch": _on_torch}  # noqa: RUF012

    def answered(self, images: Any) -> tuple[Any, Any]:
        """Return the answers to images (B, C, H, W), and which network gave each, (B,).

        Raises:
            ArgumentError: for images of another shape or dtype than was deployed.
        """
        torch = sys.modules.get("torch")
        if torch is None or not isinstance(images, torch.Tensor):
            return self._answered(images)
        kept = images.dtype is torch.float32
        answers, levels = self._answered(images.detach().cpu().numpy() if kept else images)
        return torch.from_numpy(answers).to(images.device), torch.from_numpy(levels)

    def _answered(self, images: Any) -> tuple[Any, Any]:
        try:
            return super().answered(images)
        except ValueError as error:
            raise ArgumentError(f"the deployed network: {error}") from error


def load_deployed(
    directory: str | os.PathLike[str], *, engine: str = "auto", threads: int | None = None
) -> LoadedDeployment:
    """Load what `deploy` wrote as a function of images (B, C, H, W), of any number B.

    It needs NumPy and the engine alone, and does not import PyTorch. Files are checked against
    their checksums first. An image with NaN or infinity in it is answered by NaN. Calls from
    several threads are safe.

    Args:
        directory: where `deploy` wrote.
        engine: "onnxruntime", "openvino" or "torch"; "auto" for the one that it was deployed for,
            or else another that is installed and gave the same answers when it was deployed.
        threads: how many the engine is to use; None for its default.

    Returns:
        A callable; its `answered` also tells which network of a cascade answered each image.

    Raises:
        CheckpointError: for a directory that is incomplete, damaged, or of mixed files.
        ArgumentError: if the engine is not installed, or cannot run it on this processor.

    Example:
        >>> folder = deploy(freeze(model, 0.5), "deployed", images, engine="onnxruntime")
        >>> load_deployed(folder, threads=1)(images.numpy()).shape
        (32, 10)
    """
    if threads is not None and not (isinstance(threads, int) and threads >= 1):
        raise ArgumentError(f"load_deployed(threads={threads!r}): give an int >= 1, or None.")
    try:
        return LoadedDeployment(directory, engine, threads)
    except ValueError as error:
        raise ArgumentError(f"load_deployed: {error}") from error
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"load_deployed: {error}") from error
