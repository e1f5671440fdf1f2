"""The target and the inputs of a graph's node."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from ..graph import (
    FUNCTION_HOMES,
    TRAINING,
    Carries,
    TracedModel,
    argument,
    is_batch_size,
    is_constant,
    is_library_layer,
    is_size,
    known,
    measured,
    new_shape,
    own_layer,
    plain,
    size_of,
    spellings,
    vouched,
)


def conv_of(traced: TracedModel, node: fx.Node) -> _ConvNd | None:
    """Return the convolution that a node calls, or None."""
    module = traced.module(node)
    return module if isinstance(module, _ConvNd) else None


def layer_of(traced: TracedModel, node: fx.Node) -> _ConvNd | nn.Linear | None:
    """Return the convolution or linear layer that a node calls, or None."""
    module = traced.module(node)
    return module if isinstance(module, _ConvNd | nn.Linear) else None


def mark_context(nodes: Iterable[fx.Node], known: set[fx.Node]) -> tuple[fx.Node, ...]:
    """Return the sizes that nodes read of values other than the `known` ones, and mark them.

    A sub-block computes the other sizes itself, from its own values. The batch size is never read
    from elsewhere.
    """
    context: dict[fx.Node, None] = {}
    for node in nodes:
        for size in (i for i in node.all_input_nodes if is_size(i) and not is_size(node)):
            outside = not set(measured(size)) <= known
            size.meta["context"] = outside
            if outside and not is_batch_size(size):
                context[size] = None
    return tuple(context)


def mark_vector(node: fx.Node) -> None:
    """Note that a value is known to have the shape (B, C), though nothing before it shows this."""
    node.meta["vector"] = True


def adds_dims(node: fx.Node) -> int:
    """Return how many dimensions of size one a node puts behind those of its input.

    A view, whose input may have any dimensions, puts them behind the first two of its output.
    """
    name = op_name(node)
    if name == "unsqueeze":
        dim = argument(node, 1, "dim")
        return int(type(dim) is int and (dim == -1 or dim >= 2))
    if name == "rearrange":
        before, arrow, after = str(argument(node, 1, "pattern")).partition("->")
        ones = after.split()[len(before.split()) :]
        behind = arrow and [*before.split(), *ones] == after.split() and set(ones) == {"1"}
        return len(ones) if behind else 0
    if name in VIEWS:
        shape = new_shape(node)
        by_image = len(shape) > 2 and (shape[0] == -1 or is_batch_size(shape[0]))
        return len(shape) - 2 if by_image and set(shape[2:]) == {1} else 0
    index = node.args[1] if name == "getitem" and len(node.args) == 2 else None
    if not isinstance(index, tuple):
        return 0
    kept = sum(part is not None for part in index)
    at_front = index[:kept] in ((slice(None), slice(None)), (Ellipsis,))
    return len(index) - kept if at_front else 0


def values_read(node: fx.Node) -> list[fx.Node]:
    """Return the values that an operation needs; a size counts as the value that it belongs to."""
    found: dict[fx.Node, None] = {}
    stack = list(node.all_input_nodes)
    while stack:
        source = stack.pop()
        if is_constant(source) or source.meta.get("context"):
            continue
        size = size_of(source)
        if size is not None:
            stack.append(size[0])
        elif is_size(source):
            stack += source.all_input_nodes
        else:
            found[source] = None
    return list(found)


ROW_WISE_CONVS = ("StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame")


_SAME_CONVS = ("Conv2dSame",)


ADDITIONS = spellings("add")


SUBTRACTIONS = spellings("sub")


MULTIPLICATIONS = spellings("mul")


DIVISIONS = spellings("div")


CONCATENATIONS = spellings("cat")


VIEWS = spellings("view")


SWAPS = spellings("transpose")


def op_name(node: fx.Node) -> str:
    """Return the name of a PyTorch function or method that a node calls; "" for any other."""
    if node.op == "call_method":
        return str(node.target)
    if node.op != "call_function":
        return ""
    if own := vouched(node.target):
        return own
    module = getattr(node.target, "__module__", None) or "torch"
    home = module.partition(".")[0]
    known = node.target is getattr or home in FUNCTION_HOMES
    # A custom operator may have any name.
    custom = module.startswith("torch._ops.") and module != "torch._ops.aten"
    return getattr(node.target, "__name__", "") if known and not custom else ""


def class_name(module: nn.Module | None) -> str:
    """Return the name of a library's own module class; "" for a user's, whatever its name.

    A user's layer that amounts to a library's has that one's name.
    """
    if vouch := vouched(type(module)):
        return vouch
    own = None if module is None else own_layer(module)
    kind: type = type(module) if own is None else own.base
    return kind.__name__ if is_library_layer(kind) else ""


def carries(traced: TracedModel, node: fx.Node) -> Carries:
    """Return where the channels of an operation's output come from, by its name."""
    module = traced.module(node)
    return known(op_name(node) if module is None else class_name(module)).carries


