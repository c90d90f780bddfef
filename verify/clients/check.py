"""`check`: does a model keep to the contract of each client? Everything but the numerical comparison."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import TypeVar

from torch import nn
from transformers import PreTrainedModel

from shardproof.planner.ir.errors import reason
from shardproof.planner.ir.findings import Finding, Place, Severity, as_written
from shardproof.planner.ir.plan import Plan
from shardproof.planner.loading.carried_plan import base_prefix, carried_plan
from shardproof.planner.loading.load import LoadedModel, load
from shardproof.planner.loading.source_lines import line_of
from shardproof.planner.tracing.programs import Subject, on_meta, subject_of
from shardproof.planner.tracing.recorded_run import TraceError
from shardproof.verify.clients.contract.attention import check_attention, check_claim, check_step
from shardproof.verify.clients.contract.config import (
    base_class,
    check_base_class,
    check_folder,
    check_made_class,
    check_parts,
    check_places,
)
from shardproof.verify.clients.contract.experiments.decode_step import OneStep
from shardproof.verify.clients.contract.experiments.engine_run import OutputFormError, gap
from shardproof.verify.clients.contract.experiments.results import EngineOutcome, ExperimentOutcome, Experiments
from shardproof.verify.clients.contract.facts import ContractFacts
from shardproof.verify.clients.contract.keywords import lost_keywords
from shardproof.verify.clients.contract.options import check_masks
from shardproof.verify.clients.contract.processor import check_processors
from shardproof.verify.clients.contract.served import check_served
from shardproof.verify.clients.contract.source import forward_tree, source_of
from shardproof.verify.clients.dialect import Dialect, Pipeline, Reader
from shardproof.verify.clients.prove import prove_for
from shardproof.verify.clients.registry import find_dialect
from shardproof.verify.clients.stages.keyed import check_keyed_stages
from shardproof.verify.clients.stages.pipeline_keys import check_stages
from shardproof.verify.findings import be418, be424, be425, tp210
from shardproof.verify.report.environment import environment
from shardproof.verify.report.report import LevelResult, Report

T = TypeVar("T")


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
    processor = check_processors(loaded)
    common = (*_common(loaded, built), *processor.found, *untraced)
    experiments = Experiments(loaded, built)
    levels = []
    for dialect in dialects:
        by_offsets = dialect.contract is not None and dialect.contract.finds_images_by_offsets
        more = processor.of_offsets if by_offsets else ()
        levels.append(_level(dialect, experiments, subject, given, (*common, *more)))
    return Report(loaded.title, tuple(levels), environment())


def check_unloadable(reference: str, *, clients: Sequence[str], trust_remote_code: bool) -> Report | None:
    """The findings of a checkpoint folder whose model cannot be loaded; None where the folder is not at fault, or is none.

    Raises:
        ArgumentError: a client that is not known.
    """
    folder = Path(reference)
    if not (folder / "config.json").is_file() or not trust_remote_code:
        return None
    began = perf_counter()
    found = tuple(check_folder(folder, trusted=True))
    names = [find_dialect(name).name for name in clients]
    levels = tuple(LevelResult(f"contract with {name}", perf_counter() - began, found) for name in names)
    return Report(folder.name, levels, environment()) if found else None


def _traced(model: nn.Module) -> tuple[Subject | None, tuple[Finding, ...]]:
    try:
        return subject_of(model), ()
    except TraceError as error:
        place = Place(module=error.module or None, source=error.source)
        return None, (tp210.attention_not_searched(str(error), place),)


def _common(loaded: LoadedModel, built: nn.Module) -> tuple[Finding, ...]:
    """Findings of the config and the classes, the same for every client."""
    found: list[Finding] = []
    if loaded.checkpoint is not None:
        found += check_folder(loaded.checkpoint, trusted=loaded.trust_remote_code)
    base = type(built.get_submodule(base_prefix(built)))
    found += check_places(loaded.model_class, base, loaded.config)
    found += check_parts(loaded.config)
    found += check_made_class(loaded, built.get_submodule(base_prefix(built)))
    return tuple(found)


def _level(
    dialect: Dialect, experiments: Experiments, subject: Subject | None, plan: Plan, common: tuple[Finding, ...]
) -> LevelResult:
    began = perf_counter()
    prefix = base_prefix(experiments.built)
    asked = _of_the_contract(dialect.contract, experiments, subject) if dialect.contract is not None else ()
    found = [*common, *asked]
    found += _of_the_plan(dialect, experiments.loaded, plan, subject)
    written = tuple(as_written(finding, prefix) for finding in _once(found))
    return LevelResult(f"contract with {dialect.name}", perf_counter() - began, written)


def _of_the_contract(contract: ContractFacts, experiments: Experiments, subject: Subject | None) -> tuple[Finding, ...]:
    """What a client asks of modeling code; without a traced `subject`, only what runs of a small model say."""
    built, loaded = experiments.built, experiments.loaded
    prefix = base_prefix(built)
    read = list(check_served(built, subject.graph if subject is not None else None, prefix, contract))
    if contract.uses_auto_model and contract.own_attention:
        read += check_base_class(loaded.config, contract.client)
    if getattr(loaded.config, "is_encoder_decoder", False):
        return tuple(read) if contract.own_attention else ()
    run = list(_of_runs(contract, experiments))
    if not contract.own_attention:
        return tuple(run)
    refused = any(finding.severity is Severity.ERROR for finding in (*read, *run))
    kept = [finding for finding in run if not (refused and finding.code == "BE424")]
    return (*kept, *read)


def _of_runs(contract: ContractFacts, experiments: Experiments) -> Iterator[Finding]:
    """Findings of the experiments: keywords, attention, masks, and the hidden states as a whole."""
    kind = base_class(experiments.loaded, experiments.built.get_submodule(base_prefix(experiments.built)))
    if contract.own_attention and (experiments.trial.found is None or experiments.alone.found is None):
        yield from check_claim(kind, None, contract, may_switch=_may_switch(experiments))
        if isinstance(experiments.alone.error, OutputFormError):
            source = Place(source=source_of(kind, forward_tree(kind)))
            yield be418.call_raises(str(experiments.alone.error), source, contract.client)
            return
        if (error := experiments.without_a_cache.found) is not None:
            yield be418.call_raises(reason(error), Place(source=line_of(error, None)), contract.client)
            return
        why = experiments.trial.reason or experiments.alone.reason
        yield be424.not_checked("the attention, the masks and the keywords", f"no small copy of the model runs: {why}")
        return
    yield from lost_keywords(experiments, contract)
    if not contract.own_attention:
        return
    yield from _not_run("the keywords", experiments.lost_keywords(contract.keywords, head=contract.calls_head))
    trial = experiments.trial.found
    assert trial is not None
    outcome = experiments.as_engine(contract)
    yield from check_claim(kind, outcome, contract, may_switch=_may_switch(experiments))
    found = list(check_attention(experiments, trial, outcome, contract))
    yield from _not_run("tokens that are mixed outside of the attention", experiments.mixing)
    if not found and outcome.calls:
        found += check_step(experiments, contract)
    if contract.is_modelled and outcome.calls:
        found += check_masks(trial, experiments.masks.found or (), contract)
    yield from found
    if contract.is_modelled and outcome.states is not None and outcome.calls and not _has_error(found):
        yield from _as_a_whole(contract, experiments, outcome)


def _not_run(what: str, outcome: ExperimentOutcome[list[T]]) -> Iterator[Finding]:
    """What an experiment that raised leaves unknown."""
    if outcome.error is not None:
        yield be424.not_checked(what, outcome.reason)


def _has_error(findings: Sequence[Finding]) -> bool:
    return any(finding.severity is Severity.ERROR for finding in findings)


def _as_a_whole(contract: ContractFacts, experiments: Experiments, outcome: EngineOutcome) -> Iterator[Finding]:
    """The hidden states of the engine's run beside those of Transformers, where nothing else explains a difference."""
    alone, trial = experiments.alone.found, experiments.trial.found
    assert alone is not None and trial is not None and outcome.states is not None
    most = trial.tolerance
    size, first = gap(outcome.states, alone), experiments.prompt.bounds[0]
    step = experiments.step.found or OneStep()
    apart = size > most and gap(outcome.states[:first], alone[:first]) <= most
    if step.size > most or apart:
        kind = type(experiments.built.get_submodule(base_prefix(experiments.built)))
        place = Place(source=step.source or source_of(kind))
        yield be418.positions_ignored(kind.__name__, place, contract.client, max(size, step.size))
    elif size > most:
        yield be425.hidden_states_differ(contract.client, size)


def _may_switch(experiments: Experiments) -> bool:
    """vLLM's second question of a model without the claim: does its file use the interface?"""
    built = experiments.built
    return isinstance(built, PreTrainedModel) and built._can_set_attn_implementation()


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
