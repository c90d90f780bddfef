"""Infer a pipeline plan: the children that the hidden states pass through, in execution order.

The trace gives the modules and their order. Dataflow gives the arguments that matter: those that depend on parameters
(hidden states) or on the caller's inputs (ids, masks). The modeling source at the call gives the names of arguments and
results.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from inspect import signature

import torch
from torch import nn

from shardproof.planner.inference.call_sites import Site, call_sites
from shardproof.planner.inputs.example import example_inputs
from shardproof.planner.ir.dataflow import Cut, Live, Role, derived, from_inputs, live_across, read_behind, stream
from shardproof.planner.ir.graph import Graph, ModuleCall
from shardproof.planner.ir.plan import PpEntry
from shardproof.planner.loading.carried_plan import base_prefix
from shardproof.planner.tracing.module_tree import layer_stack, members, same_member
from shardproof.planner.tracing.programs import program_for
from shardproof.planner.tracing.recorded_run import TraceError


def infer_pipeline(model: nn.Module, graph: Graph) -> tuple[tuple[PpEntry, ...], tuple[PpEntry, ...]]:
    """The pipeline plan of a traced model.

    Args:
        model: on the meta device.
        graph: its single-device program.

    Returns:
        Entries for the base model's config (relative to the base model) and for the head class.
    """
    masked = _with_mask(model, graph)
    prefix = base_prefix(model)
    flow = _Flow(masked, stream(masked), from_inputs(masked))
    stack = _stack(model, masked)
    base, head = [], []
    paths = _on_the_path(model, flow, stack)
    ran = [one for path in paths for one in members(model, path)]
    flow = replace(flow, stream=flow.stream | _made_in(masked, ran))
    for path in paths:
        entry = _entry(model, flow, path)
        if prefix and not path.startswith(prefix + "."):
            head.append(entry)
        else:
            base.append(PpEntry(path.removeprefix(prefix + ".") if prefix else path, entry.inputs, entry.outputs))
    return tuple(base), tuple(head)


def cut_nowhere(model: nn.Module, graph: Graph, base: tuple[PpEntry, ...]) -> str | None:
    """The reason why no cut between layers is possible; None if one is. A plan without a possible cut would be useless."""
    prefix = base_prefix(model)
    paths = [f"{prefix}.{entry.module}" if prefix else entry.module for entry in base]
    stack = layer_stack(model, paths)
    if stack is None:
        return "no ModuleList holds the layers, between the members of which stages are cut"
    owner = stack.rpartition(".")[0]
    if isinstance(model.get_submodule(owner), nn.ModuleList):
        return f"the layers lie in the lists of {owner}, and stages are cut between the members of one list"
    if (twice := same_member(model, stack)) is not None:
        return f"{stack}.{twice[0]} and {stack}.{twice[1]} are one module, which cannot be on one stage alone"
    depth, before = len(list(model.get_submodule(stack).children())), tuple(paths[: paths.index(stack)])
    first: Live | None = None
    for number in range(1, depth):
        missed = next(
            (live for live in live_across(graph, Cut(stack, number, before)) if live.role is Role.MISSED), None
        )
        if missed is None:
            return None
        first = first or missed
    if first is None:
        return None
    made = graph.ops[first.made].module if first.made is not None else graph.values[first.value].name
    used = graph.ops[first.used]
    return (
        f"{stack} can be cut nowhere: what {made or 'the model'} makes is needed behind every cut, by {used.target} in "
        f"{used.module or 'the model'}, and no argument of a layer brings it"
    )


@dataclass(frozen=True, slots=True)
class _Flow:
    """A graph with the values that depend on parameters (`stream`) and those that depend on the caller's inputs (`given`)."""

    graph: Graph
    stream: frozenset[int]
    given: frozenset[int]

    def matters(self, number: int) -> bool:
        """Whether a stage has to receive this value, because it cannot compute it."""
        return number in self.stream or number in self.given


def _made_in(graph: Graph, paths: Iterable[str]) -> frozenset[int]:
    """The results of these modules. A stage without the module cannot compute them, even if they depend on no parameter."""
    listed = set(paths)
    return frozenset(number for call in graph.calls if call.module in listed for number in call.outputs)


