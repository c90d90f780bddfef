"""The stages that engines make by the plan's keys: one list of layers is dealt out, other modules are on the first or last stage.

Source: vLLM 0.32.0, `vllm/model_executor/models/transformers/base.py`, `pipeline_parallel`; SGLang 0.5.23 does the same. Such an
engine runs the base model alone; the head is its own.
"""

from dataclasses import dataclass, replace

import torch
from torch import nn

from shardproof.planner.ir.findings import Fault, Finding, Severity
from shardproof.planner.ir.plan import Plan, join
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import base_prefix
from shardproof.planner.loading.load import LoadedModel
from shardproof.planner.tracing.trace import trace
from shardproof.verify.clients.dialect import Dialect, Pipeline
from shardproof.verify.clients.stages.runtime import compare_stages, engine_inputs, run_base_only
from shardproof.verify.findings import be433
from shardproof.verify.proof.pipeline import check_pp


def check_keyed_stages(dialect: Dialect, loaded: LoadedModel, plan: Plan, stages: int) -> tuple[Finding, ...]:
    """Finding BE433 where a stage's program is not its part of the whole program; only the first such stage is reported.

    Nothing is found where the client makes no stages of the model (`check_stages` says why).
    """
    model = build(loaded)
    prefix = base_prefix(model)
    owner, names = keys_of(dialect, model, plan)
    lists = [name for name in names if isinstance(_submodule(owner, name), nn.ModuleList)]
    if len(lists) != 1 or loaded.config.is_encoder_decoder:
        return ()
    path = next(path for path, module in model.named_modules() if module is owner)
    stack, at = join(path, lists[0]), names.index(lists[0])
    runtime = KeyedSplit(
        path, tuple(names[:at]), lists[0], tuple(names[at + 1 :]), keeps_tied=dialect.keeps_tied, prefix=prefix
    )
    right = not any(f.severity is Severity.ERROR for f in check_pp(model, trace(model), plan)) if plan.pp else True
    depth, count = len(model.get_submodule(stack)), loaded.config.get_text_config().num_hidden_layers  # type: ignore[arg-type]  # a list
    if count > depth:
        return (be433.layers_miscounted(dialect.name, stack, depth=depth, count=count),)
    run_base_only(model, prefix)
    graph = trace(model, engine_inputs(model, first=True))
    found = compare_stages(runtime, dialect.name, loaded, graph, stack=stack, depth=count, stages=stages)
    return tuple(found if right else (replace(finding, fault=Fault.PLAN) for finding in found))


def keys_of(dialect: Dialect, model: nn.Module, plan: Plan) -> tuple[nn.Module, list[str]]:
    """The module that a client's keys are names in, and the keys.

    Without a pipeline plan, some clients use the children of the decoder that have parameters, in order of declaration (vLLM
    0.32.0, `pipeline_parallel`).
    """
    base = model.get_submodule(base_prefix(model))
    if plan.pp or dialect.pipeline is not Pipeline.KEYS_OR_ORDER:
        return base, [entry.module for entry in plan.pp]
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else base  # type: ignore[operator]  # a PreTrainedModel
    owner = decoder if isinstance(decoder, nn.Module) else base
    return owner, [name for name, child in owner.named_children() if next(child.parameters(), None) is not None]


@dataclass(frozen=True, slots=True)
class KeyedSplit:
    """An engine's cuts by keys, which are names in the module at `path`; the base model is at `prefix`.

    Modules `before` go to the first stage, the list `stack` is dealt out, modules `after` go to the last stage.
    """

    path: str
    before: tuple[str, ...]
    stack: str
    after: tuple[str, ...]
    keeps_tied: bool
    prefix: str = ""

    def own(self, count: int, stage: int, stages: int) -> range:
        """Source: vLLM 0.32.0, `get_pp_indices`: a remainder goes to the stages before the last, from behind."""
        sizes = [count // stages] * stages
        for place in range(2, count % stages + 2):
            sizes[-place] += 1
        return range(sum(sizes[:stage]), sum(sizes[: stage + 1]))

    def cut(self, model: nn.Module, own: range, *, first: bool, last: bool) -> None:
        """Put a placeholder in the place of every module that the stage lacks, and run the base model alone."""
        tied = self.keeps_tied and last and bool(getattr(model.config, "tie_word_embeddings", False))
        for name in self.before if not (first or tied) else ():
            _put(model, join(self.path, name), _MissingLayer())
        layers = model.get_submodule(join(self.path, self.stack))
        assert isinstance(layers, nn.ModuleList)
        for number in range(len(layers)):
            if number not in own:
                layers[number] = _MissingLayer()
        for name in self.after if not last else ():
            _put(model, join(self.path, name), _MissingLayer())
        run_base_only(model, self.prefix)

    def inputs(self, model: nn.Module, *, first: bool) -> dict[str, torch.Tensor]:
        """Token ids or received hidden states, and positions."""
        return engine_inputs(model, first=first)


class _MissingLayer(nn.Module):
    """Returns its first argument. Source: vLLM 0.32.0, `PPMissingLayer`."""

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