def is_reduction(node: fx.Node) -> bool:
    """Return whether the node calls mean, sum, norm, … as a function or method."""
    return known(op_name(node)).carries is Carries.REDUCED


def is_plain_conv(module: nn.Module | None) -> bool:
    """Return whether a module is a convolution whose weight may be cut by rows and columns."""
    # A subclass may do anything to its weights first.
    own = None if module is None else own_layer(module)
    if own is not None:
        return isinstance(module, _ConvNd) and own.plain
    return isinstance(module, _ConvNd) and (
        type(module).__module__ == nn.Conv2d.__module__ or class_name(module) in _SAME_CONVS
    )


def is_row_wise_conv(module: nn.Module | None) -> bool:
    """Return whether a module is a convolution that standardises each of its filters."""
    own = own_layer(module) if isinstance(module, _ConvNd) else None
    if own is not None:
        return not own.plain
    return class_name(module) in ROW_WISE_CONVS


def tensor_inputs(node: fx.Node) -> list[fx.Node]:
    """Return the node's inputs that are computed, not read from the module."""
    return [n for n in node.all_input_nodes if n.op != "get_attr"]


def computed_inputs(node: fx.Node) -> list[fx.Node]:
    """Return the node's inputs that come from the images: no constants, no sizes."""
    return [n for n in tensor_inputs(node) if not is_constant(n) and not is_size(n)]


def is_addition(node: fx.Node) -> bool:
    """Return whether the node adds two values: ``+``, ``+=``, torch.add, ``.add``, ``.add_``."""
    return op_name(node) in ADDITIONS


def is_subtraction(node: fx.Node) -> bool:
    """Return whether the node subtracts one value from another."""
    return op_name(node) in SUBTRACTIONS


_BATCH_NORM_ARGUMENTS = (
    *("input", "running_mean", "running_var", "weight", "bias"),
    *("training", "momentum", "eps"),
)


def batch_norm_arguments(node: fx.Node) -> dict[str, Any] | None:
    """Return a functional batch norm's arguments by name.

    None unless it is what `nn.BatchNorm2d` does: all four tensors read from the module, and batch
    statistics in training only.
    """
    if node.target is not F.batch_norm:
        return None
    arguments: dict[str, Any] = {"training": False, "momentum": 0.1, "eps": 1e-5}
    arguments |= dict(zip(_BATCH_NORM_ARGUMENTS, node.args, strict=False)) | dict(node.kwargs)
    tensors = [arguments.get(name) for name in _BATCH_NORM_ARGUMENTS[1:5]]
    read = all(isinstance(t, fx.Node) and t.op == "get_attr" for t in tensors)
    return arguments if read and arguments["training"] is TRAINING else None


def group_norm_arguments(node: fx.Node) -> dict[str, Any] | None:
    """Return a functional group norm's arguments by name.

    None unless it is what `nn.GroupNorm` does: a number of groups that is written down, and
    weight and bias read from the module, or neither.
    """
    if node.target is not F.group_norm:
        return None
    arguments: dict[str, Any] = {"weight": None, "bias": None, "eps": 1e-5}
    names = ("input", "num_groups", "weight", "bias", "eps")
    arguments |= dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    tensors = (arguments["weight"], arguments["bias"])
    read = all(isinstance(t, fx.Node) and t.op == "get_attr" for t in tensors)
    fixed = {name: plain(arguments[name]) for name in ("num_groups", "eps")}
    known_now = type(fixed["num_groups"]) is int and type(fixed["eps"]) is float
    return arguments | fixed if known_now and (read or tensors == (None, None)) else None


def group_count(traced: TracedModel, node: fx.Node) -> int | None:
    """Return the number of groups of a group norm; None for anything else."""
    module = traced.module(node)
    if isinstance(module, nn.GroupNorm):
        return module.num_groups
    arguments = group_norm_arguments(node)
    return None if arguments is None else int(arguments["num_groups"])
