"""Prove a plan for one client: as the client reads it, by the same rules as any plan."""

from dataclasses import replace
from time import perf_counter

from torch import nn

from shardproof.planner.ir.errors import ArgumentError
from shardproof.planner.ir.findings import Finding, Place, Severity, as_written
from shardproof.planner.ir.placement import R, Shard
from shardproof.planner.ir.plan import Plan, generic
from shardproof.planner.loading.carried_plan import base_prefix
from shardproof.planner.loading.configs.config_fields import field_of
from shardproof.planner.loading.load import LoadedModel
from shardproof.planner.propagation.forward.propagate import Propagation
from shardproof.planner.tracing.programs import Subject, on_meta, subject_of
from shardproof.planner.tracing.recorded_run import TraceError
from shardproof.verify.clients.deepspeed.uneven_heads import dealt_subjects
from shardproof.verify.clients.dialect import Dialect, Pipeline, Reader
from shardproof.verify.clients.nemo.heads import with_local_heads
from shardproof.verify.clients.nemo.plan_choice import choose
from shardproof.verify.clients.reading import Reading, read
from shardproof.verify.clients.stages.keyed import check_keyed_stages
from shardproof.verify.clients.stages.pipeline_keys import check_stages
from shardproof.verify.clients.transformers.even_stages import check_even_stages
from shardproof.verify.clients.vllm.gathered_norms import with_gathered_norm
from shardproof.verify.findings import be414, be415
from shardproof.verify.proof.plan_form import check_plan
from shardproof.verify.proof.prove import not_traced
from shardproof.verify.proof.tensor import check_relation, relate
from shardproof.verify.report.report import LevelResult


def prove_for(
    dialect: Dialect, loaded: LoadedModel, plan: Plan, *, tp: int = 2, pp: int = 1, subject: Subject | None = None
) -> LevelResult:
    """Prove or refute a plan at a layout, as one client reads it; `subject` is the traced model, where there is one.

    Raises:
        ValueError: a degree is below 1.
        LoadError: the model cannot be built.
    """
    if tp < 1 or pp < 1:
        raise ArgumentError(f"a degree is at least 1, got tp {tp}, pp {pp}.")
    started = perf_counter()
    built = subject.model if subject is not None else on_meta(loaded)
    findings = _findings(dialect, loaded, built, subject, plan, tp, pp)
    prefix = base_prefix(built)
    return LevelResult("proof", perf_counter() - started, tuple(as_written(finding, prefix) for finding in findings))


def _findings(
    dialect: Dialect, loaded: LoadedModel, built: nn.Module, subject: Subject | None, plan: Plan, tp: int, pp: int
) -> tuple[Finding, ...]:
    form = check_plan(built, plan, tp) if dialect.reader is Reader.TRANSFORMERS else ()
    refused = _degree_refused(dialect, loaded, tp)
    if refused or any(finding.severity is Severity.ERROR for finding in form):
        return form + refused
    repeated = _with_repeated_heads(dialect, loaded, tp)
    if subject is None or repeated is not None:
        model = built if repeated is None else on_meta(repeated)
        try:
            subject = subject_of(model)
        except TraceError as error:
            return (*form, not_traced(error))
    stages = check_stages(dialect, subject, plan) if pp > 1 else ()
    if pp > 1 and dialect.pipeline is Pipeline.EVEN:
        stages += check_even_stages(dialect, loaded, pp)
    elif (
        pp > 1
        and dialect.pipeline in (Pipeline.KEYS, Pipeline.KEYS_OR_ORDER)
        and not any(finding.severity is Severity.ERROR for finding in stages)
    ):
        stages += check_keyed_stages(dialect, loaded, plan, pp)
    return form + (_at_degree(dialect, loaded, subject, plan, tp) if tp > 1 else ()) + stages


def _at_degree(dialect: Dialect, loaded: LoadedModel, subject: Subject, plan: Plan, tp: int) -> tuple[Finding, ...]:
    """Findings of the ranks' programs; DeepSpeed may give ranks different numbers of heads, and so different programs."""
    if dialect.reader is Reader.NEMO:
        styles = choose(dialect, subject.model, subject.prefix, plan).styles
        return _of_ranks(dialect, with_local_heads(subject, styles, tp), plan, tp)
    if dialect.reader is not Reader.DEEPSPEED:
        return _of_ranks(dialect, subject, plan, tp)
    reading = read(dialect, subject, plan, tp)
    if reading.settled:
        return reading.findings
    dealt = dealt_subjects(loaded, subject, reading.assigned, tp, client=dialect.name)
    if isinstance(dealt, Finding):
        return (*reading.findings, dealt)
    found = (finding for each in dealt for finding in _of_ranks(dialect, each, plan, tp))
    return tuple(dict.fromkeys(found))


