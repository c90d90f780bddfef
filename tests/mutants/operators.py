"""Mutation operators: mistakes that people make in tensor-parallel plans, applied to a right plan one at a time.

The names T1, L1, E3, ... are those of the project's list of faults: T for entries and collectives, L for packed layouts, E for
embedding, head and gradients, M for experts.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from planner.ir.graph import Graph
from planner.ir.plan import generic

Styles = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Mutant:
    """A wrong (or equivalent) plan: the operator, the entry it touched, and all styles (keys as the head model sees them)."""

    operator: str
    entry: str
    styles: Styles

    @property
    def name(self) -> str:
        """A stable name within one plan."""
        return f"{self.operator} {self.entry} {self.styles.get(self.entry)}"


SWAPS = {"colwise": "rowwise", "rowwise": "colwise", "packed_colwise": "rowwise"}
GATHERS = {
    "colwise": "colwise_gather_output",
    "colwise_gather_output": "colwise",
    "rowwise": "rowwise_split_input",
    "rowwise_split_input": "rowwise",
}
PACKS = {"colwise": "packed_colwise", "packed_colwise": "colwise", "rowwise": "packed_rowwise"}


def mutants(graph: Graph, styles: Styles) -> Iterator[Mutant]:
    """Every single mutation of a plan that a plan can carry."""
    for entry, style in styles.items():
        yield Mutant("T2 entry missing", entry, {key: value for key, value in styles.items() if key != entry})
        yield from _replaced("T1 swapped", styles, entry, SWAPS.get(style))
        yield from _replaced("T6 gather for none, or none for gather", styles, entry, GATHERS.get(style))
        yield from _replaced("L1 packed cut contiguously, or the reverse", styles, entry, PACKS.get(style))
        yield from _replaced("T4 no reduction", styles, entry, "replicate" if style == "moe_tp_experts" else None)
    yield from _twice(graph, styles)
    yield from _renamed(styles)
    yield from _norms(graph, styles)


def _replaced(operator: str, styles: Styles, entry: str, style: str | None) -> Iterator[Mutant]:
    if style is not None:
        yield Mutant(operator, entry, {**styles, entry: style})


def _twice(graph: Graph, styles: Styles) -> Iterator[Mutant]:
    """T5: the module around a reduced one reduces again."""
    parents = {entry.rpartition(".")[0] for entry, style in styles.items() if style in ("rowwise", "moe_tp_experts")}
    known = {generic(module.path) for module in graph.modules if module.path}
    for parent in sorted(parents & known - set(styles)):
        yield Mutant("T5 reduced twice", parent, {**styles, parent: "all_reduce"})


def _renamed(styles: Styles) -> Iterator[Mutant]:
    """T3: a key that matches nothing."""
    for entry, style in styles.items():
        wrong = f"{entry}_"
        kept = {key: value for key, value in styles.items() if key != entry}
        yield Mutant("T3 matches nothing", wrong, {**kept, wrong: style})


def _norms(graph: Graph, styles: Styles) -> Iterator[Mutant]:
    """E6, the other way round: the gradient of a norm that sees whole values is summed."""
    seen: set[str] = set()
    for module in graph.modules:
        pattern = generic(module.path)
        shapes = [len(graph.values[number].shape) for _, number in module.parameters]
        if shapes and max(shapes) == 1 and pattern not in styles and pattern not in seen:
            seen.add(pattern)
            yield Mutant("E6 gradient summed", pattern, {**styles, pattern: "replicated_with_grad_allreduce"})