def _with_mask(model: nn.Module, graph: Graph) -> Graph:
    """The program with padding masks (for encoder and decoder), so that values that depend on masks are seen; the given
    program if that cannot be traced.
    """
    names = signature(model.forward).parameters
    if "attention_mask" not in names:
        return graph
    inputs = example_inputs(model)
    masks = {"attention_mask": _mask_of(next(iter(inputs.values())))}
    if "decoder_attention_mask" in names and "decoder_input_ids" in inputs:
        masks["decoder_attention_mask"] = _mask_of(inputs["decoder_input_ids"])
    try:
        return program_for(model, {**inputs, **masks})
    except TraceError:
        return graph


def _mask_of(ids: torch.Tensor) -> torch.Tensor:
    return torch.empty(ids.shape, dtype=torch.long, device="meta")


def _stack(model: nn.Module, graph: Graph) -> str:
    """The path of the layers: the module list with the most parameters among those that every token passes. A vision tower
    may have more parameters, but tokens do not pass it.
    """
    ran = {call.module.rpartition(".")[0] for call in graph.calls}
    lists = [path for path, module in model.named_modules() if isinstance(module, nn.ModuleList) and path in ran]
    inputs = dict(graph.inputs)
    tokens = [inputs[name] for name in ("decoder_input_ids", "input_ids") if name in inputs][:1]
    results = {number for _, number in graph.outputs}
    passed = [path for path in lists if results.isdisjoint(derived(graph, tokens, without=path))] if tokens else lists
    return layer_stack(model, passed or lists) or ""


def _on_the_path(model: nn.Module, flow: _Flow, stack: str) -> list[str]:
    """The children whose results depend on parameters, of every module from the root down to the owner of the layers, in
    execution order. A module that contains the layers is replaced by its children. A module that runs before and after the
    layers is left out: every stage has it.
    """
    parts = stack.split(".")[:-1]
    opened = {".".join(parts[:count]) for count in range(len(parts) + 1)}
    found: dict[str, list[int]] = {}
    for position, call in enumerate(flow.graph.calls):
        path = _listed(model, call.module, opened)
        if path is not None and any(number in flow.stream for number in call.outputs):
            found.setdefault(path, []).append(position)
    layers = found.get(stack, [0])
    return [
        path
        for path, at in found.items()
        if path == stack or not (at[0] < layers[0] and (layers[-1] < at[-1] or read_behind(flow.graph, path, stack)))
    ]


def _listed(model: nn.Module, module: str, opened: set[str]) -> str | None:
    """The child that a call belongs to: the module itself, or the module list that contains it."""
    owner = module.rpartition(".")[0]
    if not module or module in opened:
        return None
    if owner in opened:
        return module
    is_list = owner and isinstance(model.get_submodule(owner), nn.ModuleList)
    return owner if is_list and owner.rpartition(".")[0] in opened else None


def _entry(model: nn.Module, flow: _Flow, path: str) -> PpEntry:
    owner, _, child = path.rpartition(".")
    ran = set(members(model, path))
    calls = [call for call in flow.graph.calls if call.module in ran]
    sites = call_sites(type(model.get_submodule(owner)), child)
    module = model.get_submodule(calls[0].module)
    inputs = dict.fromkeys(name for call in calls for name in _inputs(flow, module, call, sites))
    outputs = next((site.outputs for site in sites if site.outputs), ())
    return PpEntry(path, tuple(inputs), outputs[: _results(flow, calls)] or tuple(inputs)[:1])


def _results(flow: _Flow, calls: Iterable[ModuleCall]) -> int:
    """The number of results of a child that depend on parameters, at least one."""
    return max(1, *(sum(number in flow.stream for number in call.outputs) for call in calls))


def _inputs(flow: _Flow, module: nn.Module, call: ModuleCall, sites: Iterable[Site]) -> list[str]:
    """The names of the arguments that matter: as written at the call if passed by position, else as in the forward's
    signature.
    """
    own = list(signature(type(module).forward).parameters)[1:]
    shown: dict[str, str] = {}
    for site in sites:
        for name, called in zip(own, site.positional, strict=False):
            if called is not None:
                shown.setdefault(name, called)
    passed = [name for name, number in call.arguments if flow.matters(number)] or [name for name, _ in call.arguments]
    return list(dict.fromkeys(shown.get(name, name) for name in passed))
