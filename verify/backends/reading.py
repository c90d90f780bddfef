"""From a plan as it is written to what one client does with it: the effective layout, and what gets lost on the way."""

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

from torch import nn

from planner.frontend.fields import field_of
from planner.frontend.traced import Subject
from planner.ir.findings import Fault, Finding, Place, Severity
from planner.ir.graph import Graph, Module
from planner.ir.placement import Placement, Shard
from planner.ir.plan import Plan, generic, join
from planner.ir.styles import STYLES, After, Before, Layout, Style
from planner.sharding.assign import Assigned, assign, sharded_share
from verify.backends.dialect import Dialect, Reader, Unknown, first_match
from verify.backends.fused import fusions, is_linear
from verify.backends.quantised import blocks_of
from verify.backends.source import forward_tree
from verify.backends.torchtitan import NAMES, PROJECTIONS

EXPERT_WIDTHS = ("moe_intermediate_size", "intermediate_size")
"""Config fields in which engines look for the width inside an expert, the first that there is."""
GATHERED_NORM = Style("norm of the gathered input", before=Before.GATHER, after=After.SPLIT)
"""`TPAwareNormMixin` (vLLM 0.32.0, `fusers/rms_norm.py`): gathers a sharded input, normalises, keeps this rank's part."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The effective layout of a plan in a dialect; `decided` are the modules that were decided without the plan."""

    assigned: Assigned
    findings: tuple[Finding, ...] = ()
    decided: Mapping[str, str] = field(default_factory=dict)

    @property
    def settled(self) -> bool:
        """Whether there is nothing left to prove: the client refuses, or does what is not modelled."""
        return any(finding.severity is not Severity.WARNING for finding in self.findings)


def read(dialect: Dialect, subject: Subject, plan: Plan, degree: int) -> Reading:
    """What a client does with a plan at a degree; findings BE41x."""
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
            styles = plan.styles(subject.prefix)
            layout = {m.path: _planned(dialect, styles, m) for m in subject.graph.modules if is_linear(m) or _norm(m)}
            return Reading(_laid_out(subject.graph, layout), tuple(unknown))
        case Reader.NAMES:
            return _by_names(dialect, subject)


def sharded_in(dialect: Dialect, subject: Subject, plan: Plan, degree: int) -> float:
    """Share of the parameter bytes that is sharded in what a client makes of a plan; an engine shards experts by itself."""
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
        return Reading(Assigned({}, {}), (_no_plan(dialect),))
    decided = _decided(dialect, subject, degree)
    layout: dict[str, str | Style | None] = dict(decided)
    for module in subject.graph.modules:
        path = _seen_path(dialect, subject, module.path)
        if path is None or module.path in layout or is_expert(subject.graph, module.path) or not is_linear(module):
            continue
        pattern = first_match(dialect.matching, keys, path)
        layout[module.path] = dialect.effect(keys[pattern]) if pattern is not None else None
    findings += _lost_entries(dialect, subject, keys, decided)
    findings += _unmatched(dialect, subject, keys)
    findings += _not_modelled(dialect, decided)
    findings += _uneven(dialect, subject, layout, degree)
    assigned = _laid_out(subject.graph, layout)
    if dialect.cuts_sinks:
        assigned = replace(assigned, parameters={**assigned.parameters, **_sinks(subject)})
    return Reading(assigned, tuple(findings), decided)


def _sinks(subject: Subject) -> dict[str, tuple[Placement, str]]:
    """Parameters that a module's own forward passes to the attention as `s_aux=self.<name>`, cut by heads."""
    return {
        join(path, name): (Shard(0), generic(join(path, name)))
        for path, module in subject.model.named_modules()
        if module._parameters
        for name in _passed_as_sinks(type(module))  # type: ignore[arg-type]  # a class is hashable
        if module._parameters.get(name) is not None
    }


@cache
def _passed_as_sinks(kind: type[nn.Module]) -> tuple[str, ...]:
    tree = forward_tree(kind)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)] if tree is not None else []
    given = [k.value for call in calls for k in call.keywords if k.arg == "s_aux"]
    return tuple(value.attr for value in given if isinstance(value, ast.Attribute))


