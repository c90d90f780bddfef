"""The projections that vLLM's fusers shard by structure, without the plan: query-key-value and gated feed-forward layers.

Source: `vllm/model_executor/models/transformers/fusers/` of 0.25.0 to 0.33.0: `qkv.py` (three linear layers of the module's own
input; the larger is the query; the linear layer that makes the output is split by row), `glu.py` (an activation of one
times the other; the linear layer after the product is split by row), `merged_column.py` (the one group of two or more
linear layers of the module's own input), `packed_qkv.py` (a three-way split of one linear layer), `mla.py` (latent
attention). A module is fused only where the forward's source calls each projection once, as `self.<name>(argument)`, and only as
far as the fuser's own symbolic trace comes (`verify.clients.vllm.symbolic_trace`).
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from shardproof.planner.ir.graph import Graph, Module, ModuleCall
from shardproof.planner.ir.plan import join
from shardproof.verify.clients.contract.source import forward_tree
from shardproof.verify.clients.vllm.symbolic_trace import traced

MERGED_ACTIVATIONS = frozenset({"SiLUActivation", "SiLU", "GELUActivation", "GELU", "GELUTanh"})
"""Classes of the activations in `_ACTIVATION_AND_MUL_REGISTRY` (`vllm/model_executor/layers/activation.py`, 0.32.0)."""


@dataclass(frozen=True, slots=True)
class Fusion:
    """One module whose linear layers are decided by a fuser: the path of each -> the style of the same effect."""

    kind: str
    module: str
    styles: Mapping[str, str]


@dataclass(frozen=True)
class _Candidate:
    """A module that a fuser may rewrite: its linear children, and its call in the trace."""

    graph: Graph
    model: nn.Module
    module: Module
    call: ModuleCall
    children: Mapping[int, list[str]]
    """The values that linear children take -> their names, in order of their calls."""
    calls: Mapping[str, ModuleCall]
    """Direct children that were called."""
    degree: int
    head_dim: int
    finished: bool
    """Whether the fuser's trace comes to the end of the forward, so that it knows what makes the output."""

    def width(self, name: str, side: str) -> int:
        return dict(self.graph.module_of[join(self.module.path, name)].numbers).get(side, 0)

    def linear(self, name: str) -> bool:
        return is_linear(self.graph.module_of[join(self.module.path, name)])

    def style(self, name: str) -> str:
        return join(self.module.path, name)


def is_linear(module: Module) -> bool:
    """Whether clients take it for a linear layer: `nn.Linear`, or a class of it."""
    return "Linear" in module.bases


def not_followed(graph: Graph, model: nn.Module) -> dict[str, str]:
    """Modules with linear children of which the engine's trace is not known, and why; repeated layers are left out."""
    called = {call.module for call in graph.calls}
    owners = {module.path.rpartition(".")[0] for module in graph.modules if module.path in called and is_linear(module)}
    failed = {path: traced(model.get_submodule(path)).failed for path in sorted(owners & called)}
    return {path: why for path, why in failed.items() if why}


def fusions(graph: Graph, model: nn.Module, kinds: tuple[str, ...], *, degree: int, head_dim: int) -> list[Fusion]:
    """Every fusion that the client makes at this degree, in the order of the modules; repeated layers are left out."""
    found = []
    for candidate in _modules(graph, model, degree, head_dim):
        for kind in kinds:
            if (styles := _KINDS[kind](candidate)) is not None:
                found.append(Fusion(kind, candidate.module.path, styles))
                break
    return found


def _modules(graph: Graph, model: nn.Module, degree: int, head_dim: int) -> Iterator[_Candidate]:
    by_path: dict[str, list[ModuleCall]] = {}
    for call in graph.calls:
        by_path.setdefault(call.module, []).append(call)
    below: dict[str, list[Module]] = {}
    for module in graph.modules:
        if module.path in by_path:
            below.setdefault(module.path.rpartition(".")[0], []).append(module)
    for module in graph.modules:
        own = [m for m in below.get(module.path, ()) if m is not module]
        linears = [m for m in own if is_linear(m)]
        if module.path not in by_path or not linears:
            continue
        reached = traced(model.get_submodule(module.path))
        seen = {name: m for m in own if (name := m.path.rpartition(".")[2]) in reached.children}
        children: dict[int, list[str]] = {}
        for name, m in seen.items():
            for _, value in by_path[m.path][0].arguments[:1] if is_linear(m) else ():
                children.setdefault(value, []).append(name)
        calls = {name: by_path[m.path][0] for name, m in seen.items()}
        yield _Candidate(
            graph, model, module, by_path[module.path][0], children, calls, degree, head_dim, reached.finished
        )


