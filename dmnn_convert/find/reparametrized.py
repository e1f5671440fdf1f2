"""Layers whose tensors are computed in each forward: weight norm, spectral norm, pruning."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from ..channels import NotSplittable, conv_of, tensor_inputs
from ..errors import ConversionError
from ..graph import TracedModel

_OLD_STYLE = (
    (("_g", "_v"), "weight_norm", "torch.nn.utils.remove_weight_norm(module)"),
    (("_orig", "_u"), "spectral_norm", "torch.nn.utils.remove_spectral_norm(module)"),
    (("_orig", "_mask"), "pruning", "torch.nn.utils.prune.remove(module, {name!r})"),
)
"""The tensors from which a hook computes a layer's tensor; the hook's kind; the remedy."""


def remade_tensor(path: str, module: nn.Module) -> str | None:
    """Return which tensor of a layer is computed, and the remedy; None if none is."""
    if parametrize.is_parametrized(module):
        name, makers = next(iter(module.parametrizations.items()))  # type: ignore[operator,union-attr]
        kinds = ", ".join(type(maker).__name__.lstrip("_") for maker in makers)
        return (
            f"{path}.{name} is parametrised ({kinds}); make it plain first: "
            f"torch.nn.utils.parametrize.remove_parametrizations(module, {name!r})"
        )
    for name in ("weight", "bias", "running_mean", "running_var"):
        if not isinstance(vars(module).get(name), Tensor):
            continue
        for endings, maker, remedy in _OLD_STYLE:
            if all(hasattr(module, name + ending) for ending in endings):
                remedy = remedy.format(name=name)
                return f"{path}.{name} is made by {maker}; make it plain first: {remedy}"
        return f"{path}.{name} is neither parameter nor buffer; make it one of them"
    return None


def check_tensors(traced: TracedModel, nodes: Iterable[fx.Node]) -> None:
    """Check that the layers hold their tensors, of which slices are to be taken.

    Raises:
        NotSplittable: if one does not, with the remedy.
    """
    for node in nodes:
        module = traced.module(node)
        reason = None if module is None else remade_tensor(str(node.target), module)
        if reason is not None:
            raise NotSplittable(reason)


NEARBY = 16
"""Most operations between a projection and the expansion that is looked for."""


def remade_chain(traced: TracedModel, consumer: fx.Node) -> tuple[str, list[fx.Node]] | None:
    """Return why expand → depthwise → project is no block, if plain tensors would make it one."""
    nodes = [consumer]
    convs: list[_ConvNd] = []
    while len(convs) < 3 and len(nodes) < NEARBY:
        if (conv := conv_of(traced, nodes[-1])) is not None:
            convs.append(conv)
        inputs = tensor_inputs(nodes[-1])
        if len(inputs) != 1:
            break
        nodes += inputs if len(convs) < 3 else []
    if [conv.groups > 1 for conv in convs] != [False, True, False]:
        return None
    try:
        check_tensors(traced, nodes)
    except NotSplittable as reason:
        return str(reason), nodes
    return None


def check_attached(model: nn.Module, call: str) -> None:
    """Refuse tensors that PyTorch cannot copy, as old-style weight norm leaves behind.

    Raises:
        ConversionError: with the remedy.
    """
    if any(hasattr(type(module), "__deepcopy__") for module in model.modules()):
        return  # it may leave them out; other obstacles to copying show later
    for path, module in model.named_modules():
        for name, value in {**vars(module), **module._buffers}.items():
            if isinstance(value, Tensor) and not value.is_leaf:
                reason = remade_tensor(path, module) or (
                    f"{'.'.join(filter(None, (path, name)))} belongs to a forward pass; detach "
                    f"it: module.{name} = module.{name}.detach()"
                )
                raise ConversionError(f"{call}: the model cannot be copied: {reason}.")
