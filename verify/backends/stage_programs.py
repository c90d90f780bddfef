"""The stages of Transformers' own pipeline runtime, each traced with its placeholders, against the whole program.

Source: Transformers 5.23.0, `distributed/pipeline_parallel.py`, `apply_pipeline_parallelism`: whatever the plan says, `layers` of
the base model is split evenly, the rest to the last stage; `embed_tokens`, `norm`, `lm_head` and layers that a stage does not
own become identities; what a stage receives is given to the model as `inputs_embeds`, so all else of its forward runs again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import wraps

import torch
from torch import nn
from transformers.distributed.pipeline_parallel import PipelineIdentityLayer

from planner.frontend.inputs import example_inputs
from planner.frontend.load import Loaded, base_prefix, build
from planner.frontend.trace import TraceError, trace
from planner.ir.findings import Fault, Finding, Place, Severity
from planner.ir.graph import Graph, Op
from planner.ir.numbering import Numbered, Numbers, numbered
from planner.ir.plan import join
from verify.backends.dialect import Dialect


def check_even_stages(dialect: Dialect, loaded: Loaded, stages: int) -> tuple[Finding, ...]:
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
        return (_refused(dialect, found),)
    comparison = _Comparison(dialect, Numbers(), join(prefix, "layers"), trace(model), prefix)
    return tuple(comparison.run(loaded, len(layers), stages))


@dataclass(frozen=True, slots=True)
class _Comparison:
    dialect: Dialect
    numbers: Numbers
    stack: str
    graph: Graph
    prefix: str

    def run(self, loaded: Loaded, depth: int, stages: int) -> Iterator[Finding]:
        """Stage by stage, what one sends being what the next receives."""
        whole = numbered(self.graph, self.numbers, stack=self.stack)
        carried: int | None = None
        for stage in range(stages):
            own = range(stage * (depth // stages), depth if stage == stages - 1 else (stage + 1) * (depth // stages))
            model = build(loaded)
            _cut(model, self.prefix, own, first=stage == 0, last=own.stop == depth)
            try:
                traced = trace(model, self._inputs(model, first=stage == 0))
            except TraceError as error:
                yield _crashes(self.dialect, stage, error)
                return
            given = {} if carried is None else {"inputs_embeds": carried}
            ran = numbered(traced, self.numbers, stack=self.stack, own=own, given=given)
            carried = ran.number[traced.outputs[0][1]]
            wanted = _entering(self.graph, self.stack, own.stop) if own.stop < depth else self.graph.outputs[0][1]
            if carried != whole.number[wanted]:
                yield _differs(self.dialect, stage, whole, ran, wanted)
                return

    def _inputs(self, model: nn.Module, *, first: bool) -> dict[str, torch.Tensor]:
        ids = example_inputs(model)
        if first:
            return ids
        value = next(iter(ids.values()))
        width: int = model.config.get_text_config().hidden_size  # type: ignore[union-attr,operator]  # a config
        dtype = next(model.parameters()).dtype
        return {"inputs_embeds": torch.empty((*value.shape[:2], width), dtype=dtype, device="meta")}


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


def _ancestors(graph: Graph, value: int) -> set[int]:
    """The positions of the ops that a value comes from."""
    found, wanted = set[int](), {value}
    for position in range(len(graph.ops) - 1, -1, -1):
        op = graph.ops[position]
        if not wanted.isdisjoint(op.outputs):
            found.add(position)
            wanted.update(op.inputs)
    return found


def _new(one: Numbered, value: int, other: Numbered) -> Op | None:
    """The first op outside the layers that one program's value comes from, and that the other program does not run."""
    known, ancestors = set(other.number.values()), _ancestors(one.graph, value)
    return next((one.graph.ops[at] for number, at in one.made.items() if at in ancestors and number not in known), None)


def _differs(dialect: Dialect, stage: int, whole: Numbered, ran: Numbered, wanted: int) -> Finding:
    """What the stage does that the whole program does not, else what it does not that the whole program does."""
    more = _new(ran, ran.graph.outputs[0][1], whole)
    op = more or _new(whole, wanted, ran)
    what = (
        "gives another value"
        if op is None
        else f"{'applies' if more else 'does not apply'} {op.target} of {op.module or 'the model'}"
    )
    return Finding(
        "BE433",
        Severity.ERROR,
        f"stage {stage} of {dialect.name} {what}{' to what it received' if more and stage else ''}.",
        Place(module=op.module or None if op else None, source=op.source if op else None),
        why="each stage runs the model's whole forward, with only embed_tokens, norm, lm_head and layers replaced",
        found=op.target if op and more else "not run",
        needed="the whole program's part, every op of it once",
        fault=Fault.CLIENT,
    )


def _crashes(dialect: Dialect, stage: int, error: TraceError) -> Finding:
    return Finding(
        "BE433",
        Severity.ERROR,
        f"stage {stage} of {dialect.name} raises: {error}",
        Place(module=error.module or None, source=error.source),
        why="the model's forward meets an identity where it expects its own module, or no token ids",
        found=str(error).partition(":")[0],
        needed="a forward that runs with identities in the place of absent modules",
        fault=Fault.CLIENT,
    )


def _refused(dialect: Dialect, found: str) -> Finding:
    return Finding(
        "BE433",
        Severity.ERROR,
        f"{dialect.name} makes no stages of this model: {found}.",
        why="its runtime splits the list `layers` of the base model",
        found=found,
        needed="a base model with its layers under that name, at least one a stage",
        fault=Fault.CLIENT,
    )
