"""Every finding there is, as data: `plan explain CODE` and the docs are made from it. No torch here.

One finding is one file of `verify.findings`, named by its code: it registers one `Rule`, and its functions build the messages.
Codes are never reused.
"""

import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from textwrap import fill, indent

from shardproof.planner.ir.findings import Severity
from shardproof.planner.ir.readable_text import nearest_names

FAMILIES = {"PL": "plan", "TP": "tensor", "PP": "pipeline", "BE": "backend contract", "DY": "run", "TR": "training"}


@dataclass(frozen=True, slots=True)
class Example:
    """What raises a finding, or what does not. `note` says what is to be seen.

    With `model` (a Transformers model type, `overrides` applied) it can be checked: `plan` changes that model's own
    plan entry by entry (None removes one), keys as the head model sees them, or is all of the plan where `alone`;
    `degree` is the number of ranks, `stages` of pipeline stages; `client` reads the plan in its dialect. `code` is a piece of
    modeling code, to be read.
    """

    note: str
    model: str = ""
    overrides: tuple[tuple[str, str], ...] = ()
    plan: tuple[tuple[str, str | None], ...] = ()
    alone: bool = False
    degree: int = 2
    code: str = ""
    client: str = ""
    stages: int = 1


@dataclass(frozen=True, slots=True)
class Rule:
    """One finding: `severity` is the usual one; a check may lower it and say why."""

    code: str
    name: str
    severity: Severity
    what: str
    why: str
    use_instead: str
    fix_safety: str
    invalid: tuple[Example, ...]
    valid: tuple[Example, ...]

    @property
    def family(self) -> str:
        """The word for the first two letters of the code."""
        return FAMILIES[self.code[:2]]


@dataclass(frozen=True, slots=True)
class Registry:
    """Rules by code; a second rule with a code or a name that is taken raises."""

    rules: dict[str, Rule] = field(default_factory=dict)

    def register(self, rule: Rule) -> Rule:
        """Add one rule. `ValueError` where its code or its name is taken."""
        for other in self.rules.values():
            if rule.code == other.code or rule.name == other.name:
                raise ValueError(f"{rule.code} {rule.name} is registered twice: {other.code} {other.name} is there.")
        self.rules[rule.code] = rule
        return rule


_REGISTRY = Registry()
register = _REGISTRY.register


@cache
def _load() -> None:
    package = import_module("shardproof.verify.findings")
    for module in sorted(found.name for found in pkgutil.iter_modules(package.__path__)):
        if re.fullmatch(r"[a-z]{2}\d{3}", module):
            import_module(f"shardproof.verify.findings.{module}")


def rules() -> Mapping[str, Rule]:
    """Every rule by code, in order of code."""
    _load()
    return dict(sorted(_REGISTRY.rules.items()))


def name_of(code: str) -> str:
    """The kebab-case name of a code; the code itself where no rule has it."""
    rule = rules().get(code)
    return rule.name if rule else code


def find(word: str) -> Rule:
    """The rule with this code or name, in any case; `KeyError` names the nearest."""
    known = rules()
    by_word = {rule.code.lower(): rule for rule in known.values()} | {rule.name: rule for rule in known.values()}
    if (found := by_word.get(word.strip().lower())) is not None:
        return found
    near = nearest_names(word.strip().lower(), by_word, count=1, cutoff=0.5)
    # Two codes differ by a digit, so the nearest by letters may be any of its family.
    advice = f"did you mean {by_word[near[0]].code} ({by_word[near[0]].name})?" if near else "see `plan explain`."
    raise KeyError(f"there is no finding {word!r}; {advice}")


def explain(word: str) -> str:
    """All there is to say on one finding, as text. `KeyError` on an unknown code, naming the nearest."""
    rule = find(word)
    sections = (
        ("What", _prose(rule.what)),
        ("Why", _prose(rule.why)),
        ("Example", "\n\n".join(_example(example) for example in rule.invalid)),
        ("Use instead", "\n\n".join([_prose(rule.use_instead), *(_example(example) for example in rule.valid)])),
        ("Fix safety", _prose(rule.fix_safety)),
    )
    head = f"{rule.code} {rule.name} ({rule.family}, {rule.severity})"
    return "\n\n".join([head, *(f"{title}\n{body}" for title, body in sections)])


def overview() -> str:
    """One line for every finding."""
    width = max(len(rule.name) for rule in rules().values())
    return "\n".join(f"{rule.code}  {rule.name:<{width}}  {rule.severity}" for rule in rules().values())


def snippet(example: Example) -> str:
    """An example as a reader would write it: the model and its plan entries, or the code."""
    if not example.model:
        return example.code
    changed = "\n".join(_entry(pattern, style) for pattern, style in example.plan)
    given = "".join(f" --set {key}={value}" for key, value in example.overrides)
    pipeline = f" --pp {example.stages}" if example.stages > 1 else ""
    reader = f" --for {example.client}" if example.client else ""
    head = f"# plan verify {example.model} --tp {example.degree}{pipeline}{reader}{given}"
    if not example.plan:
        return f"{head}\n# with no plan at all" if example.alone else f"{head}\n# with the model's own plan"
    whole = "with these entries only" if example.alone else "with the model's own plan, but"
    return f"{head}\n# {whole}:\n{changed}"


def _entry(pattern: str, style: str | None) -> str:
    return f'# no entry for "{pattern}"' if style is None else f'"{pattern}": "{style}",'


def _example(example: Example) -> str:
    return f"{_prose(example.note)}\n\n{indent(snippet(example), '      ')}"


def _prose(text: str) -> str:
    return fill(text, width=96, initial_indent="  ", subsequent_indent="  ")
