"""How one client reads a plan: the effective layout, and findings for entries that have no effect or another one."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from transformers import PreTrainedModel

from shardproof.planner.ir.findings import Finding, Place, Severity
from shardproof.planner.ir.graph import Graph, Module, Op
from shardproof.planner.ir.placement import Placement
from shardproof.planner.ir.plan import Plan, generic, join
from shardproof.planner.ir.styles import STYLES, After, ParameterLayout, Style, style_of
from shardproof.planner.propagation.assign import Assigned, assign, sharded_share
from shardproof.planner.tracing.programs import Subject
from shardproof.planner.transformers_facts.version import minor_text
from shardproof.verify.clients.contract.served import head_op
from shardproof.verify.clients.deepspeed.layout import layout_of, styles_read
from shardproof.verify.clients.dialect import Dialect, Reader, UnknownStyle, first_match
from shardproof.verify.clients.engine_decisions import (
    doubtful_shared_experts,
    embedding_of,
    engine_styles,
    is_expert,
    sinks,
)
from shardproof.verify.clients.nemo.heads import refused_heads
from shardproof.verify.clients.nemo.layout import layout_of as layout_of_nemo
from shardproof.verify.clients.nemo.plan_choice import choose
from shardproof.verify.clients.torchtitan.attribute_names import (
    NAMES,
    layout_by_names,
    missing_name,
    replaced_experts,
    summed_biases,
)
from shardproof.verify.clients.vllm.fusers import is_linear, not_followed
from shardproof.verify.clients.widths import uneven, uneven_inputs
from shardproof.verify.findings import be409, be411, be412, be413, be416, be417, tp205, tp210


@dataclass(frozen=True, slots=True)
class Reading:
    """The effective layout of a plan for a client; `without_plan` are the styles that the client gives modules by itself."""

    assigned: Assigned
    findings: tuple[Finding, ...] = ()
    without_plan: Mapping[str, str] = field(default_factory=dict)

    @property
    def settled(self) -> bool:
        """Whether nothing is left to prove: the client refuses the plan, or does what is not modelled."""
        return any(finding.severity is not Severity.WARNING for finding in self.findings)


def read(dialect: Dialect, subject: Subject, plan: Plan, degree: int) -> Reading:
    """What a client does with a plan at a degree, with findings BE411 to BE417."""
    unknown = _unknown_styles(dialect, subject, plan)
    if any(finding.severity is Severity.ERROR for finding in unknown):
        return Reading(Assigned({}, {}), tuple(unknown))
    match dialect.reader:
        case Reader.TRANSFORMERS:
            styles = plan.styles(subject.prefix)
            return Reading(assign(subject.graph, styles, base_prefix=subject.prefix), tuple(unknown))
        case Reader.ENGINE:
            return _engine(dialect, subject, plan, degree, unknown)
        case Reader.DEEPSPEED:
            styles = styles_read(subject.model, subject.prefix, plan)
            if not styles and degree > 1:
                return Reading(Assigned({}, {}), (be417.heuristic_not_modelled(dialect.name),))
            layout = layout_of(dialect, subject.model, subject.graph, styles)
            return Reading(_laid_out(subject.graph, layout), tuple(unknown))
        case Reader.MODULES:
            return _by_modules(dialect, subject, plan, degree)
        case Reader.NEMO:
            return _nemo(dialect, subject, plan, degree)
        case Reader.NAMES:
            return _by_names(dialect, subject)


def sharded_in(dialect: Dialect, subject: Subject, plan: Plan, degree: int) -> float:
    """The share (0 to 1) of the parameter bytes that a client shards by a plan, with the experts that an engine shards by
    itself.
    """
    engine = dialect.reader is Reader.ENGINE
    assigned = read(dialect, subject, plan, degree).assigned
    return sharded_share(subject.graph, assigned, also=lambda path: engine and is_expert(subject.graph, path))


def seen_keys(dialect: Dialect, subject: Subject, plan: Plan) -> dict[str, str]:
    """The keys that a client sees, as it writes them, in its order."""
    if dialect.reads_head:
        return plan.styles(subject.prefix)
    return {f"model.{entry.pattern}": entry.style for entry in plan.tp}


def _seen_path(dialect: Dialect, subject: Subject, path: str) -> str | None:
    """A module's path as the client writes it; None for what it does not look at."""
    if dialect.reads_head:
        return path
    if not subject.prefix:
        return f"model.{path}" if path else "model"
    inside = f"{subject.prefix}."
    return f"model.{path.removeprefix(inside)}" if path.startswith(inside) else None


