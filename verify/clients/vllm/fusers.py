"""What vLLM's fusers decide before the plan is asked: query-key-value and gated feed-forward projections, by structure.

Source: `vllm/model_executor/models/transformers/fusers/` of 0.25.0 and 0.32.0: `qkv.py` (three linear layers of the module's own
input; the larger is the query; the linear layer that makes the output is split by row), `glu.py` (an activation of one
times the other; the linear layer after the product is split by row), `merged_column.py` (the one group of two or more
linear layers of the module's own input), `packed_qkv.py` (a three-way split of one linear layer), `mla.py` (latent
attention). A fusion is made only where the forward's source calls each projection once, as `self.<name>(argument)`, and only of
what the fuser's own trace got to (`verify.clients.vllm.symbolic_trace`).
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
class _Inside:
    """One module with its linear children, and what it was called with."""

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


def fusions(graph: Graph, model: nn.Module, kinds: tuple[str, ...], *, degree: int, head_dim: int) -> list[Fusion]:
    """Every fusion that the client makes at this degree, in the order of the modules; repeated layers are left out."""
    found = []
    for inside in _modules(graph, model, degree, head_dim):
        for kind in kinds:
            if (styles := _KINDS[kind](inside)) is not None:
                found.append(Fusion(kind, inside.module.path, styles))
                break
    return found


def _modules(graph: Graph, model: nn.Module, degree: int, head_dim: int) -> Iterator[_Inside]:
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
        yield _Inside(
            graph, model, module, by_path[module.path][0], children, calls, degree, head_dim, reached.finished
        )


def _groups(inside: _Inside) -> list[list[str]]:
    """Names of the linear children that take one and the same argument of the module."""
    given = {value for _, value in inside.call.arguments}
    return [names for value, names in inside.children.items() if value in given and len(names) > 1]


def _qkv(inside: _Inside) -> dict[str, str] | None:
    triples = [names for names in _groups(inside) if len(names) == 3]
    if len(triples) != 1 or not _called_alike(inside, triples[0], alone=True):
        return None
    names = triples[0]
    widths = [inside.width(name, "out_features") for name in names]
    head = dict(inside.module.numbers).get("head_dim", 0) or inside.head_dim
    if len(set(widths)) == 2:
        query = next((n for n, w in zip(names, widths, strict=True) if widths.count(w) == 1), "")
        if not query or inside.width(query, "out_features") != max(widths):
            return None
    elif len(set(widths)) == 3:
        return None
    if not head or any(width % head for width in widths) or len({_has_bias(inside, name) for name in names}) > 1:
        return None
    made = _makes_output(inside)
    styles = {inside.style(name): "colwise" for name in names}
    if made is not None and made not in names and inside.width(made, "in_features") == max(widths):
        styles[inside.style(made)] = "rowwise"
    return styles


def _packed_qkv(inside: _Inside) -> dict[str, str] | None:
    """A three-way split `(q, kv, kv)` of one projection: marked, for its blocks are unequal and no placement says that."""
    for op in inside.graph.ops:
        if op.module != inside.module.path or "split" not in op.target or len(op.outputs) != 3:
            continue
        name = _linear_behind(inside, op.inputs[0])
        sizes = [inside.graph.values[number].shape[-1] for number in op.outputs]
        if name is not None and sizes[1] == sizes[2] and sizes[0] >= sizes[1]:
            return {inside.style(name): "packed_qkv"} if _splits_in_place(inside, name) else None
    return None


def _mla(inside: _Inside) -> dict[str, str] | None:
    """Latent attention: one linear layer of the input whose result is split before a norm, another perhaps normed whole; what
    they are projected up by is split by column, and the linear layer that makes the output by row.
    """
    found: dict[str, list[str]] = {"split": [], "whole": []}
    for name, call in inside.calls.items():
        down = _linear_behind(inside, call.arguments[0][1]) if call.arguments and not inside.linear(name) else None
        if down is not None and _of_the_input(inside, down):
            width = inside.graph.values[call.arguments[0][1]].shape[-1]
            found["whole" if width == inside.width(down, "out_features") else "split"].append(down)
    if len(found["split"]) != 1 or len(found["whole"]) > 1:
        return None
    made = _makes_output(inside)
    downs = {*found["split"], *found["whole"]}
    ups = [name for name in inside.calls if inside.linear(name) and name not in downs and name != made]
    styles = {inside.style(name): "replicate" for name in downs} | {inside.style(name): "colwise" for name in ups}
    return styles | ({inside.style(made): "rowwise"} if made is not None else {})


def _of_the_input(inside: _Inside, name: str) -> bool:
    return inside.calls[name].arguments[0][1] in {value for _, value in inside.call.arguments}


def _linear_behind(inside: _Inside, value: int) -> str | None:
    """The linear child that made a value, through splits and reshapes in the module's own forward."""
    for _ in range(6):
        made = inside.graph.producer.get(value)
        if made is None:
            return None
        op = inside.graph.ops[made]
        name = op.module.rpartition(".")[2]
        if op.module == join(inside.module.path, name) and name in inside.calls and inside.linear(name):
            return name
        if op.module != inside.module.path or not op.inputs:
            return None
        value = op.inputs[0]
    return None