def _of_ranks(dialect: Dialect, subject: Subject, plan: Plan, tp: int) -> tuple[Finding, ...]:
    reading = read(dialect, subject, plan, tp)
    if reading.settled:
        return reading.findings
    by_torch = dialect.reader in (Reader.MODULES, Reader.NEMO, Reader.NAMES)
    distributed = by_torch or dialect.reader is Reader.TRANSFORMERS
    assigned = reading.assigned
    ran = relate(subject, assigned, tp, distributed=distributed, by_torch=by_torch)
    while not isinstance(ran, Propagation) and dialect.gathers_norms:
        more = with_gathered_norm(subject, assigned, ran)
        if more is None:
            break
        assigned, ran = more, relate(subject, more, tp, distributed=distributed, by_torch=by_torch)
    if not isinstance(ran, Propagation):
        return reading.findings + tuple(_in_words_of(dialect, reading, finding) for finding in ran)
    heads = _local_heads(dialect, subject, ran) if dialect.local_heads else ()
    # Gradients matter only for a client that trains.
    rest = check_relation(subject, ran, assigned) if dialect.hooks_gradients or not heads else ()
    ignored = _OF_GRADIENTS if not dialect.hooks_gradients else () if distributed else ("TP217",)
    return reading.findings + heads + tuple(finding for finding in rest if finding.code not in ignored)


_OF_GRADIENTS = ("TP207", "TP208", "TP217")
"""Codes of gradients, for clients that train alone; the last, for those that train with distributed tensors."""


def _in_words_of(dialect: Dialect, reading: Reading, finding: Finding) -> Finding:
    """A finding, with the style that the client gives the module by itself where it does."""
    style = reading.without_plan.get(finding.place.module or "")
    if style is None:
        return finding
    return replace(finding, why=f"{finding.why} ({dialect.name} makes this module {style} by itself)")


def _degree_refused(dialect: Dialect, loaded: LoadedModel, tp: int) -> tuple[Finding, ...]:
    """BE414 where head counts do not divide: of query heads always, of key-value heads unless the client repeats them."""
    if tp == 1 or not dialect.local_heads:
        return ()
    text = loaded.config.get_text_config()
    if text.model_type in dialect.whole_attention:
        return ()
    heads = field_of(text, "num_attention_heads")
    kv = field_of(text, "num_key_value_heads") or heads
    if not isinstance(heads, int) or not isinstance(kv, int):
        return ()
    repeated = dialect.repeats_kv and kv < tp and tp % kv == 0
    # TGI and vLLM up to 0.25 keep a single key-value head whole; SGLang divides it.
    single = kv == 1 and dialect.client != "sglang"
    for name, count in (("query", heads), ("key-value", kv)):
        if count % tp and not (name == "key-value" and (repeated or single)):
            cite = dialect.cites[0]
            return (be414.heads_do_not_divide(name, count, degree=tp, client=dialect.name, cite=cite),)
    return ()


def _with_repeated_heads(dialect: Dialect, loaded: LoadedModel, tp: int) -> LoadedModel | None:
    """The model with key-value heads repeated until there is one for each rank; None where the client does not repeat them.

    Both models compute the same: a group of query heads becomes several groups that share a copy of their key-value head.
    """
    config = loaded.config
    kv = field_of(config.get_text_config(), "num_key_value_heads")
    if not dialect.repeats_kv or not isinstance(kv, int) or kv >= tp or kv == 0 or tp % kv:
        return None
    kept: dict[int, LoadedModel] = vars(loaded).setdefault("_with_repeated_heads", {})
    if tp not in kept:
        changed = type(config).from_dict(config.to_dict())
        changed.get_text_config().num_key_value_heads = tp
        changed._attn_implementation = config._attn_implementation
        kept[tp] = replace(loaded, config=changed)
    return kept[tp]


def _local_heads(dialect: Dialect, subject: Subject, ran: Propagation) -> tuple[Finding, ...]:
    """Findings of attention whose query, key or value is not this rank's heads, though the client reshapes it as if it were."""
    found: dict[str, Finding] = {}
    config = getattr(subject.model, "config", None)
    whole = config is not None and config.get_text_config().model_type in dialect.whole_attention
    for pair in ran.pairs:
        if pair.local.target != "attention" or pair.whole is None:
            continue
        for name, number in zip(("query", "key", "value"), pair.local.inputs, strict=False):
            placement = ran.placements.get(number, R)
            wanted = R if whole else Shard(1)
            single = ran.local.values[number].shape[1] == 1 and name != "query" and not whole
            if placement != wanted and not single:
                op, given = pair.local, str(placement)
                place = Place(module=op.module, source=op.source)
                finding = be415.heads_not_local(name, place, placement=given, whole=whole, client=dialect.name)
                found.setdefault(generic(op.module), finding)
    return tuple(found.values())
