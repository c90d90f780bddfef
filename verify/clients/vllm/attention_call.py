"""What vLLM 0.32 reads off the source of an attention module: the one call of the interface, its scale and its sinks.

vLLM itself decides this by the syntax tree of the module's own forward, and not by a run, so that here the source is the fact.
Source: `vllm/model_executor/models/transformers/fusers/attention.py` (`interface_call`, `_resolve`, `AttentionFuser`), 0.32.0.
"""

import ast
from dataclasses import dataclass

from torch import nn

from shardproof.verify.clients.contract.source import forward_tree

TABLE = "ALL_ATTENTION_FUNCTIONS"


@dataclass(frozen=True, slots=True)
class ReadCall:
    """What vLLM finds in one forward.

    `count` is the number of calls of a name that was assigned from the table; vLLM takes a module with exactly one.
    `scale` and `sinks` are the expressions after `scaling=` and `s_aux=`, None where the call does not have them.
    """

    count: int
    scale: ast.expr | None = None
    sinks: ast.expr | None = None


def read_call(module: nn.Module) -> ReadCall:
    """The call of the attention interface in the forward of a module's class."""
    tree = forward_tree(type(module))
    if tree is None:
        return ReadCall(0)
    names = {name for node in ast.walk(tree) for name in _looked_up(node)}
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names
    ]
    if len(calls) != 1:
        return ReadCall(len(calls))
    given = {keyword.arg: keyword.value for keyword in calls[0].keywords if keyword.arg is not None}
    return ReadCall(1, given.get("scaling"), given.get("s_aux"))


def called_directly(module: nn.Module) -> bool:
    """Whether the forward calls what it looks up without a name for it."""
    tree = forward_tree(type(module))
    nodes = ast.walk(tree) if tree is not None else ()
    return any(isinstance(node, ast.Call) and node.func is not None and _is_lookup(node.func) for node in nodes)


def _looked_up(node: ast.AST) -> list[str]:
    """Names that a plain assignment gives to an entry of the table."""
    match node:
        case ast.Assign(targets=targets, value=value) if _is_lookup(value):
            return [target.id for target in targets if isinstance(target, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value) if _is_lookup(value):
            return [name]
        case _:
            return []


def _is_lookup(value: ast.expr) -> bool:
    """`ALL_ATTENTION_FUNCTIONS[...]`, or a call of one of its methods."""
    inner = value.func if isinstance(value, ast.Call) else value
    return (
        isinstance(inner, ast.Attribute | ast.Subscript)
        and isinstance(inner.value, ast.Name)
        and inner.value.id == TABLE
    )


def is_readable(expression: ast.expr, module: nn.Module) -> bool:
    """Whether vLLM gets a number from the expression of a scale; it raises where it does not."""
    value = resolved(expression, module)
    return isinstance(value, int | float) and not isinstance(value, bool)


def resolved(expression: ast.expr, module: nn.Module) -> object:
    """A literal, or an attribute of the module; None for any other expression."""
    match expression:
        case ast.Constant(value=value):
            return value
        case ast.Attribute(value=ast.Name(id="self"), attr=name):
            return getattr(module, name, None)
        case _:
            return None


def scale_read(module: nn.Module, head_width: int) -> float | None:
    """The scale of vLLM's attention in the place of a module; None where vLLM raises.

    A call without `scaling=` gets that of Llama: one over the root of the head's width.
    """
    expression = read_call(module).scale
    if expression is None:
        return float(head_width) ** -0.5 if head_width else None
    value = resolved(expression, module)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