def _decided(dialect: Dialect, subject: Subject, degree: int) -> dict[str, str]:
    """Modules that an engine decides by itself: fused projections, the vocabulary table, the head."""
    found: dict[str, str] = {}
    head_dim, config = _head_dim(subject.model), getattr(subject.model, "config", None)
    latent = config is not None and config.get_text_config().model_type in dialect.latent_types
    kinds = tuple(kind for kind in dialect.fuses if kind != "mla" or latent)
    for fusion in fusions(subject.graph, subject.model, kinds, degree=degree, head_dim=head_dim):
        if not is_expert(subject.graph, fusion.module):
            found |= fusion.styles
    found |= {
        twin: style
        for path, style in list(found.items())
        for twin in _repeats(subject.graph, path)
        if twin not in found
    }
    paths = {id(module): path for path, module in subject.model.named_modules()}
    for getter, style in (
        ("get_input_embeddings", "embedding_rowwise"),
        ("get_output_embeddings", "colwise_gather_output"),
    ):
        module = _got(subject.model, getter)
        if module is not None and (path := paths.get(id(module))) is not None:
            found[path] = style
    return found


def _got(model: nn.Module, getter: str) -> nn.Module | None:
    try:
        found = getattr(model, getter)()
    except (AttributeError, NotImplementedError):
        return None
    return found if isinstance(found, nn.Module) else None


def _head_dim(model: nn.Module) -> int:
    config = getattr(model, "config", None)
    text = config.get_text_config() if config is not None else None
    given = field_of(text, "head_dim")
    heads, hidden = field_of(text, "num_attention_heads"), field_of(text, "hidden_size")
    if isinstance(given, int) and given:
        return given
    return hidden // heads if isinstance(heads, int) and isinstance(hidden, int) and heads else 0


def _repeats(graph: Graph, path: str) -> list[str]:
    """The same module in the layers that repeat this one's."""
    return [
        module.path + path.removeprefix(module.repeats)
        for module in graph.modules
        if module.repeats is not None and path.startswith(f"{module.repeats}.")
    ]


def is_expert(graph: Graph, path: str) -> bool:
    """Whether it lies in a module `experts` that is a list, or holds stacked weights alone: the engines run those themselves,
    whole in and whole out (vLLM `moe.py`, SGLang `MoEMixin`).
    """
    parts = path.split(".")
    for depth, part in enumerate(parts, 1):
        owner = graph.module_of.get(".".join(parts[:depth]))
        if part == "experts" and owner is not None:
            stacked = [graph.values[number].shape for _, number in owner.parameters]
            return "ModuleList" in owner.bases or (bool(stacked) and all(len(shape) == 3 for shape in stacked))
    return False


def with_gathered_norm(subject: Subject, assigned: Assigned, findings: Iterable[Finding]) -> Assigned | None:
    """The layout with one norm more that gathers its input: the one that was given a part; None where that is not the fault."""
    graph = subject.graph
    for finding in findings:
        path = finding.place.module or ""
        module = graph.module_of.get(path)
        fault = finding.code in ("TP202", "TP206") and path not in assigned.modules
        if fault and module is not None and _norm(module) and _of_mean_squares(graph, path):
            alike = {each: (GATHERED_NORM, generic(each)) for each in (path, *_repeats(graph, path))}
            return replace(assigned, modules={**assigned.modules, **alike})
    return None


def _norm(module: Module) -> bool:
    """Whether it may be a norm: a leaf with one parameter or two, all of one dim. What is done with it, its ops say."""
    return (
        0 < len(module.parameters) <= 2 and not is_linear(module) and not set(module.bases) & {"Embedding", "LayerNorm"}
    )


def _of_mean_squares(graph: Graph, path: str) -> bool:
    """Whether a norm divides by the root of the mean of squares, and takes nothing away first (`fusers/rms_norm.py`, `match`)."""
    targets = {op.target for op in graph.ops if op.module == path}
    return "rms_norm" in targets or ({"aten.mean", "aten.rsqrt"} <= targets and not targets & {"aten.sub", "aten.rsub"})


def _planned(dialect: Dialect, styles: Mapping[str, str], module: Module) -> str | None:
    pattern = first_match(dialect.matching, styles, module.path)
    return dialect.effect(styles[pattern]) if pattern is not None else None


def _laid_out(graph: Graph, layout: Mapping[str, str | Style | None]) -> Assigned:
    modules: dict[str, tuple[Style, str]] = {}
    parameters: dict[str, tuple[Placement, str]] = {}
    for path, name in layout.items():
        style = name if isinstance(name, Style) else STYLES.get(name or "")
        module = graph.module_of.get(path)
        if style is None or module is None or style.name == "replicate":
            continue
        modules[path] = (style, generic(path))
        for local, number in module.parameters:
            parameters[join(path, local)] = (style.placement(local, len(graph.values[number].shape)), generic(path))
    return Assigned(modules, parameters)


