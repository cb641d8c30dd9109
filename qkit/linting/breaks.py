"""What stops a trace, as findings: the rule by the statement at fault, and the cure by its name."""

from __future__ import annotations

import ast
import inspect
import sys
from dataclasses import dataclass

from torch import nn

from qkit.errors import GraphError
from qkit.graph.door.user_source import statement_at, text_at
from qkit.linting.finding import Finding
from qkit.linting.probe_notes import Break, Site, Traced

#: What Python may ask a tensor for that torch.export cannot answer: its numbers.
_NUMBERS = frozenset({"bool", "int", "float", "index", "round", "array", "format"})


def tracing_findings(seen: Traced, model: nn.Module, refused: GraphError | None) -> list[Finding]:
    """A finding per line that stops a trace, and per line that prints a traced value.

    Errors are lines that keep `qkit.Study` from taking the model: those that ask for a tensor's numbers, and the one that the
    study names. What only torch.fx cannot follow (a decision on a shape, a write to elements) is a note.

    Parameters
    ----------
    seen
        Of the probe.
    model
        Names what the paths are.
    refused
        Why a study does not take the model; None where it does.
    """
    found = [_finding(item, seen, model, stops=refused is not None and _stops(item, refused)) for item in seen.breaks]
    broken = {(f.file, f.line) for f in found}
    printed = [f for site in sorted(seen.shown) if (f := _printed(site)) is not None]
    return found + [f for f in printed if (f.file, f.line) not in broken]


def _stops(item: Break, refused: GraphError) -> bool:
    return item.site == (refused.file, refused.line) or (item.of_data and item.kind in _NUMBERS)


@dataclass(frozen=True)
class _Blame:
    rule: str
    what: str
    cure: str


def _finding(item: Break, seen: Traced, model: nn.Module, *, stops: bool) -> Finding:
    statement = statement_at(*item.site) if item.site else None
    blame = _blame(item, statement)
    site = item.site
    if (
        site is not None
        and statement is not None
        and isinstance(statement, (ast.Assert, ast.If, ast.While))
        and item.kind == "bool"
    ):
        site = (site[0], statement.lineno)
    quoted = f" `{text_at(*site)}`:" if site and text_at(*site) else ""
    owner = _class_of(model, item.layer)
    where = f" in {item.function[0]}()" if item.function else f" in {owner}" if owner else ""
    times = seen.repeats[item.site] if item.site else 0
    often = f" ({times} times in this batch's pass)" if times > 1 else ""
    behind = " torch.fx could not look at anything behind this line of the module." if item.skipped else ""
    said = f"{quoted} {blame.what}{where}{often}.{behind}".strip()
    file, line = site if site else (None, None)
    if stops:
        return Finding(blame.rule, "error", said, blame.cure, item.layer, file, line)
    said += " torch.fx cannot follow this; torch.export can, and qkit goes by that."
    return Finding(blame.rule, "note", said, f"For tools that need torch.fx: {_lower(blame.cure)}", item.layer, file, line)


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


def _blame(item: Break, statement: ast.stmt | None) -> _Blame:
    wrap, leaf = _wrap(item), _leaf(item)
    what = "a tensor's data" if item.of_data else "a traced shape"
    if isinstance(statement, ast.Assert):
        return _Blame(
            "assert",
            f"an assert on {what}",
            f"Take the assert out of the traced code: remove it, or {wrap}{leaf}.",
        )
    if item.kind == "bool":
        instead = (
            "Compute both and choose with torch.where, or decide in __init__"
            if item.of_data
            else "Decide in __init__ from a fixed size, or leave the check out"
        )
        return _Blame("data-dependent-control-flow", f"{_construct(statement)} depends on {what}", f"{instead}; or {wrap}{leaf}.")
    if item.kind == "iter":
        instead = "Index the parts by fixed numbers, x[:, 0], or use unbind and unpack it into as many names as there are"
        return _Blame(
            "data-dependent-control-flow",
            f"{what} is iterated or unpacked into an unknown number of parts",
            f"{instead}; or {wrap}{leaf}.",
        )
    if item.kind in {"index", "int"} and isinstance(statement, ast.For) and _calls(statement.iter, "range"):
        return _Blame(
            "data-dependent-control-flow",
            f"a loop runs over the range of {what}",
            f"Replace the number by a fixed one, set in __init__, or the loop by one tensor operation; or {wrap}{leaf}.",
        )
    if item.kind == "write":
        return _Blame(
            "item-assignment",
            "elements of a traced tensor are assigned",
            f"Build the result instead: torch.where with a mask, torch.cat of the parts, or masked_fill; or {wrap}{leaf}.",
        )
    if item.kind == "run":
        return _Blame(
            "untraceable-call",
            f"this can be traced, but what was traced does not run ({item.error})",
            f"{wrap[0].upper()}{wrap[1:]}{leaf}.",
        )
    if _calls(statement, "cond") or _calls(statement, "while_loop"):
        instead = "Compute both sides and choose with torch.where, or decide outside of the network"
        return _Blame(
            "data-dependent-control-flow",
            "control flow inside the network (torch.cond, while_loop), which has no integer form",
            f"{instead}; or {wrap}{leaf}.",
        )
    return _Blame("untraceable-call", *_call(item, statement, what, wrap, leaf))


