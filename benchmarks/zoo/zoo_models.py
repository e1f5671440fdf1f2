"""Instances to check: small enough to run, with outputs that are worth a comparison."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from zoo_libraries import Library, Size
from zoo_random import random_statistics, randomise

HUGE = 250_000_000
"""Parameters above which a shallower instance of the family is checked."""
SHALLOWER: tuple[dict[str, Any], ...] = tuple(
    options
    for depth in (2, 1)
    for options in (
        {"depth": depth},
        {"depth": depth, "num_kv_heads": 8},
        *(
            {name: (depth,) * stages}
            for name in ("depths", "layers", "stages")
            for stages in (4, 5)
        ),
    )
)
"""What constructors call their depth."""
SIDES = (64, 96, 128)
"""Image sides to try before the declared one."""
FIXED_SIDES = (112, 128)
"""The same for instances whose size is fixed: multiples of patches and windows."""
STRENGTHS = (1.0, 0.3, 0.1)
"""How far from its constants a model is drawn, until its outputs are finite and differ."""
DIFFERENT = 1e-3
"""How far the outputs of two images must differ, of the largest magnitude."""


class Instance(NamedTuple):
    """A model to check.

    Attributes:
        model: in evaluation mode, with random weights and statistics.
        images: (2, ...) to run it on.
        output: what it makes of them.
        input_size: shape of one image that costs are counted for.
        remark: what sets it apart from the zoo's own model; empty if nothing does.
    """

    model: nn.Module
    images: Tensor
    output: list[Tensor]
    input_size: Size
    remark: str


class NoInstanceError(Exception):
    """The source itself cannot be built and run, or gives nothing that can be compared."""


def instance(library: Library, name: str) -> Instance:
    """Build the model so that it runs fast and its outputs tell something.

    Raises:
        NoInstanceError: if there is no such instance.
    """
    options, parameters = _shallower(library, name)
    remarks = [f"{key}={value}" for key, value in options.items()]
    declared = library.input_size(name)
    if library.is_fixed(name):
        options, declared = _smaller(library, name, options, declared)
    problem = ""
    for strength in STRENGTHS:
        torch.manual_seed(0)
        model, truncated = _build(library, name, options, parameters > HUGE)
        randomise(model, strength)
        images, output = _first_run(model, declared)
        problem = _useless(output)
        if not problem:
            remarks += ["at most two equal blocks in a row"] if truncated else []
            remark = f"checked with {', '.join(remarks)}" if remarks else library.part(name)
            return Instance(model, images, output, declared, remark)
    raise NoInstanceError(f"the source's outputs {problem}, however its weights are drawn")


def at_declared_size(small: Instance) -> Instance:
    """Return an instance that is run on images of its input size."""
    images = _images(small.input_size)
    with torch.no_grad():
        return small._replace(images=images, output=seeded(small.model, images))


def tensors(output: Any) -> list[Tensor]:
    """Return all tensors in a model's output, in order."""
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, Mapping) else output
    nested = isinstance(output, Mapping | tuple | list)
    return [tensor for part in parts for tensor in tensors(part)] if nested else []


