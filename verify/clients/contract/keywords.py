"""BE401: keywords that do not arrive at the attention.

Engines give their attention what it needs as keywords of the base model's forward (`attention_instances` in vLLM up to 0.25
and SGLang, `forward_batch` in SGLang, `kv_cache`, `slots` and others in TGI). Every forward on the way must take `**kwargs`
and pass them on. Source: `vllm/model_executor/models/transformers/base.py`, 0.24.0, `Base.forward` and
`vllm_flash_attention_forward`; `sglang/srt/models/transformers.py`, 0.5.23, `_run_hf_backbone`; Transformers' documentation
of `AttentionInterface`.
"""

import ast
from collections.abc import Iterator
from itertools import pairwise

from torch import nn

from shardproof.planner.ir.findings import Finding, Place
from shardproof.planner.ir.plan import generic
from shardproof.verify.clients.contract.functions import (
    Function,
    aliases,
    calls_to,
    carriers,
    emptied,
    layers_of,
    names_in,
    passes_keywords,
    reaches_self,
    read,
)
from shardproof.verify.findings import be401

DEPTH = 4
"""How many helpers deep a call is followed."""


def lost_keywords(model: nn.Module, attention: list[str], base: str, names: tuple[str, ...]) -> list[Finding]:
    """Findings of every level between the base model and an attention module; one for a class and method."""
    found: dict[tuple[str, str], Finding] = {}
    for path in attention:
        chain = _chain(model, path, base)
        for parent, child in pairwise(chain):
            finding = _at(model, parent, child, names)
            if finding is not None:
                owner = type(model.get_submodule(parent)).__name__
                found.setdefault((owner, generic(child)), finding)
        if (last := _takes(model, path, names)) is not None:
            found.setdefault((type(model.get_submodule(path)).__name__, ""), last)
    return list(found.values())


def _chain(model: nn.Module, path: str, base: str) -> list[str]:
    """The modules from the base model down to an attention, lists left out."""
    parts = path.split(".") if path else []
    paths = [".".join(parts[:count]) for count in range(len(parts) + 1)]
    paths = [p for p in paths if p == base or not base or p.startswith(f"{base}.")]
    return [p for p in paths if not isinstance(model.get_submodule(p), nn.ModuleList | nn.ModuleDict | nn.Sequential)]


def _at(model: nn.Module, parent: str, child: str, names: tuple[str, ...]) -> Finding | None:
    """What is wrong where one module calls the next."""
    attribute = child.removeprefix(f"{parent}.").split(".")[0] if parent else child.split(".")[0]
    owner = type(model.get_submodule(parent))
    forwards = list(layers_of(owner.forward))
    if not forwards:
        return None
    for wrapper in forwards[:-1]:
        if (problem := _wrapper(wrapper)) is not None:
            return _finding(parent, names, wrapper, *problem)
    problem_at = _into(owner, forwards[-1], attribute, frozenset(), DEPTH)
    return _finding(parent, names, *problem_at) if isinstance(problem_at, tuple) else None


def _wrapper(wrapper: Function) -> tuple[str, str, ast.AST | None] | None:
    """A decorator of the model's own: it must take keywords, and pass them to what it wraps."""
    if wrapper.keywords is None:
        return "a decorator takes no **kwargs", f"**kwargs in the signature of {wrapper.name}", None
    held = carriers(wrapper.tree, wrapper.keywords)
    calls = [node for node in ast.walk(wrapper.tree) if isinstance(node, ast.Call)]
    if any(passes_keywords(call, held) for call in calls):
        return None
    return "a decorator does not pass **kwargs on", f"**{wrapper.keywords} in the call of what it wraps", None


_Problem = tuple[Function, str, str, ast.AST | None]


def _into(owner: type, function: Function, attribute: str, given: frozenset[str], depth: int) -> _Problem | bool:
    """Follow one function to its calls of a child: True where they get the keywords, False where it calls it nowhere, else
    the problem.
    """
    known = aliases(function.tree, attribute, given)
    calls = calls_to(function.tree, attribute, known)
    helpers = list(_helpers(owner, function, attribute, known)) if depth else []
    reached = False
    problem: _Problem | None = None
    for call, helper, handed in helpers:
        inside = _into(owner, helper, attribute, handed, depth - 1)
        if inside is False:
            continue
        reached = True
        problem = problem or (inside if isinstance(inside, tuple) else None) or _call(function, call, helper.name)
    for call in calls:
        reached = True
        problem = problem or _call(function, call, f"self.{attribute}")
    return problem or reached