def _glu(inside: _Inside) -> dict[str, str] | None:
    makers = {call.outputs[0]: name for name, call in inside.calls.items() if len(call.outputs) == 1}
    for op in inside.graph.ops:
        if op.module != inside.module.path or not op.target.endswith("mul") or len(op.inputs) != 2:
            continue
        gate_up = _gate_and_up(inside, [makers.get(value) for value in op.inputs])
        if gate_up is None or not _called_alike(inside, list(gate_up), alone=False):
            continue
        gate, up = gate_up
        out = inside.width(gate, "out_features")
        if out != inside.width(up, "out_features") or out % inside.degree:
            return None
        styles = {inside.style(gate): "colwise", inside.style(up): "colwise"}
        down = next((names[0] for value, names in inside.children.items() if value in op.outputs), None)
        return styles | ({inside.style(down): "rowwise"} if down is not None else {})
    return None


def _gate_and_up(inside: _Inside, factors: list[str | None]) -> tuple[str, str] | None:
    """The names of gate and up where the factors are an activation of one linear layer, and another of the same input."""
    for first, second in (factors, factors[::-1]):
        if first is None or second is None or inside.linear(first) or not inside.linear(second):
            continue
        kind = inside.graph.module_of[join(inside.module.path, first)].kind
        given = [value for _, value in inside.calls[first].arguments]
        gate = next((n for n, c in inside.calls.items() if inside.linear(n) and list(c.outputs) == given), None)
        same = gate is not None and inside.calls[gate].arguments[0][1] == inside.calls[second].arguments[0][1]
        if kind in MERGED_ACTIVATIONS and gate is not None and same:
            return gate, second
    return None


def _merged(inside: _Inside) -> dict[str, str] | None:
    groups = _groups(inside)
    if len(groups) != 1 or not _called_alike(inside, groups[0], alone=False):
        return None
    names = groups[0]
    if any(inside.width(name, "out_features") % inside.degree for name in names):
        return None
    return None if len({_has_bias(inside, n) for n in names}) > 1 else {inside.style(name): "colwise" for name in names}


_KINDS = {"mla": _mla, "qkv": _qkv, "packed_qkv": _packed_qkv, "glu": _glu, "merged": _merged}


def _has_bias(inside: _Inside, name: str) -> bool:
    return "bias" in dict(inside.graph.module_of[join(inside.module.path, name)].parameters)


def _makes_output(inside: _Inside) -> str | None:
    """The linear child whose result the module gives first, through dropouts and reshapes."""
    if not inside.finished:
        return None
    makers = {call.outputs[0]: name for name, call in inside.calls.items() if call.outputs and inside.linear(name)}
    value = inside.call.outputs[0] if inside.call.outputs else -1
    for _ in range(8):
        if value in makers:
            return makers[value]
        made = inside.graph.producer.get(value)
        if made is None or inside.graph.ops[made].target == "attention" or not inside.graph.ops[made].inputs:
            return None
        value = inside.graph.ops[made].inputs[0]
    return None


def _called_alike(inside: _Inside, names: list[str], *, alone: bool) -> bool:
    """Whether the source calls each once as `self.<name>(argument)`, all with one argument; with `alone`, no other linear
    child takes that argument.
    """
    tree = forward_tree(type(inside.model.get_submodule(inside.module.path)))
    if tree is None:
        return False
    calls = {name: _calls(tree, name) for name in names}
    if any(len(found) != 1 for found in calls.values()):
        return False
    given = {ast.dump(found[0].args[0]) for found in calls.values()}
    if len(given) != 1:
        return False
    others = [name for name in inside.calls if inside.linear(name) and name not in names]
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


def _splits_in_place(inside: _Inside, name: str) -> bool:
    """Whether the source has one `self.<name>(...)....split((a, b, c), ...)`."""
    tree = forward_tree(type(inside.model.get_submodule(inside.module.path)))
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
