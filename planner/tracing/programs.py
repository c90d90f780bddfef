"""A model on meta with its programs, the single device's and a rank's: traced once, for all that is asked of them."""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import nn

from shardproof.planner.ir.graph import Graph
from shardproof.planner.loading.carried_plan import base_prefix
from shardproof.planner.loading.load import LoadedModel, build
from shardproof.planner.propagation.assign import Assigned
from shardproof.planner.tracing.rank_program import trace_local
from shardproof.planner.tracing.trace import trace


@dataclass(frozen=True)
class Subject:
    """A model on meta, traced, with the prefix of its base model."""

    model: nn.Module
    graph: Graph
    prefix: str


_graphs: "WeakKeyDictionary[nn.Module, Graph]" = WeakKeyDictionary()


def subject_of(model: nn.Module) -> Subject:
    """A model on meta with its program; who changes the model afterwards asks `trace` for another.

    Raises:
        TraceError: the forward cannot run on meta tensors.
    """
    if model not in _graphs:
        _graphs[model] = trace(model)
    return Subject(model, _graphs[model], base_prefix(model))


_programs: "WeakKeyDictionary[nn.Module, list[tuple[Assigned, int, bool, Graph]]]" = WeakKeyDictionary()
KEPT = 2
"""Per-rank programs that are kept for each model: the inference, the degrees and the proof ask for the same one."""


def local_program(model: nn.Module, assigned: Assigned, degree: int, *, distributed: bool = True) -> Graph:
    """One rank's program, from `trace_local` (which says what `distributed` is) or kept from the last times.

    Raises:
        IndivisibleError: a parameter does not divide.
        TraceError: the local program fails by itself.
    """
    kept = _programs.setdefault(model, [])
    for *known, program in kept:
        if known == [assigned, degree, distributed]:
            return program
    made = trace_local(model, assigned, degree, distributed=distributed)
    kept[:] = [(assigned, degree, distributed, made), *kept[: KEPT - 1]]
    return made


def on_meta(loaded: LoadedModel) -> nn.Module:
    """The one meta model of what was loaded: to be read and traced, never changed (`build` gives another).

    Raises:
        LoadError: its constructor raises.
    """
    kept: dict[str, nn.Module] = vars(loaded)
    if "_on_meta" not in kept:
        kept["_on_meta"] = build(loaded)
    return kept["_on_meta"]
