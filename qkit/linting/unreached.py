"""What the source says of lines that the example batch does not reach, and of decisions that a trace takes without a word.

The trace itself is the judge of every line that it runs. Here the source of each forward that was traced, and of the user's
functions that it calls, is read for what is left: a branch not taken, `isinstance`, a handler that swallows the tracer's error.
A value counts as traced only if it derives from an argument that was a traced value when the forward ran.
"""

from __future__ import annotations

import ast
import builtins
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from qkit.graph.door.explaining import UserCode
from qkit.graph.door.user_source import function_at
from qkit.linting.finding import Finding
from qkit.linting.probe_notes import Site, Traced

#: "traced": a proxy; "parts": a tuple, list or dict that may hold proxies, which Python may count and iterate.
Taint = Literal["traced", "parts", None]

_MUTED = frozenset({"Exception", "BaseException", "TypeError", "ValueError", "RuntimeError", "AttributeError"})
_NUMBERS = frozenset({"int", "float", "len", "round", "range", "complex"})
_ITERATES = frozenset(
    {"list", "tuple", "sorted", "sum", "min", "max", "any", "all", "zip", "enumerate", "reversed", "map", "set"}
)
_DECIDES = "torch.where, a decision in __init__, or a module-level function decorated with @torch.fx.wrap"


@dataclass(eq=False)
class _Reader:
    """Collects findings over all functions read."""

    seen: Traced
    code: UserCode
    known: set[tuple[str | None, int | None]]
    findings: dict[tuple[str, Site], Finding] = field(default_factory=dict)
    read: set[tuple[Any, frozenset[str]]] = field(default_factory=set)
    without_source: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        nodes = self.seen.graph.nodes if self.seen.graph is not None else ()
        # a function under torch.fx.wrap is a node: what is in it is none of the trace's business
        self.wrapped = {inspect.unwrap(node.target) for node in nodes if node.op == "call_function"}

    def function(self, function: Callable[..., Any], traced: Iterable[str], owner: type[nn.Module] | None, path: str) -> None:
        plain, names = inspect.unwrap(function), frozenset(traced)
        code = getattr(plain, "__code__", None)
        if code is None or plain in self.wrapped or (code, names) in self.read or not self.code.owns(code.co_filename):
            return
        self.read.add((code, names))
        parsed = function_at(plain)
        if parsed is None:
            self.without_source.append(plain.__qualname__)
            return
        tree, file = parsed
        _Walk(self, file, plain, owner, path, dict.fromkeys(names, "traced")).block(tree.body)


def suspicions(model: nn.Module, seen: Traced, known: set[tuple[str | None, int | None]], remarks: list[str]) -> list[Finding]:
    """Warnings from the source; `known` are the places that have a finding already, and `remarks` gets what has no source."""
    reader = _Reader(seen, UserCode(model), known)
    for path, module in model.named_modules():
        if type(module) in seen.received:
            reader.function(type(module).forward, seen.received[type(module)], type(module), path)
    if reader.without_source:
        listed = ", ".join(dict.fromkeys(reader.without_source))
        remarks.append(f"No source is available of {listed}: only what this batch runs was looked at.")
    return list(reader.findings.values())


