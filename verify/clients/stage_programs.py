"""The stages of clients that run the whole forward on each, traced with their placeholders, against the whole program.

Source: Transformers 5.23.0, `distributed/pipeline_parallel.py`, `apply_pipeline_parallelism`: whatever the plan says, `layers` of
the base model is split evenly, the rest to the last stage; `embed_tokens`, `norm`, `lm_head` and layers that a stage does not
own become identities; what a stage receives is given to the model as `inputs_embeds`, so all else of its forward runs again.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import wraps
from inspect import signature

import torch
from torch import nn
from transformers.distributed.pipeline_parallel import PipelineIdentityLayer

from shardproof.planner.inputs.example import TRACED, attempts, example_inputs
from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
from shardproof.planner.ir.graph import Graph
from shardproof.planner.ir.numbering import Numbered, Numbers, first_new, numbered
from shardproof.planner.ir.plan import Plan, join
from shardproof.planner.loading.carried_plan import base_prefix
from shardproof.planner.loading.load import LoadedModel, build
from shardproof.planner.tracing.trace import TraceError, trace
from shardproof.verify.clients.dialect import Dialect, Pipeline
from shardproof.verify.findings import be433
from shardproof.verify.proof.pipeline import check_pp


def check_even_stages(dialect: Dialect, loaded: LoadedModel, stages: int) -> tuple[Finding, ...]:
    """Finding BE433 where a stage's program is not its part of the whole one; only the first stage that differs is told."""
    model = build(loaded)
    prefix = base_prefix(model)
    base = model.get_submodule(prefix)
    layers = getattr(base, "layers", None)
    if not isinstance(layers, nn.ModuleList) or len(layers) < stages:
        found = (
            "fewer layers than stages"
            if isinstance(layers, nn.ModuleList)
            else f"no list `layers` in {type(base).__name__}"
        )
        return (be433.no_even_split(dialect.name, found),)
    comparison = _Comparison(dialect, Numbers(), join(prefix, "layers"), trace(model), prefix)
    return tuple(comparison.run(loaded, len(layers), stages))


def check_keyed_stages(dialect: Dialect, loaded: LoadedModel, plan: Plan, stages: int) -> tuple[Finding, ...]:
    """Finding BE433 as of `check_even_stages`, for a client that makes stages by the plan's keys; none where it makes none.

    What such a client runs is the base model alone; the head is its own.
    """
    model = build(loaded)
    prefix = base_prefix(model)
    owner, names = keys_of(dialect, model, plan)
    lists = [name for name in names if isinstance(_submodule(owner, name), nn.ModuleList)]
    if len(lists) != 1 or loaded.config.is_encoder_decoder:
        return ()
    path = next(path for path, module in model.named_modules() if module is owner)
    at = names.index(lists[0])
    keyed = _Keyed(path, tuple(names[:at]), lists[0], tuple(names[at + 1 :]), bool(dialect.keeps_tied))
    right = not any(f.severity is Severity.ERROR for f in check_pp(model, trace(model), plan)) if plan.pp else True
    depth, count = len(model.get_submodule(join(path, lists[0]))), loaded.config.get_text_config().num_hidden_layers  # type: ignore[arg-type]  # a list
    if count > depth:
        return (be433.layers_miscounted(dialect.name, join(path, lists[0]), depth=depth, count=count),)
    _base_only(model, prefix)
    graph = trace(model, _asked_by_engine(model, first=True))
    comparison = _Comparison(dialect, Numbers(), join(path, keyed.stack), graph, prefix, keyed)
    found = comparison.run(loaded, count, stages)
    return tuple(found if right else (replace(finding, fault=Fault.PLAN) for finding in found))


def keys_of(dialect: Dialect, model: nn.Module, plan: Plan) -> tuple[nn.Module, list[str]]:
    """The keys that a client cuts by, and the module that they are names in: without a plan, children of the decoder that have
    parameters, in order of declaration, for a client that then takes those.

    Source: vLLM 0.32.0, `pipeline_parallel`.
    """
    base = model.get_submodule(base_prefix(model))
    if plan.pp or dialect.pipeline is not Pipeline.KEYS_OR_ORDER:
        return base, [entry.module for entry in plan.pp]
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else base  # type: ignore[operator]  # a PreTrainedModel
    owner = decoder if isinstance(decoder, nn.Module) else base
    return owner, [name for name, child in owner.named_children() if next(child.parameters(), None) is not None]