def _engine(dialect: Dialect, subject: Subject, plan: Plan, degree: int, findings: list[Finding]) -> Reading:
    keys = seen_keys(dialect, subject, plan)
    if not keys and dialect.needs_plan and degree > 1:
        return Reading(Assigned({}, {}), (be411.plan_required(dialect.name, dialect.cites[0]),))
    found = engine_styles(dialect, subject, degree)
    layout: dict[str, str | None] = dict(found)
    for module in subject.graph.modules:
        path = _seen_path(dialect, subject, module.path)
        if path is None or module.path in layout or is_expert(subject.graph, module.path) or not is_linear(module):
            continue
        pattern = first_match(dialect.matching, keys, path)
        layout[module.path] = dialect.effect(keys[pattern]) if pattern is not None else None
    findings += _lost_entries(dialect, subject, keys, found)
    findings += _unmatched(dialect, subject, keys)
    findings += _not_modelled(dialect, subject, found)
    findings += uneven(dialect, subject, layout, degree)
    assigned = _laid_out(subject.graph, layout)
    if dialect.cuts_sinks:
        assigned = replace(assigned, parameters={**assigned.parameters, **sinks(subject)})
    return Reading(assigned, tuple(findings), found)


def _laid_out(graph: Graph, layout: Mapping[str, str | None]) -> Assigned:
    modules: dict[str, tuple[Style, str]] = {}
    parameters: dict[str, tuple[Placement, str]] = {}
    for path, name in layout.items():
        style = style_of(name or "")
        module = graph.module_of.get(path)
        if style is None or module is None or style.name == "replicate":
            continue
        modules[path] = (style, graph.key(path))
        for local, number in module.parameters:
            parameters[join(path, local)] = (style.placement(local, len(graph.values[number].shape)), graph.key(path))
    return Assigned(modules, parameters)


def _by_modules(dialect: Dialect, subject: Subject, plan: Plan, degree: int) -> Reading:
    graph, told = subject.graph, list[Finding]()
    if dialect.reads_head:
        written = plan.styles(subject.prefix)
    else:
        written = {join(subject.prefix, entry.pattern): entry.style for entry in plan.tp}
        told += _unmatched(dialect, subject, seen_keys(dialect, subject, plan))
        warn = partial(be413.key_not_seen, client=dialect.name, cite=dialect.cites[-1], severity=Severity.WARNING)
        told += [warn(entry.pattern, entry.pattern) for entry in plan.head_tp]
    styles = {module.path: written[key] for module in graph.modules if (key := graph.key(module.path)) in written}
    if dialect.ties_styles and (tied := _tied_embeddings(subject)) is not None and tied[0] in styles:
        styles[tied[1]] = styles[tied[0]]
    layout = {path: _effect_at(dialect, graph.module_of[path], style) for path, style in styles.items()}
    unknown = {graph.key(path): (path, styles[path]) for path, effect in layout.items() if effect is None}
    if dialect.names_parameters:
        unknown |= {key: (name, written[key]) for name in graph.parameters if (key := generic(name)) in written}
    for key, (path, style) in unknown.items():
        told.append(tp210.style_of_client_not_modelled(dialect.name, style, Place(key, path)))
    if dialect.code_of:
        told.append(be417.other_code(dialect.name, minor_text()))
    return Reading(_laid_out(graph, layout), (*told, *uneven_inputs(dialect, subject, layout, degree)))


