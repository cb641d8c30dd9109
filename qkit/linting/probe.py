"""Trace a model beside its real values, so that a line that stops the trace is noted and the trace goes on behind it.

An ordinary trace ends at the first line that it cannot follow. Here every traced value carries the number that the model
computes on the example batch. Where Python asks for a truth value, a length or an integer, the line is noted, and the
model's own answer is given. Anything else that fails is tried again with the answer given at that very line, and where
that does not help, with the module left out. So one call finds all lines that are in the way, each shown by experiment.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from qkit.graph.buffers import unchanged
from qkit.graph.door.explaining import UserCode
from qkit.graph.fronts.tracing import PathTracer
from qkit.graph.structures import fresh, map_tensors
from qkit.linting.probe_notes import MISSING, Break, BreakKind, Site, Traced

#: Traces that are tried: each but the first is for one more line, or one more module left out.
MOST_ROUNDS = 40


def probe(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], leaves: Iterable[str] = ()) -> Traced:
    """Trace `model` (which may be changed: give a copy) and note every line that tracing cannot follow.

    Traced are the batch's tensors; what the batch leaves out has its default, and numbers are what they are.

    Parameters
    ----------
    model
        In evaluation mode; ``model(*args, **kwargs)`` runs.
    args, kwargs
        The example batch.
    leaves
        Paths of modules that are kept out of the trace.
    """
    code = UserCode(model)
    answered: set[Site] = set()
    left = set(leaves)
    found: dict[tuple[BreakKind, Site | None, str], Break] = {}
    seen = Traced()
    for _ in range(MOST_ROUNDS):
        tracer = Probe(left, fresh((args, dict(kwargs))), code, answered)
        torch.manual_seed(0)
        with torch.no_grad(), unchanged(model):
            try:
                graph: fx.Graph | None = tracer.trace(model)
                failure = None
            except Exception as error:
                graph, failure = None, tracer.failure(error)
        seen = tracer.seen
        for item in seen.breaks:
            found.setdefault((item.kind, item.site, "" if item.site else item.layer), item)
        seen.graph = graph
        if failure is None:
            break
        if failure.site is not None and failure.site not in answered:
            answered.add(failure.site)
            found.setdefault((failure.kind, failure.site, ""), failure)
            continue
        key = next(
            (k for k in found if k[1] == failure.site and failure.site is not None), (failure.kind, failure.site, failure.layer)
        )
        known = found.get(key, failure)
        found[key] = replace(known, skipped=True)
        if not failure.layer or failure.layer in left:
            break
        left.add(failure.layer)
    seen.breaks = list({item.site or item.layer: item for item in reversed(found.values())}.values())[::-1]
    seen.leaves = left - set(leaves)
    return seen


class LiveProxy(fx.Proxy):
    """A traced value that knows the number it has on the example batch, and gives it where the tracer allows."""

    tracer: Probe

    def __getattr__(self, k: str) -> LiveAttribute:
        if k.startswith("__array") and self.tracer.is_answered():
            raise AttributeError(k)  # numpy shall take __array__ below
        return LiveAttribute(self, k)

    @property
    def live(self) -> Any:
        """The value on the example batch, or `MISSING`."""
        return self.__dict__.get("_live", MISSING)

    def __len__(self) -> int:
        return self.tracer.answer(self, "len", len, "len() of a traced value")  # type: ignore[no-any-return]

    def __int__(self) -> int:
        return self.tracer.answer(self, "int", int, "int() of a traced value")  # type: ignore[no-any-return]

    def __float__(self) -> float:
        return self.tracer.answer(self, "float", float, "float() of a traced value")  # type: ignore[no-any-return]

    def __index__(self) -> int:
        return self.tracer.answer(self, "index", int, "a traced value is no integer")  # type: ignore[no-any-return]

    def __round__(self, digits: int | None = None) -> Any:
        return self.tracer.answer(self, "round", lambda x: round(x, digits), "round() of a traced value")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.tracer.answer(self, "array", lambda x: x.__array__(), "numpy was given a traced value")

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.answer(self, "write", lambda x: x, "a traced value does not support item assignment")
        self.tracer.write(self, key, value)

    def __format__(self, spec: str) -> str:
        if not spec:
            return str(self)
        return self.tracer.answer(self, "format", lambda x: format(x, spec), "a traced value has no number to format")  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        self.tracer.note_text()
        return super().__repr__()


class LiveAttribute(fx.proxy.Attribute, LiveProxy):
    """An attribute of a traced value; ``x.shape`` becomes a node when it is used, ``x.size()`` a method call."""

    def __init__(self, root: LiveProxy, attr: str) -> None:
        super().__init__(root, attr)

    @property
    def live(self) -> Any:
        value: Any = getattr(self.root, "live", MISSING)
        return MISSING if value is MISSING else getattr(value, self.attr, MISSING)


class Probe(PathTracer):
    """The tracer of `probe`: qkit's, with values alongside."""

    def __init__(
        self, leaves: Iterable[str], batch: tuple[tuple[Any, ...], dict[str, Any]], code: UserCode, answered: set[Site]
    ) -> None:
        super().__init__(leaves)
        self.seen = Traced()
        self._batch = batch
        self._tensors: list[Tensor] = []
        self._code = code
        self._answered = answered
        self._running = False
        self._refused: BreakKind = "raise"
        self._refused_data = True
        self._failed_in: str | None = None

    def proxy(self, node: fx.Node) -> LiveProxy:
        """A proxy that can hold its value."""
        return LiveProxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *rest: Any, **more: Any) -> Any:
        """Make the node, and compute its value from the arguments' values."""
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        value = self._value(kind, target, args, kwargs)
        proxy.__dict__["_live"] = value
        proxy.node.meta["value"] = _outline(value)
        return proxy

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Make the node and note the user's line."""
        node = super().create_node(*args, **kwargs)
        site = self._here()[0]
        node.meta["site"] = site
        if site is not None:
            self.seen.reached.add(site)
        return node

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Trace into the module, and note what it was given; a value being computed runs it as it is."""
        if self._running:
            return forward(*args, **kwargs)
        self.seen.calls[self.path_of_module(m)] += 1
        self._note_arguments(m, args, kwargs)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if self._failed_in is None:
                self._failed_in = self.path_of_module(m)
            raise

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Parameters are traced values, but for a value being computed."""
        return attr_val if self._running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_args_for_root(self, root_fn: Callable[..., Any], *_: Any, **__: Any) -> tuple[Any, list[Any]]:
        """A call on the example batch, its tensors traced; notes what the model is given and what it returns."""
        args, kwargs = map_tensors(self._batch, self._placeholder)
        self.seen.received[type(self.root)] = set(_bound(root_fn, (self.root, *args), kwargs))

        @functools.wraps(root_fn)
        def noting() -> Any:
            return root_fn(self.root, *args, **kwargs)

        return noting, []

    def _placeholder(self, tensor: Tensor) -> Any:
        self._tensors.append(tensor)
        return self.create_proxy("placeholder", f"input_{len(self._tensors)}", (), {})

    def to_bool(self, obj: fx.Proxy) -> bool:
        """The truth value on the example batch; the line is noted."""
        return bool(self.answer(obj, "bool", bool, "a traced value decides control flow", at_once=True))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """The parts that there are on the example batch; the line is noted."""
        count = self.answer(obj, "iter", lambda x: len(list(x)), "a traced value is iterated or unpacked", at_once=True)
        return iter([obj[i] for i in range(count)])  # type: ignore[index]

    def answer(self, obj: Any, kind: BreakKind, of: Callable[[Any], Any], error: str, *, at_once: bool = False) -> Any:
        """``of(value)`` of a traced value and a note of the line, if that line is to be answered; else what a trace raises."""
        value = obj.live
        if value is MISSING or not (at_once or self.is_answered()):
            self._refused, self._refused_data = kind, _is_data(value)
            raise TypeError(error)
        site, function = self._here()
        self._note(Break(kind, site, self._path(), error, function, of_data=_is_data(value)))
        return of(value)

    def is_answered(self) -> bool:
        """Whether the user's present line has been shown to stop the trace, and is answered now."""
        return self._here()[0] in self._answered

    def write(self, obj: Any, key: Any, value: Any) -> None:
        """``obj[key] = value`` as a node."""
        self.create_proxy("call_method", "__setitem__", (obj, key, value), {})

    def note_text(self) -> None:
        """Text was made of a traced value."""
        site = self._here()[0]
        if site is not None:
            self.seen.shown.add(site)

    def failure(self, error: Exception) -> Break:
        """The break that an exception stands for."""
        frames = []
        frame = error.__traceback__
        while frame is not None:
            frames.append((frame.tb_frame, frame.tb_lineno))
            frame = frame.tb_next
        blamed = self._code.deepest([f.f_code.co_filename for f, _ in frames])
        site = function = None
        if blamed is not None:
            site = (frames[blamed][0].f_code.co_filename, frames[blamed][1])
            function = self._function(frames[blamed][0], frames[blamed - 1][0] if blamed else None)
        said = f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}"
        return Break(self._refused, site, self._failed_in or "", said, function, of_data=self._refused_data)

    def _path(self) -> str:
        return self._stack[-1] if self._stack else ""

    def _note(self, item: Break) -> None:
        self.seen.breaks.append(item)
        if item.site is not None:
            self.seen.repeats[item.site] += 1

    def _here(self) -> tuple[Site | None, tuple[str, str] | None]:
        frame, found = inspect.currentframe(), None
        while frame is not None:
            if frame.f_code is _TRACE:
                return (
                    (None, None)
                    if found is None
                    else ((found.f_code.co_filename, found.f_lineno), self._function(found, found.f_back))
                )
            if found is None and self._code.owns(frame.f_code.co_filename):
                found = frame
            frame = frame.f_back
        return None, None  # not while tracing: what is outside of it is the caller's, not the model's

    @staticmethod
    def _function(frame: Any, caller: Any) -> tuple[str, str] | None:
        """Name of a module-level function, and the file whose module has to wrap it: where its callers look the name up."""
        name = frame.f_code.co_name
        own = frame.f_globals.get(name)
        if getattr(inspect.unwrap(own) if callable(own) else None, "__code__", None) is not frame.f_code:
            return None
        borrowed = caller is not None and name in caller.f_code.co_names and caller.f_globals.get(name) is own
        return name, (caller if borrowed else frame).f_code.co_filename

    def _note_arguments(self, m: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.seen.received.setdefault(type(m), set()).update(_bound(type(m).forward, (m, *args), kwargs))

    def _value(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kind == "placeholder":
            return self._tensors[-1]
        self._running = True
        try:
            args, kwargs = _concrete(args), _concrete(kwargs)
            if _has_missing((args, kwargs)):
                return MISSING
            if kind == "get_attr":
                return functools.reduce(getattr, str(target).split("."), self.root)
            if kind == "call_module":
                return self.root.get_submodule(str(target))(*args, **kwargs)
            if kind == "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
            return target(*args, **kwargs)
        except Exception as error:
            site, function = self._here()
            said = f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}"
            self._note(Break("run", site, self._path(), said, function))
            return MISSING
        finally:
            self._running = False


_TRACE = fx.Tracer.trace.__code__


def _bound(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
    """Names of the arguments that are traced values."""
    try:
        bound = inspect.signature(forward).bind_partial(*args, **kwargs)
    except (TypeError, ValueError):
        return []
    return [name for name, value in bound.arguments.items() if isinstance(value, fx.Proxy)]


def _concrete(value: Any) -> Any:
    return map_aggregate(value, lambda x: x.live if isinstance(x, LiveProxy) else x)


def _has_missing(value: Any) -> bool:
    found: list[Any] = []

    def note(x: Any) -> Any:
        if x is MISSING:
            found.append(x)
        return x

    map_aggregate(value, note)
    return bool(found)


def _is_data(value: Any) -> bool:
    return not isinstance(value, (bool, int, float, torch.Size))


def _outline(value: Any) -> Any:
    """A value with tensors replaced by meta tensors, so that nodes hold no memory."""
    if isinstance(value, Tensor):
        return torch.empty_like(value, device="meta")
    if isinstance(value, (tuple, list)):
        return tuple(_outline(v) for v in value)
    return value
