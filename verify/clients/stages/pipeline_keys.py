"""How engines read a pipeline plan: keys and their order, one list of layers; all other modules are on every stage.

Source: `pipeline_parallel` of vLLM 0.24.0 to 0.32.0 (`vllm/model_executor/models/transformers/base.py`) and of SGLang 0.5.23
(`sglang/srt/models/transformers.py`). A later stage gets the hidden states as `inputs_embeds` and runs the whole forward
of the base model again, with the modules that it does not own replaced by identities.
"""

from collections.abc import Iterable

from torch import nn

from shardproof.planner.ir.dataflow import ops_between
from shardproof.planner.ir.findings import Finding
from shardproof.planner.ir.graph import Graph, Op
from shardproof.planner.ir.plan import Plan, join
from shardproof.planner.tracing.programs import Subject
from shardproof.verify.clients.dialect import Dialect, Pipeline
from shardproof.verify.clients.stages.keyed import keys_of
from shardproof.verify.findings import be431, be432

_SAME = ("aten.dropout", "aten._to_copy", "aten.alias", "aten.view", "aten.contiguous", "aten.clone")
"""Ops that do not change a value in a served model."""


def check_stages(dialect: Dialect, subject: Subject, plan: Plan) -> tuple[Finding, ...]:
    """Findings BE431 to BE433 of a pipeline plan in a dialect."""
    if dialect.pipeline is Pipeline.NONE:
        return (be431.no_pipelines(dialect.name, dialect.cites[0]),)
    if dialect.pipeline not in (Pipeline.KEYS, Pipeline.KEYS_OR_ORDER):
        return ()
    owner, keys = keys_of(dialect, subject.model, plan)
    if not keys:
        return (be431.no_pipeline_plan(dialect.name, dialect.cites[0]),)
    modules = dict(owner.named_modules())
    missing = [key for key in keys if key not in modules]
    stacks = [key for key in keys if isinstance(modules.get(key), nn.ModuleList)]
    if missing or len(stacks) != 1:
        found = f"no module {missing[0]}" if missing else f"{len(stacks)} module lists"
        return (be431.keys_do_not_fit(dialect.name, dialect.cites[0], found),)
    position = keys.index(stacks[0])
    inside = next(path for path, module in subject.model.named_modules() if module is owner)
    return tuple(_of_the_path(dialect, subject, inside, keys[:position], stacks[0], keys[position + 1 :]))


def _of_the_path(
    dialect: Dialect, subject: Subject, inside: str, before: list[str], stack: str, after: list[str]
) -> Iterable[Finding]:
    """BE432 for the way from the embeddings to the layers, and from the layers to the output; keys are names in `inside`."""
    graph, prefix = subject.graph, subject.prefix
    layers = [call for call in graph.calls if call.module.rpartition(".")[0] == join(inside, stack)]
    base = next((call for call in graph.calls if call.module == prefix), None)
    if not layers or base is None:
        return
    first, last = layers[0], layers[-1]
    embedding = subject.model.get_submodule(prefix).get_input_embeddings()  # type: ignore[operator]  # a PreTrainedModel
    paths = {id(module): path for path, module in subject.model.named_modules()}
    embedded = next((c.outputs[0] for c in graph.calls if c.module == paths.get(id(embedding), "?")), None)
    if embedded is not None and first.arguments:
        owned = [join(inside, key) for key in before]
        for op in _changing(graph, embedded, first.arguments[0][1], owned):
            yield be432.done_before_layers(dialect.name, op)
            break
    if last.outputs and base.outputs:
        owned = [join(inside, key) for key in after]
        for op in _changing(graph, last.outputs[0], base.outputs[0], owned):
            yield be432.done_after_layers(dialect.name, op)
            break


def _changing(graph: Graph, start: int, end: int, owned: list[str]) -> list[Op]:
    """Ops between two values that change the value and are in none of the modules `owned`, in order."""
    return [
        op
        for op in ops_between(graph, start, end)
        if op.target not in _SAME and not any(op.module == path or op.module.startswith(f"{path}.") for path in owned)
    ]