def _groups(candidate: _Candidate) -> list[list[str]]:
    """Names of the linear children that take one and the same argument of the module."""
    given = {value for _, value in candidate.call.arguments}
    return [names for value, names in candidate.children.items() if value in given and len(names) > 1]


def _qkv(candidate: _Candidate) -> dict[str, str] | None:
    """Query, key and value: the only three linear layers of one input, their widths whole numbers of heads."""
    triples = [names for names in _groups(candidate) if len(names) == 3]
    if len(triples) != 1 or not _called_alike(candidate, triples[0], alone=True):
        return None
    names = triples[0]
    widths = [candidate.width(name, "out_features") for name in names]
    head = dict(candidate.module.numbers).get("head_dim", 0) or candidate.head_dim
    whole = bool(head) and not any(width % head for width in widths)
    if not whole or not _is_wider_query(widths) or len({_has_bias(candidate, name) for name in names}) > 1:
        return None
    made = _makes_output(candidate)
    styles = {candidate.style(name): "colwise" for name in names}
    if made is not None and made not in names and candidate.width(made, "in_features") == max(widths):
        styles[candidate.style(made)] = "rowwise"
    return styles


def _is_wider_query(widths: list[int]) -> bool:
    """Whether the widths are those of a query, a key and a value: all alike, or two alike and a wider query."""
    return len(set(widths)) == 1 or (len(set(widths)) == 2 and widths.count(max(widths)) == 1)


def _packed_qkv(candidate: _Candidate) -> dict[str, str] | None:
    """A three-way split `(q, kv, kv)` of one projection: marked, for its blocks are unequal and no placement says that."""
    for op in candidate.graph.ops:
        if op.module != candidate.module.path or "split" not in op.target or len(op.outputs) != 3:
            continue
        name = _linear_behind(candidate, op.inputs[0])
        sizes = [candidate.graph.values[number].shape[-1] for number in op.outputs]
        if name is not None and sizes[1] == sizes[2] and sizes[0] >= sizes[1]:
            return {candidate.style(name): "packed_qkv"} if _splits_in_place(candidate, name) else None
    return None


def _mla(candidate: _Candidate) -> dict[str, str] | None:
    """Latent attention: one linear layer of the input whose result is split before a norm, another perhaps normed whole; what
    they are projected up by is split by column, and the linear layer that makes the output by row.
    """
    found: dict[str, list[str]] = {"split": [], "whole": []}
    for name, call in candidate.calls.items():
        down = (
            _linear_behind(candidate, call.arguments[0][1]) if call.arguments and not candidate.linear(name) else None
        )
        if down is not None and _of_the_input(candidate, down):
            width = candidate.graph.values[call.arguments[0][1]].shape[-1]
            found["whole" if width == candidate.width(down, "out_features") else "split"].append(down)
    if len(found["split"]) != 1 or len(found["whole"]) > 1:
        return None
    made = _makes_output(candidate)
    downs = {*found["split"], *found["whole"]}
    ups = [name for name in candidate.calls if candidate.linear(name) and name not in downs and name != made]
    styles = {candidate.style(name): "replicate" for name in downs} | {candidate.style(name): "colwise" for name in ups}
    return styles | ({candidate.style(made): "rowwise"} if made is not None else {})


def _of_the_input(candidate: _Candidate, name: str) -> bool:
    return candidate.calls[name].arguments[0][1] in {value for _, value in candidate.call.arguments}


def _linear_behind(candidate: _Candidate, value: int) -> str | None:
    """The linear child that made a value, through splits and reshapes in the module's own forward."""
    for _ in range(6):
        made = candidate.graph.producer.get(value)
        if made is None:
            return None
        op = candidate.graph.ops[made]
        name = op.module.rpartition(".")[2]
        if op.module == join(candidate.module.path, name) and name in candidate.calls and candidate.linear(name):
            return name
        if op.module != candidate.module.path or not op.inputs:
            return None
        value = op.inputs[0]
    return None


