"""Models that cannot be converted as they stand, refused before anything is touched."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..errors import AlreadyConvertedError, ArgumentError, ConversionError
from ..nn import MultiPathBlock
from ..optional import loaded
from .reparametrized import check_attached


def check_convertible(model: object, call: str) -> None:
    """Check that `model` is an eager, materialised, floating-point, unconverted module.

    Raises:
        ArgumentError: if it is not an `nn.Module`.
        AlreadyConvertedError: if it holds multi-path blocks.
        ConversionError: for every other obstacle, with the remedy.
    """
    if not isinstance(model, nn.Module):
        hint = " Give an instance: Net()." if isinstance(model, type) else ""
        raise ArgumentError(f"{call}: got a {type(model).__name__}, expected an nn.Module.{hint}")
    if isinstance(model, DataParallel | DistributedDataParallel):
        raise ConversionError(
            f"{call}: the model is wrapped in {type(model).__name__}. Convert first, wrap after: "
            f"{call}(model.module)."
        )
    _check_modules(model, call)
    _check_tensors(model, call)


def _check_modules(model: nn.Module, call: str) -> None:
    for name, module in model.named_modules():
        where = f"{call}: {name or 'the model'}"
        compiled = getattr(module, "_compiled_call_impl", None) is not None
        if compiled or isinstance(module, loaded("torch._dynamo.OptimizedModule")):
            raise ConversionError(
                f"{where} is compiled. Convert first, compile after: "
                f"torch.compile({call}(original_model).model)."
            )
        if isinstance(module, loaded("torchvision.models.feature_extraction.DualGraphModule")):
            raise ConversionError(
                f"{where} is a torchvision feature extractor, which holds two graphs. Convert "
                "first, extract after: create_feature_extractor(model, ..., tracer_kwargs="
                "{'leaf_modules': [dmnn_convert.MultiPathBlock]})."
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise ConversionError(
                f"{where} is a TorchScript module (scripted, traced or frozen), which cannot be "
                "rewritten. Convert the eager model it was made from."
            )
        if isinstance(module, MultiPathBlock):
            raise AlreadyConvertedError(
                f"{where} is a MultiPathBlock: the model is already converted. Start from the "
                "source model to convert it differently."
            )
        if isinstance(module, loaded("torch.ao.nn.quantized.FloatFunctional")):
            continue  # a float model that is only prepared for quantisation
        if ".quantized" in type(module).__module__ or type(module).__module__.startswith("torchao"):
            raise ConversionError(
                f"{where} is quantised ({type(module).__name__}). Convert the float model, then "
                "quantise."
            )
        if isinstance(module, LazyModuleMixin) and hasattr(module, "_initialize_hook"):
            # Given weights by load_state_dict, it still does not know its own channels.
            raise ConversionError(
                f"{where} is lazy and not initialised yet. Run one forward pass first: "
                "model(images)."
            )


def _check_tensors(model: nn.Module, call: str) -> None:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            raise ConversionError(
                f"{call}: {name} is on the meta device and holds no values. Materialise the model "
                "(model.to_empty(device=...) and load its weights) first."
            )
    for name, parameter in model.named_parameters():
        if parameter.is_complex():
            raise ConversionError(
                f"{call}: {name} is complex ({parameter.dtype}), but gates and norms are real. "
                "Convert a network of real parameters."
            )
        if not parameter.is_floating_point():
            raise ConversionError(
                f"{call}: {name} is {parameter.dtype}; only floating-point parameters can be "
                "split. Keep integers as a buffer: module.register_buffer(name, tensor)."
            )
    check_attached(model, call)
