"""`check`: does a model keep to the contract of each client? Everything but the numerical comparison."""

from collections.abc import Iterator, Sequence
from time import perf_counter

from torch import nn
from transformers import PreTrainedModel

from shardproof.planner.ir.findings import Finding, Place, as_written
from shardproof.planner.ir.plan import Plan
from shardproof.planner.loading.carried_plan import base_prefix, carried_plan
from shardproof.planner.loading.load import LoadedModel, load
from shardproof.planner.tracing.programs import Subject, on_meta, subject_of
from shardproof.planner.tracing.trace import TraceError
from shardproof.verify.clients.contract.attention import attention_modules, check_attention
from shardproof.verify.clients.contract.config import check_base_class, check_folder, check_places
from shardproof.verify.clients.contract.facts import ContractFacts
from shardproof.verify.clients.contract.heads import check_heads
from shardproof.verify.clients.contract.keywords import lost_keywords
from shardproof.verify.clients.contract.masks import check_masks
from shardproof.verify.clients.contract.processor import (
    check_processor,
    check_processor_class,
    made_processor,
    processor_class,
)
from shardproof.verify.clients.contract.served import check_served
from shardproof.verify.clients.contract.windows import check_windows
from shardproof.verify.clients.dialect import Dialect, Pipeline, Reader
from shardproof.verify.clients.prove import prove_for
from shardproof.verify.clients.registry import find_dialect
from shardproof.verify.clients.stages.keyed import check_keyed_stages
from shardproof.verify.clients.stages.pipeline_keys import check_stages
from shardproof.verify.findings import tp210
from shardproof.verify.report.environment import environment
from shardproof.verify.report.report import LevelResult, Report


def check(
    model: LoadedModel | str,
    plan: Plan | None = None,
    *,
    clients: Sequence[str] = ("transformers", "vllm", "sglang", "tgi", "torchtitan"),
) -> Report:
    """Check a model against the contract of each client: one level for each client, findings BE4xx and those of the plan's form.

    Args:
        model: a loaded model or a reference to one.
        plan: the plan to be read in each dialect; by default the one that the model carries.
        clients: names of clients, with a version or without (`vllm@0.24`).

    Raises:
        ArgumentError: a client that is not known.
        LoadError: the reference names no model.
    """
    dialects = [find_dialect(name) for name in clients]
    loaded = load(model) if isinstance(model, str) else model
    built = on_meta(loaded)
    given = plan if plan is not None else carried_plan(loaded, built)
    subject, untraced = _traced(built)
    common = _common(loaded)
    levels = [_level(dialect, loaded, built, subject, given, (*common, *untraced)) for dialect in dialects]
    return Report(loaded.title, tuple(levels), environment())


def _traced(model: nn.Module) -> tuple[Subject | None, tuple[Finding, ...]]:
    try:
        return subject_of(model), ()
    except TraceError as error:
        place = Place(module=error.module or None, source=error.source)
        return None, (tp210.attention_not_searched(str(error), place),)


def _common(loaded: LoadedModel) -> tuple[Finding, ...]:
    """Findings of the config and the processor, the same for every client."""
    found = check_folder(loaded.checkpoint) if loaded.checkpoint is not None else []
    found += check_places(loaded.model_class, loaded.config)
    made = made_processor(loaded)
    if made is not None:
        return (*found, *check_processor(made))
    kind = processor_class(loaded.config)
    return (*found, *(check_processor_class(kind) if kind is not None else ()))


def _level(
    dialect: Dialect,
    loaded: LoadedModel,
    built: nn.Module,
    subject: Subject | None,
    plan: Plan,
    common: tuple[Finding, ...],
) -> LevelResult:
    began = perf_counter()
    prefix = base_prefix(built)
    asked = _of_the_contract(dialect.contract, loaded, built, subject) if dialect.contract is not None else ()
    found = [*common, *asked]
    found += _of_the_plan(dialect, loaded, plan, subject)
    written = tuple(as_written(finding, prefix) for finding in _once(found))
    return LevelResult(f"contract with {dialect.name}", perf_counter() - began, written)


def _of_the_contract(
    contract: ContractFacts, loaded: LoadedModel, built: nn.Module, subject: Subject | None
) -> Iterator[Finding]:
    """What a client asks of modeling code; without a traced `subject`, only what can be read from the source."""
    prefix = base_prefix(built)
    decoder = _decoder(built, prefix)
    paths = [path for path in attention_modules(built) if not decoder or path.startswith(f"{decoder}.")]
    yield from lost_keywords(built, paths, "" if contract.calls_head else prefix, contract.keywords)
    if not contract.own_attention:
        return
    graph = subject.graph if subject is not None else None
    yield from check_attention(built, graph, paths, contract, decoder)
    if graph is not None:
        yield from check_masks(built, graph, decoder, contract.client)
    if graph is not None and contract.attention_from_config:
        yield from check_windows(built, graph, decoder)
        yield from check_heads(built, graph, paths)
    yield from check_served(built, graph, prefix, contract)
    if contract.uses_auto_model:
        yield from check_base_class(loaded.config, contract.client)


def _decoder(model: nn.Module, prefix: str) -> str:
    """The path of the language model: engines replace attention only there, not in vision and audio towers."""
    base = model.get_submodule(prefix)
    text = base.get_decoder() if isinstance(base, PreTrainedModel) else base
    return next((path for path, module in model.named_modules() if module is text), prefix)


def _of_the_plan(dialect: Dialect, loaded: LoadedModel, plan: Plan, subject: Subject | None) -> tuple[Finding, ...]:
    """Findings of the plan at two ranks as the client reads it, and of the stages where the client makes them by the plan's
    keys.
    """
    found: tuple[Finding, ...] = ()
    # A model without a plan keeps to the contract: `plan suggest` writes one.
    if plan.tp or plan.head_tp or dialect.reader is Reader.NAMES:
        found += prove_for(dialect, loaded, plan, tp=2, subject=subject).findings
    if subject is not None and _makes_stages(dialect, plan):
        told = check_stages(dialect, subject, plan)
        found += told or check_keyed_stages(dialect, loaded, plan, 2)
    return found


def _makes_stages(dialect: Dialect, plan: Plan) -> bool:
    """Whether the client would make stages of the model as it is."""
    return dialect.pipeline is Pipeline.KEYS_OR_ORDER or (dialect.pipeline is Pipeline.KEYS and bool(plan.pp))


def _once(findings: Sequence[Finding]) -> list[Finding]:
    return list({(f.code, f.message, str(f.place)): f for f in findings}.values())
