"""Is this a plan for this model at all? Styles that exist, keys that match, modules that have what their style reads.

Transformers looks keys up exactly, on names whose layer numbers are wildcards; a parameter falls back to its own
module's entry and no further (`distributed/mixin.py`, `_expand_parallel_plan`, 5.23.0).
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import Tensor, nn

from shardproof.planner.ir.findings import Fault, Finding, Fix, Place, Severity
from shardproof.planner.ir.placement import Shard
from shardproof.planner.ir.plan import Edit, Plan, generic, join
from shardproof.planner.ir.spelling import nearest_names
from shardproof.planner.ir.styles import STYLES
from shardproof.planner.loading.carried_plan import base_prefix, reads_config_plan, reads_plans

_SAFETY = "the edited plan passes the checks of its form; the proof tells whether it is right"


def check_plan(model: nn.Module, plan: Plan, degree: int) -> tuple[Finding, ...]:
    """Findings PL101 to PL106 of the tensor- and expert-parallel entries, in plan order. `model` may be on meta."""
    names = _Names.of(model)
    prefix = base_prefix(model)
    styles = plan.styles(prefix)
    if degree > 1 and not styles:
        return (_no_plan(model),)
    if not reads_plans(model) and styles:
        return (_never_set_up(model),)
    if plan.tp and not reads_config_plan(model):
        return (_not_read(model),)
    found = [_entry(names, plan, prefix, pattern, style) for pattern, style in styles.items()]
    found += [_expert_entry(names, join(prefix, entry.pattern), entry.style) for entry in plan.ep]
    findings = tuple(finding for finding in found if finding is not None)
    if degree > 1 and not findings and not _shards_anything(names, styles):
        return (_shards_nothing(model),)
    return findings


@dataclass(frozen=True, slots=True)
class _Names:
    """What a key can match: generic name -> the modules, or the parameters (with the local name), that go by it."""

    model: nn.Module
    modules: Mapping[str, list[tuple[str, nn.Module]]]
    parameters: Mapping[str, list[tuple[str, Tensor]]]
    carried: frozenset[str]

    @staticmethod
    def of(model: nn.Module) -> "_Names":
        modules: dict[str, list[tuple[str, nn.Module]]] = {}
        parameters: dict[str, list[tuple[str, Tensor]]] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            if path:
                modules.setdefault(generic(path), []).append((path, module))
        for path, parameter in model.named_parameters(remove_duplicate=False):
            parameters.setdefault(generic(path), []).append((path, parameter))
        # The model's own plan as Transformers composed it: there, and only there, a key without a match is a warning.
        own = [getattr(model, attribute, None) or {} for attribute in ("_tp_plan", "_ep_plan")]
        return _Names(model, modules, parameters, frozenset(str(key) for keys in own for key in keys))

    def __contains__(self, pattern: str) -> bool:
        return pattern in self.modules or pattern in self.parameters


def _entry(names: _Names, plan: Plan, prefix: str, pattern: str, style: str) -> Finding | None:
    """What is wrong with one entry, and the edit that mends it where one was tried."""
    finding = _fault(names, pattern, style)
    if finding is None:
        return None
    for title, edits in _candidates(names, plan.styles(prefix), finding, pattern, style):
        if _mends(names, plan, prefix, edits):
            return replace(finding, fix=Fix(title, edits, _SAFETY))
    return finding


def _expert_entry(names: _Names, pattern: str, style: str) -> Finding | None:
    # NB: no edit is offered: an `Edit` is of a tensor-parallel entry.
    return _fault(names, pattern, style)


def _fault(names: _Names, pattern: str, style: str) -> Finding | None:
    if style not in STYLES:
        return _unknown_style(pattern, style)
    if pattern not in names:
        return _matches_nothing(names, pattern)
    return _lacks_attribute(names, pattern, style)


def _mends(names: _Names, plan: Plan, prefix: str, edits: tuple[Edit, ...]) -> bool:
    """Whether the edits apply, and no entry that they write is at fault."""
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
    """Edits worth a try, likeliest first, each with its title."""
    match finding.code:
        case "PL101":
            for near in _near(style, STYLES):
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


def _unknown_style(pattern: str, style: str) -> Finding:
    near = _near(style, STYLES)
    return Finding(
        "PL101",
        Severity.ERROR,
        f'"{style}" is not a style of Transformers{_did_you_mean(near)}',
        Place(entry=pattern),
        why="a style is looked up by its exact name",
        found=f'"{style}"',
        needed=f'"{near[0]}"' if near else f"one of {', '.join(STYLES)}",
    )


def _matches_nothing(names: _Names, pattern: str) -> Finding:
    near = _near_paths(names, pattern)
    own = pattern in names.carried
    message = f'The key "{pattern}" matches no module and no parameter of {type(names.model).__name__}'
    return Finding(
        "PL102",
        Severity.WARNING if own else Severity.ERROR,
        f"{message}{' under this config.' if own else _did_you_mean(near)}",
        Place(entry=pattern),
        why="a key is looked up exactly, with * for the number of a layer, so this entry is never applied",
        found="no match",
        needed=f'a path of the model, such as "{near[0]}"' if near else "a path as model.named_modules() prints it",
    )


def _lacks_attribute(names: _Names, pattern: str, style: str) -> Finding | None:
    if style == "mla_kv_a_proj":
        return _lacks_rope_dim(names, pattern)
    needs = STYLES[style].needs
    # A key of a parameter lays it out and hooks no module, so nothing is read from one.
    bad = [(path, module) for path, module in names.modules.get(pattern, ()) if needs and not hasattr(module, needs)]
    if not bad:
        return None
    path, module = bad[0]
    kind = type(module).__name__
    return Finding(
        "PL103",
        Severity.ERROR,
        f'The style "{style}" reads {needs}, which {path} ({kind}) does not have.',
        Place(entry=pattern, module=path),
        why=f"{style} takes its full width from {needs}",
        found=f"{kind} without {needs}",
        needed=_suits(module, needs or ""),
    )


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
    return Finding(
        "PL103",
        Severity.ERROR,
        'The style "mla_kv_a_proj" reads qk_rope_head_dim, which the config does not have.',
        Place(entry=pattern, module=names.modules[pattern][0][0] if pattern in names.modules else None),
        why="the last qk_rope_head_dim features of the projection bypass the layer that reduces their gradient",
        found=f"{type(text).__name__} without qk_rope_head_dim",
        needed="latent attention with qk_rope_head_dim in its config, or no entry",
    )


def _no_plan(model: nn.Module) -> Finding:
    return Finding(
        "PL104",
        Severity.ERROR,
        f"There is no tensor-parallel plan for {type(model).__name__}, so there is nothing to verify.",
        why="without entries every rank holds the whole model, and Transformers refuses to start",
        found="no entry",
        needed="a plan: `plan suggest` writes one, --plan FILE gives one",
    )


def _never_set_up(model: nn.Module) -> Finding:
    kind = type(model).__name__
    return Finding(
        "PL106",
        Severity.ERROR,
        f"No plan of {kind} is ever read: its constructor does not call self.post_init().",
        why="plans are read in post_init, and a model without one is loaded whole, or not at all",
        found=f"{kind}.__init__ without post_init",
        needed=f"self.post_init() at the end of {kind}.__init__, and of its base model's",
        fault=Fault.MODEL,
    )


def _not_read(model: nn.Module) -> Finding:
    prefix = getattr(model, "base_model_prefix", "")
    inner = type(getattr(model, prefix, None)).__name__
    if base_prefix(model):
        return replace(_never_set_up(getattr(model, prefix)), place=Place(module=prefix))
    return Finding(
        "PL106",
        Severity.ERROR,
        f"base_model_tp_plan is never read: {type(model).__name__}.{prefix} is a {inner}, which is no PreTrainedModel.",
        Place(module=prefix),
        why="the config's plan is read by the base model as it is made, and only a PreTrainedModel does so",
        found=f"a {inner}",
        needed=f"the entries in {type(model).__name__}._tp_plan with their full names, or a PreTrainedModel",
    )


def _shards_nothing(model: nn.Module) -> Finding:
    return Finding(
        "PL105",
        Severity.WARNING,
        f"No entry of this plan shards a parameter of {type(model).__name__}.",
        why="every rank holds all the weights and does all the work",
        found="every parameter whole on every rank",
        needed="an entry that shards, such as a colwise and rowwise pair",
    )


def _shards_anything(names: _Names, styles: Mapping[str, str]) -> bool:
    for pattern, owners in names.parameters.items():
        module, _, local = pattern.rpartition(".")
        style = STYLES.get(styles.get(pattern, styles.get(module, "")))
        if style and any(isinstance(style.placement(local, parameter.ndim), Shard) for _, parameter in owners):
            return True
    return False


def _near(word: str, known: Iterable[str]) -> list[str]:
    return nearest_names(word, known)


def _near_paths(names: _Names, pattern: str) -> list[str]:
    """Paths like `pattern`, nearest first: what it would match as a glob, the path from another root, a like name."""
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
    """Whether one is the other with one name more in front: a base model's key in a head's plan, or the reverse."""
    return path.partition(".")[2] == pattern or pattern.partition(".")[2] == path


def _did_you_mean(near: list[str]) -> str:
    return f'; did you mean "{near[0]}"?' if near else "."