def _by_names(dialect: Dialect, subject: Subject) -> Reading:
    """torchtitan: names in a layer; what no name covers stays whole here, and is refused where it has parameters there."""
    layout: dict[str, str | Style | None] = {}
    for module in subject.graph.modules:
        style = next((s for name, s in NAMES if module.path.endswith(f".{name}")), None)
        if style is not None and is_linear(module):
            layout[module.path] = style
    paths = [module.path for module in subject.graph.modules]
    if not all(any(path.endswith(f".self_attn.{name}") for path in paths for name in names) for names in PROJECTIONS):
        return Reading(Assigned({}, {}), (_no_known_names(dialect),))
    return Reading(_laid_out(subject.graph, layout))


def _unknown_styles(dialect: Dialect, subject: Subject, plan: Plan) -> list[Finding]:
    if dialect.reader is Reader.NAMES:
        return []
    entries = [(join(subject.prefix, e.pattern), e.style) for e in plan.tp]
    entries += [(e.pattern, e.style) for e in plan.head_tp] if dialect.reads_head else []
    refused = dialect.unknown is Unknown.REFUSED
    found = []
    for pattern, style in entries:
        if dialect.effect(style) is not None or (not refused and _no_loss(dialect, subject, pattern, style)):
            continue
        found.append(
            Finding(
                "BE411",
                Severity.ERROR if refused else Severity.WARNING,
                f'{dialect.name} has no style "{style}": it is {dialect.unknown.value}.',
                Place(entry=pattern),
                why=f"a style is looked up in the client's own table ({dialect.cites[0]})",
                found=f'"{style}"',
                needed=f"one of {', '.join(dialect.styles)}",
            )
        )
    return found


def _no_loss(dialect: Dialect, subject: Subject, pattern: str, style: str) -> bool:
    """Whether a module that the client keeps whole is none the worse for it: no linear layer, or a style for gradients alone."""
    reached = any(
        is_linear(m) and generic(m.path) == pattern and not is_expert(subject.graph, m.path)
        for m in subject.graph.modules
    )
    return not reached or (not dialect.hooks_gradients and _only_gradients(style))


def _only_gradients(style: str) -> bool:
    known = STYLES.get(style)
    return known is not None and known.layout is Layout.KEEP and known.after is After.REDUCE_ROPE_GRADIENT


def _lost_entries(
    dialect: Dialect, subject: Subject, keys: Mapping[str, str], decided: Mapping[str, str]
) -> list[Finding]:
    """Entries that another key shadows, that stand where no linear layer is, or whose module is decided without them."""
    found = []
    for module in subject.graph.modules:
        path = _seen_path(dialect, subject, module.path)
        own = f"model.{generic(path.removeprefix('model.'))}" if path is not None else ""
        if path is None or own not in keys or not is_linear(module) or is_expert(subject.graph, module.path):
            continue
        first = first_match(dialect.matching, keys, path)
        written, entry = keys[own], generic(module.path)
        if module.path in decided:
            effect = dialect.effect(written) or "replicate"
            if effect != decided[module.path] and decided[module.path] in STYLES:
                found.append(_ignored(dialect, entry, written, decided[module.path]))
        elif first != own and first is not None and keys[first] != written:
            found.append(_shadowed(dialect, entry, written, first, keys[first]))
    return list({finding.place.entry: finding for finding in found}.values())


def _unmatched(dialect: Dialect, subject: Subject, keys: Mapping[str, str]) -> list[Finding]:
    """Keys that match the beginning of no module's path and no parameter's: dropped without a word. One of the model's own plan
    that Transformers finds nothing for either is for other configs of its class.
    """
    own = {str(key) for key in getattr(subject.model, "_tp_plan", None) or {}}
    carried = own - {generic(path) for path in (*subject.graph.module_of, *subject.graph.parameters)}
    paths = {_seen_path(dialect, subject, module.path) for module in subject.graph.modules} - {None}
    paths |= {_seen_path(dialect, subject, name) for name in subject.graph.parameters} - {None}
    return [
        Finding(
            "BE413",
            Severity.WARNING
            if (entry := join(subject.prefix, pattern.removeprefix("model."))) in carried
            else Severity.ERROR,
            f'{dialect.name} finds no module for "{pattern.removeprefix("model.")}", and drops it.',
            Place(entry=entry),
            why=f"keys get the prefix model. and are matched from the beginning of a path ({dialect.cites[0]})",
            found="no module",
            needed="a key relative to the base model, such as layers.*.self_attn.q_proj",
        )
        for pattern in keys
        if not any(first_match(dialect.matching, (pattern,), path) for path in paths if path is not None)
    ]


def _shadowed(dialect: Dialect, entry: str, written: str, first: str, style: str) -> Finding:
    return Finding(
        "BE412",
        Severity.ERROR,
        f'"{first.removeprefix("model.")}" comes first and matches this module too, so it is "{style}" and not "{written}".',
        Place(entry=entry),
        why=f"{dialect.name} takes the first key that matches the beginning of a path ({dialect.cites[0]})",
        found=f'"{style}"',
        needed=f'"{written}": the longer key before the shorter',
    )


