"""The removal of layers and tensors that nothing reads any more."""

from __future__ import annotations

from torch import Tensor, nn


def all_names(module: nn.Module, targets: set[str], remaining: set[str]) -> list[str]:
    """Return names of tensors and modules with the other names that the modules have.

    A module that is read under another name, as one activation of many layers may be, keeps that.
    """
    named = dict(module.named_modules(remove_duplicate=False))
    gone, kept = ({id(named[t]) for t in names if t in named} for names in (targets, remaining))
    gone -= kept
    return sorted(targets | {name for name, m in named.items() if id(m) in gone})


def remove(module: nn.Module, target: str) -> None:
    """Delete modules and tensors that nothing reads any more, and containers left empty."""
    *parents, name = target.split(".")
    path = [module]
    for parent in parents:
        child = path[-1]._modules.get(parent)
        if child is None:  # gone already, with all that it held
            return
        path.append(child)
    for table in (path[-1]._modules, path[-1]._parameters, path[-1]._buffers):
        table.pop(name, None)
    if isinstance(vars(path[-1]).get(name), Tensor):
        del vars(path[-1])[name]
    for holder, held, name in reversed(list(zip(path, path[1:], parents, strict=False))):
        if not (held._modules or held._parameters or held._buffers):
            del holder._modules[name]


def remove_unread(module: nn.Module, path: str, remaining: set[str]) -> None:
    """Delete a layer whose tensors a functional operation read, once none is read any more."""
    read = any(target == path or target.startswith(f"{path}.") for target in remaining)
    names = {name for name, _ in module.named_modules()}
    if path in names and not read and not module.get_submodule(path)._modules:
        remove(module, path)