@dataclass(frozen=True, slots=True)
class _Keyed:
    """Keys in the module at `path`: on the first rank, dealt out, on the last rank."""

    path: str
    before: tuple[str, ...]
    stack: str
    after: tuple[str, ...]
    keeps_tied: bool

    def own(self, count: int, stage: int, stages: int) -> range:
        """Source: vLLM 0.32.0, `get_pp_indices`: what does not divide goes to the stages before the last, from behind."""
        sizes = [count // stages] * stages
        for place in range(2, count % stages + 2):
            sizes[-place] += 1
        return range(sum(sizes[:stage]), sum(sizes[: stage + 1]))

    def cut(self, model: nn.Module, own: range, *, first: bool, last: bool) -> None:
        """What becomes of the modules of one stage."""
        tied = self.keeps_tied and last and bool(getattr(model.config, "tie_word_embeddings", False))
        for name in self.before if not (first or tied) else ():
            _put(model, join(self.path, name), _Missing())
        layers = model.get_submodule(join(self.path, self.stack))
        assert isinstance(layers, nn.ModuleList)
        for number in range(len(layers)):
            if number not in own:
                layers[number] = _Missing()
        for name in self.after if not last else ():
            _put(model, join(self.path, name), _Missing())


class _Missing(nn.Module):
    """Source: vLLM 0.32.0, `PPMissingLayer`: gives its first argument."""

    def forward(self, *args: object, **kwargs: object) -> object:
        return args[0] if args else next(iter(kwargs.values()))


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    owner, _, name = path.rpartition(".")
    setattr(model.get_submodule(owner), name, module)


def _submodule(owner: nn.Module, name: str) -> nn.Module | None:
    try:
        return owner.get_submodule(name)
    except AttributeError:
        return None


def _base_only(model: nn.Module, prefix: str) -> None:
    base = model.get_submodule(prefix)
    if base is not model:
        vars(model)["forward"] = wraps(base.forward)(lambda *args, **kwargs: base(*args, **kwargs))


def _asked_by_engine(model: nn.Module, *, first: bool) -> dict[str, torch.Tensor]:
    """Ids and positions, for a later stage what it received."""
    given = _as_received(model) if not first else {"input_ids": _ids(model)}
    form = next(iter(given.values()))
    if "position_ids" in signature(model.forward).parameters:
        given["position_ids"] = torch.empty(form.shape[:2], dtype=torch.long, device="meta")
    return given


def _ids(model: nn.Module) -> torch.Tensor:
    """Token ids, also for a forward that names none of its arguments."""
    named = example_inputs(model).get("input_ids") if attempts(model) else None
    return torch.empty((TRACED.rows, TRACED.length), dtype=torch.long, device="meta") if named is None else named


def _as_received(model: nn.Module) -> dict[str, torch.Tensor]:
    value = _ids(model)
    width: int = model.config.get_text_config().hidden_size  # type: ignore[union-attr,operator]  # a config
    dtype = next(model.parameters()).dtype
    return {"inputs_embeds": torch.empty((*value.shape[:2], width), dtype=dtype, device="meta")}


@dataclass(frozen=True, slots=True)
class _Comparison:
    dialect: Dialect
    numbers: Numbers
    stack: str
    graph: Graph
    prefix: str
    keyed: _Keyed | None = None

    def run(self, loaded: LoadedModel, depth: int, stages: int) -> Iterator[Finding]:
        """Stage by stage, what one sends being what the next receives."""
        whole = numbered(self.graph, self.numbers, stack=self.stack)
        carried: int | None = None
        for stage in range(stages):
            own, last = self._own(depth, stage, stages), stage == stages - 1
            model = build(loaded)
            if self.keyed is None:
                _cut(model, self.prefix, own, first=stage == 0, last=last)
            else:
                self.keyed.cut(model, own, first=stage == 0, last=last)
                _base_only(model, self.prefix)
            try:
                traced = trace(model, self._inputs(model, first=stage == 0))
            except TraceError as error:
                place = Place(module=error.module or None, source=error.source)
                yield be433.stage_raises(stage, self.dialect.name, str(error), place)
                return
            given = {} if carried is None else {"inputs_embeds": carried}
            ran = numbered(traced, self.numbers, stack=self.stack, own=own, given=given)
            carried = ran.number[traced.outputs[0][1]]
            wanted = _entering(self.graph, self.stack, own.stop) if not last else self.graph.outputs[0][1]
            if carried != whole.number[wanted]:
                yield _differs(self.dialect, stage, whole, ran, wanted)
                return

    def _own(self, depth: int, stage: int, stages: int) -> range:
        if self.keyed is not None:
            return self.keyed.own(depth, stage, stages)
        return range(stage * (depth // stages), depth if stage == stages - 1 else (stage + 1) * (depth // stages))

    def _inputs(self, model: nn.Module, *, first: bool) -> dict[str, torch.Tensor]:
        if self.keyed is not None:
            return _asked_by_engine(model, first=first)
        return example_inputs(model) if first else _as_received(model)


def _cut(model: nn.Module, prefix: str, own: range, *, first: bool, last: bool) -> None:
    """What `apply_pipeline_parallelism` does to the modules of one stage."""
    base = model.get_submodule(prefix)
    layers = base.layers
    assert isinstance(layers, nn.ModuleList)
    if not first and not (last and getattr(model.config, "tie_word_embeddings", False)):
        base.embed_tokens = PipelineIdentityLayer()
    for number in range(len(layers)):
        if number not in own:
            layers[number] = PipelineIdentityLayer()
    if not last:
        base.norm = PipelineIdentityLayer()
        model.lm_head = PipelineIdentityLayer()
        vars(model)["forward"] = wraps(base.forward)(lambda *args, **kwargs: base(*args, **kwargs))


def _entering(graph: Graph, stack: str, layer: int) -> int:
    """The hidden states that a layer is given: its first tensor."""
    return next(call.arguments[0][1] for call in graph.calls if call.module == f"{stack}.{layer}")


def _differs(dialect: Dialect, stage: int, whole: Numbered, ran: Numbered, wanted: int) -> Finding:
    """What the stage does that the whole program does not, else what it does not that the whole program does."""
    more = first_new(ran, ran.graph.outputs[0][1], whole)
    op = more or first_new(whole, wanted, ran)
    return be433.stage_differs(stage, dialect.name, op, more=more is not None)
