"""Does a plan fit its model? Do its styles exist, do its keys match, do the modules have what their style reads?

Transformers looks keys up exactly, on names whose layer numbers are wildcards; a parameter falls back to its own
module's entry and no further (`distributed/mixin.py`,).
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import Tensor, nn

from shardproof.planner.ir.findings import Finding, Fix, Place, Severity
from shardproof.planner.ir.placement import Shard
from shardproof.planner.ir.plan import Edit, Plan, join, keyed
from shardproof.planner.ir.readable_text import nearest_names
from shardproof.planner.ir.styles import STYLES, is_packed_name, style_of
from shardproof.planner.loading.carried_plan import base_prefix, reads_config_plan, reads_plans
from shardproof.planner.loading.modules.any_module import ModuleConfig
from shardproof.planner.loading.modules.own_plan import unlike_lists
from shardproof.planner.transformers_facts.composed_plan import of_base
from shardproof.planner.transformers_facts.styles import modelled, needs_attribute, registered
from shardproof.planner.transformers_facts.tables import is_inner
from shardproof.verify.findings import pl101, pl102, pl103, pl104, pl105, pl106, tp210

NOT_READ = "the table of styles has no row for it"
_SAFETY = "the edited plan passes the checks of its form; the proof tells whether it is right"


def check_plan(model: nn.Module, plan: Plan, degree: int) -> tuple[Finding, ...]:
    """Findings PL101 to PL106 of the tensor- and expert-parallel entries, in plan order. `model` may be on meta."""
    names = _Names.of(model)
    prefix = base_prefix(model)
    styles = plan.styles(prefix)
    if degree > 1 and not styles:
        return (pl104.no_tensor_plan(type(model).__name__),)
    if not reads_plans(model) and styles:
        return (pl106.post_init_not_called(type(model).__name__, Place()),)
    if plan.tp and not reads_config_plan(model):
        return (_base_plan_not_read(model),)
    found = [_entry(names, plan, prefix, pattern, style) for pattern, style in styles.items()]
    found += [_expert_entry(names, join(prefix, entry.pattern), entry.style) for entry in plan.ep]
    findings = tuple(finding for finding in found if finding is not None)
    if degree > 1 and not findings and not _shards_anything(names, styles):
        return (pl105.shards_nothing(type(model).__name__),)
    return findings


@dataclass(frozen=True, slots=True)
class _Names:
    """What a key can match: by generic name (layer numbers as `*`), the modules and the parameters with that name."""

    model: nn.Module
    modules: Mapping[str, list[tuple[str, nn.Module]]]
    parameters: Mapping[str, list[tuple[str, Tensor]]]
    carried: frozenset[str]
    inner: tuple[str, ...] = ()
    """Paths of models in the base model that read its keys as their own."""

    @staticmethod
    def of(model: nn.Module) -> "_Names":
        modules: dict[str, list[tuple[str, nn.Module]]] = {}
        parameters: dict[str, list[tuple[str, Tensor]]] = {}
        unlike = unlike_lists(model)
        for path, module in model.named_modules(remove_duplicate=False):
            if path:
                modules.setdefault(keyed(path, unlike), []).append((path, module))
        for path, parameter in model.named_parameters(remove_duplicate=False):
            parameters.setdefault(keyed(path, unlike), []).append((path, parameter))
        # The model's own plan as Transformers composed it: there, and only there, a key without a match is a warning.
        own = [getattr(model, attribute, None) or {} for attribute in ("_tp_plan", "_ep_plan")]
        carried = frozenset(str(key) for keys in own for key in keys)
        inner = tuple(path for path, _ in model.named_modules() if is_inner(model, path))
        return _Names(model, modules, parameters, carried, inner)

    def __contains__(self, pattern: str) -> bool:
        return self._is_named(pattern) or any(map(self._is_named, self.as_read(pattern)))

    def _is_named(self, pattern: str) -> bool:
        return pattern in self.modules or pattern in self.parameters

    def as_read(self, pattern: str) -> Iterator[str]:
        """A key of the base model's config as inner models read it."""
        if key := of_base(pattern, base_prefix(self.model)):
            yield from (join(path, key) for path in self.inner)


def _entry(names: _Names, plan: Plan, prefix: str, pattern: str, style: str) -> Finding | None:
    """The finding of one entry, with an edit that fixes it where one was found."""
    finding = _fault(names, pattern, style)
    if finding is None:
        return None
    for title, edits in _candidates(names, plan.styles(prefix), finding, pattern, style):
        if _mends(names, plan, prefix, edits):
            return replace(finding, fix=Fix(title, edits, _SAFETY))
    return finding


def _expert_entry(names: _Names, pattern: str, style: str) -> Finding | None:
    # NB: no edit is offered: an `Edit` is of a tensor-parallel entry.
    found = _fault(names, pattern, style)
    # A style that is not modelled matters where experts are distributed, which the check of the experts knows.
    return None if found is not None and found.severity is Severity.UNDECIDED else found


def _fault(names: _Names, pattern: str, style: str) -> Finding | None:
    packing = is_packed_name(style) and isinstance(getattr(names.model, "config", None), ModuleConfig)
    if style not in registered() and not packing:
        return pl101.unknown_style(pattern, style, _near(style, modelled()), known=list(modelled()))
    if style_of(style) is None:
        return tp210.style_not_modelled(style, Place(entry=pattern), NOT_READ)
    if pattern not in names:
        near, owner = _near_paths(names, pattern), type(names.model).__name__
        return pl102.matches_nothing(pattern, owner, near, carried=pattern in names.carried)
    return _lacks_attribute(names, pattern, style)