def _effect_at(dialect: Dialect, module: Module, style: str) -> str | None:
    """As `Dialect.effect`, at this module."""
    if dialect.embeddings is not None and "Embedding" in module.bases:
        return dialect.embeddings.get(style)
    return dialect.effect(style)


def _tied_embeddings(subject: Subject) -> tuple[str, str] | None:
    """The paths of the input and the output embedding, where they share a weight."""
    found = [embedding_of(subject.model, getter) for getter in ("get_input_embeddings", "get_output_embeddings")]
    if None in found or getattr(found[0], "weight", None) is not getattr(found[1], "weight", None):
        return None
    paths = {id(module): path for path, module in subject.model.named_modules()}
    given, returned = (paths.get(id(module)) for module in found)
    return (given, returned) if given is not None and returned is not None and given != returned else None


def _nemo(dialect: Dialect, subject: Subject, plan: Plan, degree: int) -> Reading:
    chosen = choose(dialect, subject.model, subject.prefix, plan)
    layout, findings = layout_of_nemo(dialect, subject.model, chosen.styles)
    told = [*chosen.findings, *findings, *refused_heads(dialect, subject.model, degree)]
    told += uneven_inputs(dialect, subject, layout, degree)
    return Reading(_laid_out(subject.graph, layout), tuple(told))


def _by_names(dialect: Dialect, subject: Subject) -> Reading:
    """A client that shards by attribute names, and reads no plan."""
    layout = layout_by_names(subject.graph)
    if dialect.names_everything and (why := missing_name(subject.model)):
        return Reading(Assigned({}, {}), (be411.no_case(dialect.name, dialect.cites[0], why),))
    if dialect.names_everything and (path := replaced_experts(subject.model)):
        return Reading(Assigned({}, {}), (be417.experts_replaced(path, dialect.name),))
    if dialect.names_everything and (op := _not_run_of_head(subject)) is not None:
        owner = type(subject.model).__name__
        told = be409.head_computes(owner, op.target, Place(source=op.source), client=dialect.name, factors=())
        return Reading(Assigned({}, {}), (told,))
    if layout is None:
        names = [name for name, _ in NAMES[1:5]]
        return Reading(Assigned({}, {}), (be411.names_unknown(dialect.name, dialect.cites[0], names),))
    biased = summed_biases(layout, subject.model)[:1] if dialect.names_everything else []
    summed = tuple(tp205.bias_on_every_rank(dialect.name, path, dialect.cites[0]) for path in biased)
    return Reading(_laid_out(subject.graph, layout), summed)


def _not_run_of_head(subject: Subject) -> Op | None:
    """What the head's forward computes beside the projection, which torchtitan 0.3.0 does by itself (`model.py`, `forward`)."""
    if not isinstance(subject.model, PreTrainedModel):
        return None
    return head_op(subject.model, subject.graph, subject.prefix, factors=())


def _unknown_styles(dialect: Dialect, subject: Subject, plan: Plan) -> list[Finding]:
    if dialect.reader in (Reader.NAMES, Reader.NEMO):
        return []
    entries = [(join(subject.prefix, e.pattern), e.style) for e in plan.tp]
    entries += [(e.pattern, e.style) for e in plan.head_tp] if dialect.reads_head else []
    refused = dialect.unknown is UnknownStyle.REFUSED
    found = []
    for pattern, style in entries:
        if (
            style in dialect.unmodelled
            or dialect.effect(style) is not None
            or (not refused and _no_loss(dialect, subject, pattern, style))
        ):
            continue
        known, cite = list(dialect.styles), dialect.cites[0]
        found.append(be411.style_unknown(style, pattern, client=dialect.name, cite=cite, refused=refused, styles=known))
    return found