def _glu(candidate: _Candidate) -> dict[str, str] | None:
    makers = {call.outputs[0]: name for name, call in candidate.calls.items() if len(call.outputs) == 1}
    for op in candidate.graph.ops:
        if op.module != candidate.module.path or not op.target.endswith("mul") or len(op.inputs) != 2:
            continue
        gate_up = _gate_and_up(candidate, [makers.get(value) for value in op.inputs])
        if gate_up is None or not _called_alike(candidate, list(gate_up), alone=False):
            continue
        gate, up = gate_up
        out = candidate.width(gate, "out_features")
        if out != candidate.width(up, "out_features") or out % candidate.degree:
            return None
        styles = {candidate.style(gate): "colwise", candidate.style(up): "colwise"}
        down = next((names[0] for value, names in candidate.children.items() if value in op.outputs), None)
        return styles | ({candidate.style(down): "rowwise"} if down is not None else {})
    return None


def _gate_and_up(candidate: _Candidate, factors: list[str | None]) -> tuple[str, str] | None:
    """The names of gate and up where the factors are an activation of one linear layer, and another of the same input."""
    for first, second in (factors, factors[::-1]):
        if first is None or second is None or candidate.linear(first) or not candidate.linear(second):
            continue
        kind = candidate.graph.module_of[join(candidate.module.path, first)].kind
        given = [value for _, value in candidate.calls[first].arguments]
        gate = next((n for n, c in candidate.calls.items() if candidate.linear(n) and list(c.outputs) == given), None)
        same = gate is not None and candidate.calls[gate].arguments[0][1] == candidate.calls[second].arguments[0][1]
        if kind in MERGED_ACTIVATIONS and gate is not None and same:
            return gate, second
    return None


def _merged(candidate: _Candidate) -> dict[str, str] | None:
    groups = _groups(candidate)
    if len(groups) != 1 or not _called_alike(candidate, groups[0], alone=False):
        return None
    names = groups[0]
    if any(candidate.width(name, "out_features") % candidate.degree for name in names):
        return None
    return (
        None
        if len({_has_bias(candidate, n) for n in names}) > 1
        else {candidate.style(name): "colwise" for name in names}
    )


_KINDS = {"mla": _mla, "qkv": _qkv, "packed_qkv": _packed_qkv, "glu": _glu, "merged": _merged}


def _has_bias(candidate: _Candidate, name: str) -> bool:
    return "bias" in dict(candidate.graph.module_of[join(candidate.module.path, name)].parameters)


def _makes_output(candidate: _Candidate) -> str | None:
    """The linear child whose result the module gives first, through dropouts and reshapes."""
    if not candidate.finished:
        return None
    makers = {
        call.outputs[0]: name for name, call in candidate.calls.items() if call.outputs and candidate.linear(name)
    }
    value = candidate.call.outputs[0] if candidate.call.outputs else -1
    for _ in range(8):
        if value in makers:
            return makers[value]
        made = candidate.graph.producer.get(value)
        if made is None or candidate.graph.ops[made].target == "attention" or not candidate.graph.ops[made].inputs:
            return None
        value = candidate.graph.ops[made].inputs[0]
    return None


def _called_alike(candidate: _Candidate, names: list[str], *, alone: bool) -> bool:
    """Whether the source calls each once as `self.<name>(argument)`, all with one argument; with `alone`, no other linear
    child takes that argument.
    """
    tree = forward_tree(type(candidate.model.get_submodule(candidate.module.path)))
    if tree is None:
        return False
    calls = {name: _calls(tree, name) for name in names}
    if any(len(found) != 1 for found in calls.values()):
        return False
    given = {ast.dump(found[0].args[0]) for found in calls.values()}
    if len(given) != 1:
        return False
    others = [name for name in candidate.calls if candidate.linear(name) and name not in names]
    return not alone or not any(ast.dump(c.args[0]) in given for name in others for c in _calls(tree, name))


def _calls(tree: ast.AST, name: str) -> list[ast.Call]:
    """Calls `self.<name>(one argument)`."""
    return [
        call
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == name
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "self"
        and len(call.args) == 1
        and not call.keywords
    ]


def _splits_in_place(candidate: _Candidate, name: str) -> bool:
    """Whether the source has one `self.<name>(...)....split((a, b, c), ...)`."""
    tree = forward_tree(type(candidate.model.get_submodule(candidate.module.path)))
    if tree is None:
        return False
    splits = [
        call
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "split"
        and call.args
        and isinstance(call.args[0], ast.Tuple | ast.List)
        and len(call.args[0].elts) == 3
        and any(isinstance(node, ast.Attribute) and node.attr == name for node in ast.walk(call.func.value))
    ]
    return len(splits) == 1
