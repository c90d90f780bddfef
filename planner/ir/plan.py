"""A plan: the style of each module pattern, and the modules of the pipeline.

The JSON form has the keys that Transformers itself uses, with values exactly as there (tuples as two-element lists):
`base_model_tp_plan`, `base_model_pp_plan`, `base_model_ep_plan` (config attributes, keys relative to the base model)
and `tp_plan`, `pp_plan` (the head class's `_tp_plan`, `_pp_plan`).
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from shardproof.planner.ir.errors import ShardproofError
from shardproof.planner.ir.readable_text import nearest

_NUMBER = re.compile(r"\.\d+(\.|$)")


@lru_cache(maxsize=1 << 16)
def common_parts(one: str, other: str) -> int:
    """The number of leading names that two dotted paths share."""
    count = 0
    for a, b in zip(one.split("."), other.split("."), strict=False):
        if a != b:
            break
        count += 1
    return count


def generic(name: str) -> str:
    """A module or parameter name with its layer numbers as wildcards: `layers.3.mlp` -> `layers.*.mlp`.

    Exactly as Transformers looks keys up (`distributed/parallel_utils.py`, `replace_layer_number_by_wildcard`), so a
    leading number stays, and so does the second of two consecutive numbers.
    """
    return _NUMBER.sub(lambda found: ".*" + found[1], name)


def keyed(name: str, literal: Collection[str]) -> str:
    """A name with its layer numbers as wildcards, apart from numbers in lists of unlike modules.

    `literal` are the paths of these lists: `ff.net.2` and `ff.net.0.proj` in one list are two keys, where `ff.net.*` would stand
    for whatever else the list holds too. Without such lists, as `generic`.
    """
    if not literal:
        return generic(name)
    parts, wild = name.split("."), generic(name).split(".")
    return ".".join(
        part if part != star and ".".join(parts[:at]) in literal else star
        for at, (part, star) in enumerate(zip(parts, wild, strict=True))
    )


def key_for(name: str, keys: Iterable[str]) -> str | None:
    """The key of a plan that names a module or a parameter itself: with wildcards for its numbers, else with some of them."""
    known = list(keys)
    if (wanted := generic(name)) in known:
        return wanted
    parts = name.split(".")
    for key in filter(numbered, known):
        words = key.split(".")
        if len(words) == len(parts) and all(
            a == b or (a == "*" and b.isdigit()) for a, b in zip(words, parts, strict=True)
        ):
            return key
    return None


def numbered(pattern: str) -> bool:
    """Whether a key names one module of a list by its number, which Transformers' keys cannot."""
    return generic(pattern) != pattern


class PlanError(ShardproofError, ValueError):
    """A plan file or object that is not a valid plan."""


@dataclass(frozen=True, slots=True)
class TpEntry:
    """One key of a tensor-parallel (or expert-parallel) plan, with the reason for which it was inferred.

    `because` is the whole reason with its source line, `brief` the same in a few words without one.
    """

    pattern: str
    style: str
    because: str = ""
    brief: str = ""


@dataclass(frozen=True, slots=True)
class PpEntry:
    """One key of a pipeline plan: a child module, the names of its inputs, the names of its outputs."""

    module: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of one pattern's style from `old` to `new`; None means no entry. Plans change only by edits."""

    pattern: str
    old: str | None
    new: str | None

    def __str__(self) -> str:
        match self.old, self.new:
            case None, new:
                return f'add "{self.pattern}": "{new}"'
            case old, None:
                return f'remove "{self.pattern}": "{old}"'
            case old, new:
                return f'change "{self.pattern}" from "{old}" to "{new}"'