def _mends(names: _Names, plan: Plan, prefix: str, edits: tuple[Edit, ...]) -> bool:
    """Whether the edits apply, and no edited entry has a finding."""
    try:
        for edit in edits:
            plan = plan.edited(edit, prefix)
    except ValueError:
        return False
    written = {edit.pattern: edit.new for edit in edits if edit.new is not None}
    return all(_fault(names, pattern, style) is None for pattern, style in written.items())


def _candidates(
    names: _Names, styles: Mapping[str, str], finding: Finding, pattern: str, style: str
) -> Iterable[tuple[str, tuple[Edit, ...]]]:
    """Edits to try, likeliest first, each with its title."""
    match finding.code:
        case "PL101":
            for near in _near(style, modelled()):
                yield "use the nearest style", (Edit(pattern, style, near),)
        case "PL102" if pattern not in names.carried:
            # NB: no edit for a glob: it stands for several paths, and which of them were meant is not known.
            for near in [] if _globbed(names, pattern) else _near_paths(names, pattern):
                if near in styles:
                    yield "remove it: the nearest path has an entry", (Edit(pattern, style, None),)
                else:
                    yield "name the nearest path", (Edit(pattern, style, None), Edit(near, None, style))
        case "PL103" if any(hasattr(module, "num_embeddings") for _, module in names.modules[pattern]):
            yield "use the style for embeddings", (Edit(pattern, style, "embedding_rowwise"),)
        case _:
            pass


def _lacks_attribute(names: _Names, pattern: str, style: str) -> Finding | None:
    if style == "mla_kv_a_proj":
        return _lacks_rope_dim(names, pattern)
    known = style_of(style)
    needs = known.needs if known is not None and (style not in STYLES or needs_attribute(style)) else None
    # A key of a parameter lays it out and hooks no module, so nothing is read from one.
    bad = [(path, module) for path, module in names.modules.get(pattern, ()) if needs and not hasattr(module, needs)]
    if not bad:
        return None
    path, module = bad[0]
    assert needs is not None
    place = Place(entry=pattern, module=path)
    return pl103.lacks_attribute(style, needs, place, kind=type(module).__name__, needed=_suits(module, needs))


def _suits(module: nn.Module, needs: str) -> str:
    if hasattr(module, "num_embeddings"):
        return "a style for embeddings: embedding_rowwise, or embedding_colwise"
    inside = [name for name, child in module.named_modules() if name and hasattr(child, needs)]
    if inside:
        return f"an entry for a linear layer inside it, such as {inside[0]}"
    return f"a module with {needs}, or no entry for this one"


def _lacks_rope_dim(names: _Names, pattern: str) -> Finding | None:
    config = getattr(names.model, "config", None)
    text = config.get_text_config() if config is not None else None
    if hasattr(text, "qk_rope_head_dim"):
        return None
    module = names.modules[pattern][0][0] if pattern in names.modules else None
    return pl103.lacks_rope_dim(type(text).__name__, Place(entry=pattern, module=module))


def _base_plan_not_read(model: nn.Module) -> Finding:
    prefix = getattr(model, "base_model_prefix", "")
    inner = type(getattr(model, prefix, None)).__name__
    if base_prefix(model):
        return pl106.post_init_not_called(inner, Place(module=prefix))
    return pl106.base_is_no_pretrained_model(type(model).__name__, prefix, inner)


def _shards_anything(names: _Names, styles: Mapping[str, str]) -> bool:
    read = {key: style for pattern, style in styles.items() for key in names.as_read(pattern)} | dict(styles)
    for pattern, owners in names.parameters.items():
        module, _, local = pattern.rpartition(".")
        style = STYLES.get(read.get(pattern, read.get(module, "")))
        if style and any(isinstance(style.placement(local, parameter.ndim), Shard) for _, parameter in owners):
            return True
    return False


def _near(word: str, known: Iterable[str]) -> list[str]:
    return nearest_names(word, known)


def _near_paths(names: _Names, pattern: str) -> list[str]:
    """Paths similar to `pattern`, nearest first: matches as a glob, the same path from another root, similar names."""
    known = [*names.modules, *names.parameters]
    near = nearest_names(pattern, known, count=20, cutoff=0.75)
    leaf = pattern.rpartition(".")[2]
    near.sort(key=lambda path: -difflib.SequenceMatcher(None, path.rpartition(".")[2], leaf).ratio())
    rooted = [path for path in known if _rooted_elsewhere(path, pattern)]
    return list(dict.fromkeys([*_globbed(names, pattern), *rooted, *near]))[:3]


def _globbed(names: _Names, pattern: str) -> list[str]:
    depth = pattern.count(".")
    return [path for path in names.modules if path.count(".") == depth and fnmatchcase(path, pattern)]


def _rooted_elsewhere(path: str, pattern: str) -> bool:
    """Whether the two differ by one more name in front: a base model's key in the head's plan, or the reverse."""
    return path.partition(".")[2] == pattern or pattern.partition(".")[2] == path