def _call(item: Break, statement: ast.stmt | None, what: str, wrap: str, leaf: str) -> tuple[str, str]:
    if item.kind == "len":
        line = f'add `torch.fx.wrap("len")` at module level of {item.site[0]}' if item.site else "torch.fx.wrap('len')"
        return "len() needs a number, and this one is traced", f"Use x.shape[0], or {line}{leaf}."
    if item.kind in {"int", "float", "round"}:
        instead = f"Leave {item.kind}() out, shapes are traced as they are" if not item.of_data else "Stay in tensors"
        return f"{item.kind}() needs a number, and is given {what}", f"{instead}; or {wrap}{leaf}."
    if item.kind == "index":
        return f"an integer is needed, and {what} is given", f"Replace it by a fixed number, set in __init__; or {wrap}{leaf}."
    if item.kind == "array":
        return "numpy is given a traced tensor", f"Use the torch function of the same purpose; or {wrap}{leaf}."
    if item.kind == "format":
        return "a traced value is formatted as a number", f"Remove the message; or {wrap}{leaf}."
    if isinstance(statement, ast.Raise):
        return (
            f"this is raised while tracing and not when the model runs ({item.error})",
            f"A decision above falls otherwise for a traced value: take the check out; or {wrap}{leaf}.",
        )
    called = _called(statement)
    error = item.error.replace("LiveProxy", "Proxy").replace("LiveAttribute", "Proxy")
    if "numpy" in error or "__array" in error:
        return f"numpy is given a traced tensor ({error})", f"Use the torch function of the same purpose; or {wrap}{leaf}."
    name = f"{called}() takes concrete values only" if called else "a call takes concrete values only"
    if item.site and not item.function and _is_global_function(item.site[0], called):
        return f"{name} ({error})", f'Add `torch.fx.wrap("{called}")` at module level of {item.site[0]}{leaf}.'
    return f"{name} ({error})", f"{wrap[0].upper()}{wrap[1:]}{leaf}."


def _wrap(item: Break) -> str:
    if item.function is not None:
        name, file = item.function
        return f'add `torch.fx.wrap("{name}")` at module level of {file}'
    return "move the lines into a module-level function and decorate it with @torch.fx.wrap"


def _leaf(item: Break) -> str:
    return (
        f', or keep the module out of the trace with leaf_modules=["{item.layer}"] of qkit.Study (it stays float)'
        if item.layer
        else ""
    )


def _class_of(model: nn.Module, path: str) -> str:
    try:
        return type(model.get_submodule(path)).__name__
    except AttributeError:
        return ""


def _construct(statement: ast.stmt | None) -> str:
    if isinstance(statement, ast.While):
        return "a while loop"
    if isinstance(statement, ast.If):
        return "a branch"
    for node in ast.walk(statement) if statement is not None else ():
        if isinstance(node, ast.IfExp):
            return "a conditional expression"
        if isinstance(node, ast.comprehension) and node.ifs:
            return "a comprehension's condition"
        if isinstance(node, ast.BoolOp) or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)):
            return "and, or, not"
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in {"bool", "any", "all", "min", "max", "sorted"}
        ):
            return f"{node.func.id}()"
    return "a decision"


def _calls(statement: ast.AST | None, name: str) -> bool:
    """Whether a function or method of that name is called."""
    calls = [node.func for node in ast.walk(statement) if isinstance(node, ast.Call)] if statement is not None else []
    return any((func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")) == name for func in calls)


def _called(statement: ast.stmt | None) -> str:
    """The only function that a statement calls, as it is written; "" if there are several."""
    calls = [node.func for node in ast.walk(statement) if isinstance(node, ast.Call)] if statement is not None else []
    return ast.unparse(calls[0]) if len(calls) == 1 else ""


def _is_global_function(file: str, name: str) -> bool:
    """Whether the name is that of a function in the module of that file, as torch.fx.wrap needs it."""
    owners = [module for module in list(sys.modules.values()) if getattr(module, "__file__", None) == file]
    return any(inspect.isroutine(getattr(module, name, None)) for module in owners if name.isidentifier())


def _printed(site: Site) -> Finding | None:
    statement = statement_at(*site)
    call = statement.value if isinstance(statement, ast.Expr) else None
    name = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
    if name != "print" and name.rpartition(".")[2] not in {"debug", "info", "warning", "warn", "error", "write"}:
        return None
    return Finding(
        "side-effect",
        "note",
        f"`{text_at(*site)}`: {name}() runs once, while tracing, shows no numbers then, and is not in the graph.",
        "Remove it, or look at the values with study.capture().",
        "",
        site[0],
        site[1],
    )