def _no_loss(dialect: Dialect, subject: Subject, pattern: str, style: str) -> bool:
    """Whether ignoring an entry changes nothing: its module is no linear layer, or its style acts on gradients alone."""
    reached = any(
        is_linear(m) and generic(m.path) == pattern and not is_expert(subject.graph, m.path)
        for m in subject.graph.modules
    )
    return not reached or (not dialect.hooks_gradients and _only_gradients(style))


def _only_gradients(style: str) -> bool:
    known = STYLES.get(style)
    return known is not None and known.layout is ParameterLayout.KEEP and known.after is After.REDUCE_ROPE_GRADIENT


def _lost_entries(
    dialect: Dialect, subject: Subject, keys: Mapping[str, str], without_plan: Mapping[str, str]
) -> list[Finding]:
    """Findings of entries that another key shadows, or whose module the client shards by itself in another way."""
    found = []
    for module in subject.graph.modules:
        path = _seen_path(dialect, subject, module.path)
        own = f"model.{generic(path.removeprefix('model.'))}" if path is not None else ""
        if path is None or own not in keys or not is_linear(module) or is_expert(subject.graph, module.path):
            continue
        first = first_match(dialect.matching, keys, path)
        written, entry = keys[own], generic(module.path)
        if module.path in without_plan:
            effect = dialect.effect(written) or "replicate"
            if effect != without_plan[module.path] and without_plan[module.path] in STYLES:
                done = without_plan[module.path]
                found.append(be416.entry_not_read(entry, written=written, style=done, client=dialect.name))
        elif first != own and first is not None and keys[first] != written:
            found.append(
                be412.key_shadowed(
                    entry,
                    written,
                    first=first.removeprefix("model."),
                    style=keys[first],
                    client=dialect.name,
                    cite=dialect.cites[0],
                )
            )
    return list({finding.place.entry: finding for finding in found}.values())


def _unmatched(dialect: Dialect, subject: Subject, keys: Mapping[str, str]) -> list[Finding]:
    """Findings of keys that match the beginning of no path, which the client drops silently.

    Only a warning where Transformers finds no match either for a key of the model's own plan: it is for other configs of the
    class.
    """
    own = {str(key) for key in getattr(subject.model, "_tp_plan", None) or {}}
    carried = own - {generic(path) for path in (*subject.graph.module_of, *subject.graph.parameters)}
    paths = {_seen_path(dialect, subject, module.path) for module in subject.graph.modules} - {None}
    paths |= {_seen_path(dialect, subject, name) for name in subject.graph.parameters} - {None}
    found = []
    for pattern in keys:
        if any(first_match(dialect.matching, (pattern,), path) for path in paths if path is not None):
            continue
        key, cite = pattern.removeprefix("model."), dialect.cites[0]
        entry = join(subject.prefix, key)
        severity = Severity.WARNING if entry in carried else Severity.ERROR
        found.append(be413.key_not_seen(key, entry, client=dialect.name, cite=cite, severity=severity))
    return found


def _not_modelled(dialect: Dialect, subject: Subject, without_plan: Mapping[str, str]) -> list[Finding]:
    packed = {generic(path): path for path, style in without_plan.items() if style == "packed_qkv"}
    found = [be417.packed_projection_rewritten(path, entry, dialect.name) for entry, path in packed.items()]
    doubtful = doubtful_shared_experts(dialect, subject.graph, without_plan)
    found += [be417.shared_expert_summed(path, generic(path), dialect.name) for path in _first_alike(doubtful)]
    unknown = not_followed(subject.graph, subject.model) if dialect.fuses else {}
    return found + [be417.not_followed(path, generic(path), dialect.name, why) for path, why in unknown.items()]


def _first_alike(paths: Iterable[str]) -> list[str]:
    """One path of those that differ in the number of a layer alone."""
    return list({generic(path): path for path in reversed(list(paths))}.values())[::-1]