@dataclass(frozen=True, slots=True)
class Plan:
    """All plans of one model: tensor (`tp`), pipeline (`pp`) and expert (`ep`) entries.

    Keys of `tp`, `pp` and `ep` are relative to the base model. `head_tp` and `head_pp` are the entries of the class with
    the head. `unplanned` says for module patterns why they are not sharded.
    """

    tp: tuple[TpEntry, ...] = ()
    pp: tuple[PpEntry, ...] = ()
    ep: tuple[TpEntry, ...] = ()
    head_tp: tuple[TpEntry, ...] = ()
    head_pp: tuple[PpEntry, ...] = ()
    unplanned: Mapping[str, str] = field(default_factory=dict)

    def styles(self, base_prefix: str) -> dict[str, str]:
        """Every tensor-parallel key, relative to the head model -> style; the head's own keys first."""
        head = {entry.pattern: entry.style for entry in self.head_tp}
        return head | {join(base_prefix, entry.pattern): entry.style for entry in self.tp}

    def to_json(self) -> dict[str, object]:
        """The plan as the object of a plan file: Transformers' attribute names -> entries."""
        return {
            "base_model_tp_plan": {e.pattern: e.style for e in self.tp},
            "base_model_pp_plan": {e.module: [list(e.inputs), list(e.outputs)] for e in self.pp},
            "base_model_ep_plan": {e.pattern: e.style for e in self.ep},
            "tp_plan": {e.pattern: e.style for e in self.head_tp},
            "pp_plan": {e.module: [list(e.inputs), list(e.outputs)] for e in self.head_pp},
        }

    def edited(self, edit: Edit, base_prefix: str) -> "Plan":
        """The plan after one edit, whose pattern is relative to the head model.

        Raises:
            ValueError: the plan has another style than the edit's `old` for this pattern.
        """
        have = self.styles(base_prefix).get(edit.pattern)
        if have != edit.old:
            raise ValueError(f"{edit.pattern!r} has {have!r} in this plan, not {edit.old!r}.")
        inside = not base_prefix or edit.pattern.startswith(base_prefix + ".")
        pattern = edit.pattern.removeprefix(base_prefix + ".") if inside and base_prefix else edit.pattern
        entries = self.tp if inside else self.head_tp
        kept = tuple(entry for entry in entries if entry.pattern != pattern)
        if edit.new is not None:
            kept = (*kept, TpEntry(pattern, edit.new))
        return replace(self, tp=kept) if inside else replace(self, head_tp=kept)

    @classmethod
    def from_json(cls, value: object) -> "Plan":
        """Read a plan-file object, or the whole object that `plan suggest --format json` prints.

        Raises:
            PlanError: a key is unknown or a value has the wrong form; says which one, and what it must be.
        """
        if isinstance(value, Mapping) and isinstance(value.get("plan"), Mapping):
            value = value["plan"]
        if not isinstance(value, Mapping):
            raise PlanError(
                f"a plan file holds one JSON object with the keys {', '.join(PLAN_KEYS)}, not {_kind(value)}"
            )
        if unknown := sorted(set(map(str, value)) - set(PLAN_KEYS)):
            near = nearest(unknown[0], PLAN_KEYS, count=1).strip()
            hint = f" ({near})" if near else ""
            raise PlanError(f"unknown plan key {unknown[0]!r}; the keys are {', '.join(PLAN_KEYS)}{hint}")
        return cls(
            tp=_tp_entries("base_model_tp_plan", value.get("base_model_tp_plan")),
            pp=_pp_entries("base_model_pp_plan", value.get("base_model_pp_plan")),
            ep=_tp_entries("base_model_ep_plan", value.get("base_model_ep_plan")),
            head_tp=_tp_entries("tp_plan", value.get("tp_plan")),
            head_pp=_pp_entries("pp_plan", value.get("pp_plan")),
        )


def join(prefix: str, name: str) -> str:
    """Two dotted names as one; either may be empty."""
    return f"{prefix}.{name}" if prefix and name else prefix or name


def owner_of(key: str, owners: Iterable[str]) -> str:
    """The longest of these paths that is a prefix of the key; the empty path is a prefix of every key."""
    return max((path for path in owners if not path or key.startswith(f"{path}.")), key=len)


PLAN_KEYS = ("base_model_tp_plan", "base_model_pp_plan", "base_model_ep_plan", "tp_plan", "pp_plan")


def _tp_entries(key: str, value: object) -> tuple[TpEntry, ...]:
    entries = []
    for pattern, style in _object(key, value).items():
        if not isinstance(style, str):
            raise PlanError(f"{key}[{pattern!r}] must be a style string such as 'colwise', not {_kind(style)}")
        entries.append(TpEntry(pattern, style))
    return tuple(entries)


def _pp_entries(key: str, value: object) -> tuple[PpEntry, ...]:
    entries = []
    for module, names in _object(key, value).items():
        if not (isinstance(names, list | tuple) and len(names) == 2 and all(map(_is_names, names))):
            raise PlanError(f"{key}[{module!r}] must be [[input names], [output names]], not {names!r}")
        entries.append(PpEntry(module, tuple(names[0]), tuple(names[1])))
    return tuple(entries)


def _object(key: str, value: object) -> Mapping[str, object]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise PlanError(f"{key} must be an object, not {_kind(value)}")
    return value


def _is_names(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