class _Walk:
    """Reads one function's statements in order, with the names that hold traced values."""

    def __init__(
        self, reader: _Reader, file: str, function: Any, owner: type[nn.Module] | None, path: str, names: dict[str, Taint]
    ) -> None:
        self.reader, self.file, self.function, self.owner, self.path, self.names = reader, file, function, owner, path, names
        self.end = 0
        self.nested = False

    def block(self, body: list[ast.stmt], *, nested: bool = False) -> None:
        """Read the statements of one block; a finding needs that no line of it from the statement on made a node."""
        outer = self.end, self.nested
        self.end, self.nested = (body[-1].end_lineno or body[-1].lineno) if body else 0, nested
        for statement in body:
            self.statement(statement)
        self.end, self.nested = outer

    def statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Assert):
            self.decides(node.test, "assert", "an assert on a traced value", node)
        elif isinstance(node, (ast.If, ast.While)):
            what = "a while loop" if isinstance(node, ast.While) else "a branch"
            self.decides(node.test, "data-dependent-control-flow", f"{what} depends on a traced value", node)
            before = dict(self.names)
            self.block(node.body, nested=True)
            self.names, taken = before, self.names
            self.block(node.orelse, nested=True)
            self.names = {**taken, **{k: v for k, v in self.names.items() if v is not None or k not in taken}}
        elif isinstance(node, (ast.For, ast.AsyncFor)):
            if self.of(node.iter) == "traced":
                self.suspect("data-dependent-control-flow", "a loop runs over a traced value", node.iter, _DECIDES)
            self.assign(node.target, "traced" if self.of(node.iter) else None)
            self.block(node.body, nested=True)
            self.block(node.orelse, nested=True)
        elif isinstance(node, (ast.With, ast.AsyncWith)):
            for item in node.items:
                self.of(item.context_expr)
            self.block(node.body, nested=self.nested)
        elif isinstance(node, ast.Try):
            self.swallowed(node)
            for body in (node.body, *(handler.body for handler in node.handlers), node.orelse, node.finalbody):
                self.block(body, nested=True)
        elif isinstance(node, ast.Assign):
            taint = self.of(node.value)
            for target in node.targets:
                self.assign(target, taint, node.value)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            self.assign(node.target, self.of(node.value), node.value)
        elif isinstance(node, ast.AugAssign):
            self.assign(node.target, self.of(node.value) or self.of(node.target))
        elif isinstance(node, (ast.Expr, ast.Return)) and node.value is not None:
            self.of(node.value)

    def assign(self, target: ast.expr, taint: Taint, value: ast.expr | None = None) -> None:
        if isinstance(target, ast.Name):
            self.names[target.id] = taint
        elif isinstance(target, (ast.Tuple, ast.List)):
            same = isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(target.elts)
            for i, part in enumerate(target.elts):
                self.assign(part, self.of(value.elts[i]) if same else "traced" if taint else None)  # type: ignore[union-attr]
        elif isinstance(target, ast.Starred):
            self.assign(target.value, "parts" if taint else None)
        elif isinstance(target, ast.Subscript) and self.of(target.value) == "traced":
            self.suspect(
                "item-assignment", "elements of a traced tensor are assigned", target, "torch.where, torch.cat or masked_fill"
            )
        elif isinstance(target, ast.Attribute) and taint and isinstance(target.value, ast.Name) and target.value.id == "self":
            self.add(
                "side-effect",
                f"self.{target.attr} is set to a traced value: that happens once, while tracing, and not when the graph runs",
                target,
                "Return the value instead, or keep it with a forward hook.",
            )

    def decides(self, test: ast.expr, rule: str, what: str, place: ast.stmt | ast.expr) -> None:
        if self.of(test) == "traced":
            self.suspect(rule, what, place, _DECIDES)

    def of(self, node: ast.expr) -> Taint:
        """Whether an expression's value is traced; says what is suspicious within it."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        if isinstance(node, ast.Attribute):
            return "traced" if self.of(node.value) == "traced" else None
        if isinstance(node, ast.Subscript):
            self.of(node.slice)
            return "traced" if self.of(node.value) else None
        if isinstance(node, ast.Call):
            return self.call(node)
        if isinstance(node, ast.Compare):
            parts = [self.of(part) for part in (node.left, *node.comparators)]
            self.asks_type(node)
            by_identity = all(isinstance(op, (ast.Is, ast.IsNot, ast.In, ast.NotIn)) for op in node.ops)
            return "traced" if "traced" in parts and not by_identity else None
        if isinstance(node, ast.BoolOp):
            for part in node.values[:-1]:
                self.decides(part, "data-dependent-control-flow", "`and` or `or` depends on a traced value", part)
            return self.of(node.values[-1])
        if isinstance(node, ast.UnaryOp):
            if isinstance(node.op, ast.Not):
                self.decides(node.operand, "data-dependent-control-flow", "`not` depends on a traced value", node)
                return None
            return self.of(node.operand)
        if isinstance(node, ast.BinOp):
            return "traced" if "traced" in (self.of(node.left), self.of(node.right)) else None
        if isinstance(node, ast.IfExp):
            self.decides(node.test, "data-dependent-control-flow", "a conditional expression depends on a traced value", node)
            return self.of(node.body) or self.of(node.orelse)
        if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
            return self.parts(node.elts)
        if isinstance(node, ast.Dict):
            return self.parts(node.values)
        if isinstance(node, (ast.ListComp, ast.GeneratorExp, ast.SetComp)):
            for clause in node.generators:
                if self.of(clause.iter) == "traced":
                    self.suspect("data-dependent-control-flow", "a comprehension runs over a traced value", clause.iter, _DECIDES)
                self.assign(clause.target, "traced" if self.of(clause.iter) else None)
            return "parts" if self.of(node.elt) else None
        if isinstance(node, ast.Starred):
            return self.of(node.value)
        if isinstance(node, ast.NamedExpr):
            taint = self.of(node.value)
            self.assign(node.target, taint)
            return taint
        return None

    def parts(self, nodes: list[ast.expr]) -> Taint:
        """A container's taint; every part is read."""
        taints = [self.of(node) for node in nodes]
        return "parts" if any(taints) else None

    def call(self, node: ast.Call) -> Taint:
        given = [self.of(arg) for arg in node.args] + [self.of(keyword.value) for keyword in node.keywords]
        any_traced = "traced" in given
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name and getattr(builtins, name, None) is not None and name not in self.function.__globals__:
            return self.builtin(name, node, given)
        if isinstance(node.func, ast.Attribute):
            if self.of(node.func.value) == "traced":
                return "traced"
            root = ast.unparse(node.func.value)
            if any_traced and getattr(self.function.__globals__.get(root), "__name__", "") == "numpy":
                self.suspect(
                    "untraceable-call", f"{ast.unparse(node.func)}() is given a traced tensor", node, "the torch function"
                )
            method = getattr(self.owner, node.func.attr, None) if root == "self" and self.owner is not None else None
            if inspect.isfunction(method):
                self.follow(method, node, given, skip=1)
        elif name and inspect.isfunction(called := self.function.__globals__.get(name)):
            self.follow(called, node, given, skip=0)
        return "traced" if any(given) else None

    def asks_type(self, node: ast.Compare) -> None:
        """``type(x) is Tensor`` is as wrong about a proxy as isinstance."""
        asked = [
            n for n in (node.left, *node.comparators) if isinstance(n, ast.Call) and ast.unparse(n.func) == "type" and n.args
        ]
        if any(self.of(call.args[0]) == "traced" for call in asked):
            self.decides_frozen(node)

    def decides_frozen(self, node: ast.expr) -> None:
        self.add(
            "frozen-control-flow",
            f"`{ast.unparse(node)}` falls otherwise for a traced value, which is of another class, than when the model runs",
            node,
            "Decide in __init__, or test for the other types (isinstance(x, (tuple, list))).",
        )

    def builtin(self, name: str, node: ast.Call, given: list[Taint]) -> Taint:
        first = given[0] if given else None
        if name == "isinstance" and first == "traced" and len(node.args) == 2:
            if _names_tensor(node.args[1], self.function.__globals__):
                self.decides_frozen(node)
            return None
        if name == "type" and first == "traced":
            return None
        if name == "bool" and first == "traced":
            self.suspect("data-dependent-control-flow", "bool() of a traced value", node, _DECIDES)
            return None
        if name in _NUMBERS and "traced" in given:
            self.suspect("untraceable-call", f"{name}() of a traced value", node, "a fixed number, set in __init__")
            return None
        if name in _ITERATES and first == "traced" and not (name in {"min", "max"} and len(given) > 1):
            self.suspect("data-dependent-control-flow", f"{name}() runs over a traced value", node, _DECIDES)
        return "parts" if name in _ITERATES and any(given) else None

    def follow(self, function: Callable[..., Any], node: ast.Call, given: list[Taint], skip: int) -> None:
        """Read a called function of the user's, with the arguments that are traced here."""
        names = list(inspect.signature(function).parameters)[skip:]
        traced = [name for name, taint in zip(names, given, strict=False) if taint == "traced"]
        traced += [k.arg for k in node.keywords if k.arg and self.of(k.value) == "traced"]
        if traced and not any(isinstance(arg, ast.Starred) for arg in node.args):
            self.reader.function(function, traced, self.owner if skip else None, self.path)

    def swallowed(self, node: ast.Try) -> None:
        for handler in node.handlers:
            kinds = (
                handler.type.elts
                if isinstance(handler.type, ast.Tuple)
                else [handler.type]
                if handler.type is not None
                else [None]
            )
            if any(kind is None or ast.unparse(kind) in _MUTED for kind in kinds) and self.reached(
                node.lineno, node.end_lineno or 0
            ):
                self.add(
                    "frozen-control-flow",
                    "`try` around traced operations: an error that only tracing raises is handled here as if it were "
                    "the data's, and the trace goes the handler's way",
                    node,
                    "Take the traced operations out of the try.",
                )
                return

    def suspect(self, rule: str, what: str, node: ast.expr | ast.stmt, instead: str) -> None:
        """A warning, unless the trace went through these lines without trouble."""
        if not self.reached(node.lineno, max(self.end, node.end_lineno or 0)):
            self.add(
                rule,
                f"{what}, in lines that this batch does not reach",
                node,
                f"If they are ever reached while tracing: {instead}.",
            )

    def add(self, rule: str, what: str, node: ast.expr | ast.stmt, cure: str) -> None:
        site = self.file, node.lineno
        if site not in self.reader.known:
            text = f"{what} ({self.function.__qualname__})."
            self.reader.findings.setdefault((rule, site), Finding(rule, "warning", text, cure, self.path, *site))

    def reached(self, first: int, last: int) -> bool:
        return any(file == self.file and first <= line <= last for file, line in self.reader.seen.reached)


def _names_tensor(node: ast.expr, scope: dict[str, Any]) -> bool:
    parts = node.elts if isinstance(node, ast.Tuple) else [node]
    return any(
        (isinstance(part, ast.Attribute) and ast.unparse(part) == "torch.Tensor")
        or (isinstance(part, ast.Name) and scope.get(part.id) is torch.Tensor)
        for part in parts
    )
