"""Functions replaced for one thread only, while it traces.

torch.fx replaces `nn.Module.__call__` and `__getattr__` for the whole process. Here only the
tracing thread sees the replacements; every other thread runs the originals. One trace waits for
another, so the originals are always restored. A conversion takes several traces, and keeps these
two methods in place from one to the next.
"""

from __future__ import annotations

import builtins
import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
        kept = _KEPT.get(name)
        if kept is not None and getattr(holder, name) is kept.here:
            kept.pass_to(function, self.thread)
            self.undo.append(kept.rest)
            return
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


class _KeptMethod:
    """A method of `nn.Module` that runs the original, and a trace's function while there is one.

    Args:
        name: of the method.
    """

    def __init__(self, name: str) -> None:
        self.name, self.original = name, getattr(nn.Module, name)
        self.function, self.thread = self.original, 0

        def here(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == self.thread:
                return self.function(*args, **kwargs)
            return self.original(*args, **kwargs)

        here.__name__, here.__module__ = name, self.original.__module__
        vars(here).update(__wrapped__=self.original)
        self.here = here
        setattr(nn.Module, name, here)

    def pass_to(self, function: Callable[..., Any], thread: int) -> None:
        """Let a thread run a function instead."""
        self.function, self.thread = function, thread
        vars(self.here).update(__fx_already_patched=True)  # for torch.fx to leave

    def rest(self) -> None:
        """Let all threads run the original; torch.fx may replace it as ever."""
        self.function, self.thread = self.original, 0
        vars(self.here).pop("__fx_already_patched")

    def remove(self) -> None:
        """Restore the original, unless somebody has replaced the method since."""
        if getattr(nn.Module, self.name) is self.here:
            setattr(nn.Module, self.name, self.original)


_KEPT: dict[str, _KeptMethod] = {}
"""Methods of `nn.Module` that stay in place; changed only under `ONE_TRACE`."""


@contextmanager
def keeping_methods() -> Iterator[None]:
    """Keep what traces need of `nn.Module` in place from one trace in the body to the next.

    Python visits all subclasses, some thousands, when such a method is set or restored: 2 ms for
    each trace, as long as the trace of a small block takes.
    """
    with ONE_TRACE:
        if _KEPT:
            yield
            return
        try:
            for name in ("__call__", "__getattr__"):
                _KEPT[name] = _KeptMethod(name)
            yield
        finally:
            for kept in _KEPT.values():
                kept.remove()
            _KEPT.clear()


def _own_method(name: str) -> Callable[..., Any]:
    """Return what a method of `nn.Module` is without our own replacement."""
    method: Callable[..., Any] = getattr(nn.Module, name)
    kept = _KEPT.get(name)
    return kept.original if kept is not None and method is kept.here else method


def module_methods(
    tracer: fx.Tracer, opened: Callable[[nn.Module], None], known: dict[str, Any]
) -> dict[tuple[Any, str], Callable[..., Any]]:
    """Return functions that pass calls of modules, and the attributes these read, to a tracer.

    Args:
        tracer: the tracer.
        opened: called with each module before its call is passed on.
        known: takes the values that stand for parameters.
    """
    call, attribute = _own_method("__call__"), _own_method("__getattr__")

    def called(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        opened(module)
        return tracer.call_module(module, functools.partial(call, module), args, kwargs)

    def got(module: nn.Module, name: str) -> Any:
        return tracer.getattr(name, attribute(module, name), known)

    return {(nn.Module, "__call__"): called, (nn.Module, "__getattr__"): got}