def _call(function: Function, call: ast.Call, callee: str) -> _Problem | None:
    """What is wrong with one call: the caller has no keywords, has thrown them away, or does not pass them."""
    if function.keywords is None:
        return function, "its signature has no **kwargs", f"**kwargs in the signature of {function.name}", None
    if (thrown := emptied(function.tree, function.keywords)) is not None:
        return function, f"it replaces {function.keywords}", f"{function.keywords} kept", thrown
    if passes_keywords(call, carriers(function.tree, function.keywords)):
        return None
    return function, f"it calls {callee} without them", f"**{function.keywords} in the call of {callee}", call


def _helpers(
    owner: type, function: Function, attribute: str, known: set[str]
) -> Iterator[tuple[ast.Call, Function, frozenset[str]]]:
    """Methods of the same class, and functions that are given the child or the module, with the names it has there."""
    for call in (node for node in ast.walk(function.tree) if isinstance(node, ast.Call)):
        match call.func:
            case ast.Attribute(value=ast.Name(id="self"), attr=name) if name != attribute:
                made = read(getattr(owner, name, None))
                offset = 1
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=name):
                made = _of_super(owner, function, name)
                offset = 1
            case ast.Name(id=name) if name not in known:
                made = read(function.made.__globals__.get(name))
                offset = 0
            case _:
                continue
        if (
            made is None
            or made.made is function.made
            or made.made.__module__.startswith(("torch.", "transformers.utils"))
        ):
            continue
        parameters = [argument.arg for argument in (*made.tree.args.posonlyargs, *made.tree.args.args)][offset:]
        handed = {p for p, a in zip(parameters, call.args, strict=False) if _is_of(a, attribute, known)}
        handed |= {k.arg for k in call.keywords if k.arg is not None and _is_of(k.value, attribute, known)}
        if offset or handed:
            yield call, made, frozenset(handed)


def _is_of(argument: ast.expr, attribute: str, known: set[str]) -> bool:
    plain = isinstance(argument, ast.Name | ast.Attribute | ast.Subscript)
    return plain and (reaches_self(argument, attribute) or bool(names_in(argument) & known))


def _of_super(owner: type, function: Function, name: str) -> Function | None:
    classes = list(owner.__mro__)
    defining = next((i for i, kind in enumerate(classes) if function.made in vars(kind).values()), -1)
    return next((read(vars(kind)[name]) for kind in classes[defining + 1 :] if name in vars(kind)), None)


def _takes(model: nn.Module, path: str, names: tuple[str, ...]) -> Finding | None:
    """The attention's own forward: it must take the keywords, and pass them to the interface."""
    forwards = list(layers_of(type(model.get_submodule(path)).forward))
    if not forwards:
        return None
    inner = forwards[-1]
    if inner.keywords is None:
        return _finding(path, names, inner, "its signature has no **kwargs", "**kwargs in its signature", None)
    call = interface_call(inner.tree)
    if call is None or passes_keywords(call, carriers(inner.tree, inner.keywords)):
        return None
    return _finding(
        path, names, inner, "it calls the attention interface without them", f"**{inner.keywords} in that call", call
    )


def interface_call(tree: ast.FunctionDef) -> ast.Call | None:
    """The call of what was looked up in `ALL_ATTENTION_FUNCTIONS`, if there is exactly one."""
    calls = interface_calls(tree)
    return calls[0] if len(calls) == 1 else None


def interface_calls(tree: ast.FunctionDef) -> list[ast.Call]:
    """Every call of a name that was read from `ALL_ATTENTION_FUNCTIONS`."""
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=targets, value=value):
                pass
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                targets = [target]
            case _:
                continue
        if "ALL_ATTENTION_FUNCTIONS" in names_in(value):
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            direct = isinstance(node.func, ast.Subscript) and "ALL_ATTENTION_FUNCTIONS" in names_in(node.func)
            if direct or (isinstance(node.func, ast.Name) and node.func.id in names):
                found.append(node)
    return found


def _finding(
    module: str, names: tuple[str, ...], function: Function, problem: str, needed: str, node: ast.AST | None
) -> Finding:
    place = Place(module=module or None, source=function.source(node))
    return be401.keywords_dropped(function.name, place, keywords=names, problem=problem, needed=needed)
