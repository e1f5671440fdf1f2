"""Functions replaced for one thread only, while it traces.

torch.fx replaces `nn.Module.__call__` and `__getattr__` for the whole process. Here only the
tracing thread sees the replacements; every other thread runs the originals. One trace waits for
another, so the originals are always restored.
"""

from __future__ import annotations

import builtins
import functools
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from torch import fx, nn

ONE_TRACE = threading.RLock()
"""Held while a trace is taken."""


class Exchange:
    """Replacements of some functions, which only the thread that enters this sees.

    Args:
        functions: (holder, name) -> the replacement for that thread.
    """

    def __init__(self, functions: dict[tuple[Any, str], Callable[..., Any]]) -> None:
        self.functions = functions
        self.names = {id(getattr(*place)): place for place in functions}
        self.thread = threading.get_ident()
        self.undo: list[Callable[[], None]] = []
        self.searched: set[int] = set()

    def __enter__(self) -> Exchange:
        ONE_TRACE.acquire()
        try:
            for (holder, name), function in self.functions.items():
                self._put(holder, name, function)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for undo in reversed(self.undo):
            undo()
        self.undo.clear()
        ONE_TRACE.release()

    def _put(self, holder: Any, name: str, function: Callable[..., Any]) -> None:
        original, thread = getattr(holder, name), self.thread

        def here(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == thread:
                return function(*args, **kwargs)
            return original(*args, **kwargs)

        # functools.wraps would take longer, and nothing reads the rest.
        here.__name__, here.__module__ = name, getattr(original, "__module__", None) or "builtins"
        vars(here).update(__wrapped__=original, __fx_already_patched=True)  # for torch.fx to leave
        own = name in vars(holder)  # else it is inherited
        undo = functools.partial(setattr, holder, name, original)
        self.undo.append(undo if own else functools.partial(delattr, holder, name))
        setattr(holder, name, here)

    def search(self, forward: Callable[..., Any]) -> None:
        """Replace functions that a forward's own module has imported by name."""
        scope = getattr(forward, "__globals__", {})
        if id(scope) in self.searched or scope is vars(builtins):
            return
        self.searched.add(id(scope))
        for name, value in list(scope.items()):
            place = self.names.get(id(value))
            if place is not None and scope is not vars(place[0]):
                scope[name] = getattr(*place)
                self.undo.append(functools.partial(scope.__setitem__, name, value))


def module_methods(
    tracer: fx.Tracer, opened: Callable[[nn.Module], None], known: dict[str, Any]
) -> dict[tuple[Any, str], Callable[..., Any]]:
    """Return functions that pass calls of modules, and the attributes these read, to a tracer.

    Args:
        tracer: the tracer.
        opened: called with each module before its call is passed on.
        known: takes the values that stand for parameters.
    """
    call, attribute = nn.Module.__call__, nn.Module.__getattr__

    def called(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        opened(module)
        return tracer.call_module(module, functools.partial(call, module), args, kwargs)

    def got(module: nn.Module, name: str) -> Any:
        return tracer.getattr(name, attribute(module, name), known)

    return {(nn.Module, "__call__"): called, (nn.Module, "__getattr__"): got}