def _ignored(dialect: Dialect, entry: str, written: str, style: str) -> Finding:
    return Finding(
        "BE416",
        Severity.WARNING,
        f'{dialect.name} decides this module without the plan: it is "{style}", and "{written}" is not read.',
        Place(entry=entry),
        why="projections that fuse, the vocabulary table and the head are handled before the plan is asked",
        found=f'"{written}"',
        needed=f'"{style}", for the clients that do read it',
        fault=Fault.CLIENT,
    )


def _not_modelled(dialect: Dialect, decided: Mapping[str, str]) -> list[Finding]:
    packed = {generic(path): path for path, style in decided.items() if style == "packed_qkv"}
    return [
        Finding(
            "BE417",
            Severity.UNDECIDED,
            f"{dialect.name} cuts {path} into query, key and value by itself, and rewrites the split after it.",
            Place(entry=entry, module=path),
            why="blocks of unequal size, and sizes that the client writes into the source, have no placement here",
            found="a packed projection with fewer key-value heads",
            needed="a run in the client: `plan verify --level client`",
            fault=Fault.CLIENT,
        )
        for entry, path in packed.items()
    ]


def _uneven(
    dialect: Dialect, subject: Subject, layout: Mapping[str, str | Style | None], degree: int
) -> Iterator[Finding]:
    """Features that do not come out even, or not in whole blocks of a quantised checkpoint: engines refuse them, but for a
    vocabulary, which they pad (vLLM 0.32.0, `distributed/utils.py`, `divide`; `fused_moe/config.py`; SGLang 0.5.23,
    `srt/distributed/utils.py`).
    """
    padded = {id(_got(subject.model, getter)) for getter in ("get_input_embeddings", "get_output_embeddings")}
    config = getattr(subject.model, "config", None)
    blocks = blocks_of(config)
    told: set[str] = set()
    for path, style in layout.items():
        side = {"colwise": "out_features", "rowwise": "in_features"}.get(str(style).split("_")[0], "")
        module = subject.graph.module_of.get(path)
        count = dict(module.numbers).get(side, 0) if module is not None else 0
        if not count or generic(path) in told or id(subject.model.get_submodule(path)) in padded:
            continue
        told.add(generic(path))
        yield from _refused_width(
            dialect, path, f"the {count} {side} of {path}", count, degree, blocks.cut(path, side, count, degree)
        )
    text = config.get_text_config() if config is not None else None
    width = next((n for name in EXPERT_WIDTHS if isinstance(n := field_of(text, name), int)), 0)
    experts = next((m.path for m in subject.graph.modules if is_expert(subject.graph, m.path)), None)
    if experts is not None:
        cut = max(blocks.cut(experts, side, width, degree) for side in ("out_features", "in_features"))
        yield from _refused_width(dialect, experts, f"the {width} features inside {experts}", width, degree, cut)


def _refused_width(dialect: Dialect, path: str, what: str, count: int, degree: int, cut: int) -> Iterator[Finding]:
    """A number of features that does not divide, or whose part cuts a block of `cut` features."""
    if count % degree:
        problem, needed = "which does not come out even", f"a multiple of {degree}, or another degree"
    elif cut:
        problem = f"which cuts blocks of {cut} that are quantised as one"
        needed = f"a multiple of {cut} on each rank, or another degree"
    else:
        return
    yield Finding(
        "BE414",
        Severity.ERROR,
        f"{dialect.name} divides {what} by {degree} ranks, {problem}.",
        Place(module=path),
        why=f"every rank gets equally many, and whole blocks ({dialect.cites[0]})",
        found=what.removeprefix("the "),
        needed=needed,
    )


def _no_plan(dialect: Dialect) -> Finding:
    return Finding(
        "BE411",
        Severity.ERROR,
        f"{dialect.name} refuses a model without a tensor-parallel plan of its base model.",
        why=f"above one rank the plan is required ({dialect.cites[0]})",
        found="no entry of the base model",
        needed="base_model_tp_plan",
    )


def _no_known_names(dialect: Dialect) -> Finding:
    return Finding(
        "BE411",
        Severity.ERROR,
        f"{dialect.name} reads no plan, and knows none of this model's projections by name.",
        why=f"it looks for attribute names in every layer, and raises where there is none ({dialect.cites[0]})",
        found="no known projection",
        needed=f"layers with {', '.join(name for name, _ in NAMES[1:5])}, or a case of its own in the client",
        fault=Fault.CLIENT,
    )