def seeded(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Return what a model makes of images; some draw random numbers in evaluation, too."""
    torch.manual_seed(5)
    return tensors(model(images))


# --- smaller instances ------------------------------------------------------------------------


def _shallower(library: Library, name: str) -> tuple[dict[str, Any], int]:
    """Return the options of an instance of at most `HUGE` parameters, or the smallest there is.

    The second value is the number of its parameters, 0 if it is unknown.
    """
    best: dict[str, Any] = {}
    size = library.input_size(name)
    smallest = full = _parameters(_sketch(library, name, {}))
    for options in SHALLOWER if full > HUGE else ():
        count = _parameters(_sketch(library, name, options, size))
        if 0 < count < smallest:
            best, smallest = options, count
        if smallest <= HUGE:
            break
    return best, smallest


def _smaller(
    library: Library, name: str, options: dict[str, Any], declared: Size
) -> tuple[dict[str, Any], Size]:
    """Return the options and the size of an instance for smaller images, where there is one."""
    for side in (side for side in FIXED_SIDES if side < min(declared[1:])):
        size, smaller = (declared[0], side, side), {**options, library.size_option: side}
        if _sketch(library, name, smaller, size) is not None:
            return smaller, size
    return options, declared


def _sketch(
    library: Library, name: str, options: dict[str, Any], size: Size = ()
) -> nn.Module | None:
    """Build the model without values and run it on images of `size`; None if that fails."""
    # Constructors fail in many ways over options that they do not know, and some need values.
    with contextlib.suppress(Exception), torch.device("meta"), torch.no_grad():
        model = library.build(name, **options).eval()
        if size:
            model(torch.zeros(1, *size))
        return model
    return None


def _build(
    library: Library, name: str, options: dict[str, Any], huge: bool
) -> tuple[nn.Module, bool]:
    """Build the model; return whether blocks had to be dropped, so that it is not huge."""
    sketch = _sketch(library, name, options) if huge else None
    if sketch is not None and _truncate(sketch) and _holds_only_weights(sketch):
        with contextlib.suppress(Exception):  # of initialisations that need more
            return _materialised(sketch), True
    model = library.build(name, **options).eval()
    return model, _parameters(model) > HUGE and _truncate(model)


def _parameters(model: nn.Module | None) -> int:
    return 0 if model is None else sum(parameter.numel() for parameter in model.parameters())


def _truncate(model: nn.Module) -> bool:
    """Keep two of the equal children that follow each other; return whether there were more."""
    dropped = False
    for parent in list(model.modules()):
        for _, equal in groupby(list(parent.named_children()), key=lambda item: _shape(item[1])):
            for name, child in list(equal)[2:]:
                # Only sequences: a query, a key and a value are equal children too.
                sequence = isinstance(parent, nn.Sequential | nn.ModuleList)
                if _parameters(child) and (sequence or any(child.children())):
                    delattr(parent, name)
                    dropped = True
    return dropped


def _holds_only_weights(model: nn.Module) -> bool:
    """Tell whether no buffer but norm statistics would be lost on the meta device."""
    norms = ("running_mean", "running_var", "num_batches_tracked")
    return all(name.endswith(norms) for name, _ in model.named_buffers())


def _materialised(sketch: nn.Module) -> nn.Module:
    """Give a model that was built without values random ones."""
    model = sketch.to_empty(device="cpu")
    with torch.no_grad():
        for module in model.modules():
            reset = getattr(module, "reset_parameters", None)
            for parameter in module.parameters(recurse=False):
                # Zeros are drawn later, like everything that starts at a constant.
                parameter.normal_(0, 0.02) if parameter.dim() > 1 else parameter.zero_()
            if callable(reset):
                reset()
    return model


def _shape(module: nn.Module) -> tuple[Any, ...]:
    return (type(module), *((name, p.shape) for name, p in module.named_parameters()))


# --- a first run ------------------------------------------------------------------------------


def _first_run(model: nn.Module, declared: Size) -> tuple[Tensor, list[Tensor]]:
    """Run the model on the smallest images that it takes."""
    for size in _sizes(declared):
        images = _images(size)
        try:
            with torch.no_grad():
                with random_statistics(model):
                    model(images)
                return images, seeded(model, images)
        except Exception as error:  # models fail in many ways over a size
            if size == declared:
                raise NoInstanceError(f"the source does not run: {error}") from error
    raise NoInstanceError("the source has no input size")


def _sizes(declared: Size) -> Iterator[Size]:
    for side in SIDES:
        if len(declared) > 2 and side < min(declared[-2:]):
            yield (*declared[:-2], side, side)
    yield declared


def _images(size: Size) -> Tensor:
    """Draw two images of different colours."""
    generator = torch.Generator().manual_seed(2)
    colour = torch.randn(2, size[0], *(1 for _ in size[1:]), generator=generator)
    return colour + torch.randn(2, *size, generator=generator)


def _useless(output: Sequence[Tensor]) -> str:
    """Return what is wrong with outputs that are to be compared; "" if nothing is."""
    floating = [tensor for tensor in output if tensor.is_floating_point()]
    if not all(bool(tensor.isfinite().all()) for tensor in floating):
        return "are not finite"
    if not any(_differ(tensor) for tensor in floating):
        return "are the same for different images"
    return ""


def _differ(tensor: Tensor) -> bool:
    if tensor.dim() == 0 or len(tensor) != 2 or tensor.numel() == 0:
        return False
    return float((tensor[0] - tensor[1]).abs().max()) > DIFFERENT * float(tensor.abs().max())
