"""Mutation operators: mistakes that people make in tensor-parallel plans, applied to a right plan one at a time.

The names T1, L1, E3, ... are those of the project's list of faults: T for entries and collectives, L for layouts, E for
embedding, head and gradients, M for experts. An operator may happen to change nothing that counts: the run says so.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from shardproof.planner.ir.graph import Graph
from shardproof.planner.ir.plan import generic, join

Styles = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Mutant:
    """A wrong (or equivalent) plan: the operator, the entries it touched, and all styles (keys as the head model has them).

    `experts` are the expert-parallel styles; none where the plan is a tensor-parallel one only.
    """

    operator: str
    entries: tuple[str, ...]
    styles: Styles
    experts: Styles = field(default_factory=dict)

    @property
    def name(self) -> str:
        """A stable name within one plan."""
        changed = ", ".join(f"{entry}={self._style(entry)}" for entry in self.entries)
        return f"{self.operator.partition(' ')[0]} {changed}"

    def _style(self, entry: str) -> str:
        return self.experts.get(entry) or self.styles.get(entry, "none")


REPLACED: Mapping[str, tuple[tuple[str, str], ...]] = {
    "colwise": (
        ("T1 column for row, or row for column", "rowwise"),
        ("T1 column for row, or row for column", "rowwise_split_input"),
        ("T6 gather for none, or none for gather", "colwise_gather_output"),
        ("L1 packed for plain, or plain for packed", "packed_colwise"),
        ("L2 another packing", "packed_rowwise"),
        ("T2 entry missing", "replicate"),
        ("T14 another axis", "grouped_gemm"),
        ("E6 gradient summed, or not", "replicated_with_grad_allreduce"),
    ),
    "colwise_gather_output": (
        ("T12 split and not gathered", "colwise"),
        ("T1 column for row, or row for column", "rowwise_split_input"),
        ("T1 column for row, or row for column", "rowwise"),
        ("E5 replicated result summed", "all_reduce"),
    ),
    "rowwise": (
        ("T1 column for row, or row for column", "colwise"),
        ("T1 column for row, or row for column", "colwise_gather_output"),
        ("T6 gather for none, or none for gather", "rowwise_split_input"),
        ("T4 no reduction", "packed_rowwise"),
        ("T2 entry missing", "replicate"),
        ("T14 another axis", "grouped_gemm"),
    ),
    "rowwise_split_input": (
        ("T6 gather for none, or none for gather", "rowwise"),
        ("T1 column for row, or row for column", "colwise_gather_output"),
        ("T4 no reduction", "packed_rowwise"),
    ),
    "packed_colwise": (
        ("L1 packed for plain, or plain for packed", "colwise"),
        ("L2 another packing", "packed_rowwise"),
        ("T1 column for row, or row for column", "rowwise"),
        ("T2 entry missing", "replicate"),
        ("T14 another axis", "grouped_gemm"),
        ("T2 entry missing", "local_params"),
    ),
    "packed_rowwise": (
        ("L1 packed for plain, or plain for packed", "rowwise"),
        ("L2 another packing", "packed_colwise"),
    ),
    "embedding_rowwise": (
        ("E1 vocabulary split without mask", "rowwise"),
        ("E1 vocabulary split without mask", "local_params"),
        ("E3 tied table placed differently", "embedding_colwise"),
        ("E3 tied table placed differently", "replicate"),
    ),
    "embedding_colwise": (("E3 tied table placed differently", "embedding_rowwise"),),
    "moe_tp_experts": (
        ("M4 experts not reduced", "local_params"),
        ("M2 routing gradients not summed", "all_reduce"),
        ("T14 another axis", "ep_dispatch_experts"),
    ),
    "replicated_with_grad_allreduce": (
        ("E6 gradient summed, or not", "replicate"),
        ("T5 reduced twice", "all_reduce"),
        ("T1 column for row, or row for column", "colwise"),
    ),
    "mla_kv_a_proj": (
        ("E6 gradient summed, or not", "replicated_with_grad_allreduce"),
        ("E6 gradient summed, or not", "replicate"),
        ("T1 column for row, or row for column", "colwise"),
    ),
    "all_reduce": (("T4 no reduction", "replicate"),),
}
REDUCING = ("rowwise", "rowwise_split_input", "moe_tp_experts", "all_reduce", "embedding_rowwise")


def mutants(graph: Graph, styles: Styles) -> Iterator[Mutant]:
    """Every mutation of a plan, each plan once."""
    modules = _Modules.of(graph)
    seen = {tuple(sorted(styles.items()))}
    for mutant in _all(modules, styles):
        key = tuple(sorted(mutant.styles.items()))
        if key not in seen:
            seen.add(key)
            yield mutant


def expert_mutants(graph: Graph, styles: Styles, experts: Styles) -> Iterator[Mutant]:
    """Every mutation of the expert-parallel entries of a plan."""
    modules = _Modules.of(graph)
    stacked = [entry for entry, style in experts.items() if style == "grouped_gemm"]
    for entry in stacked:
        yield Mutant("M3 experts whole on every rank", (entry,), styles, _without(experts, entry))
        yield Mutant("M5 experts cut, not dealt out", (entry,), styles, {**experts, entry: "packed_colwise"})
    for entry in (entry for entry, style in experts.items() if style == "ep_dispatch_experts"):
        own = tuple(other for other in stacked if other.startswith(f"{entry}."))
        parent = entry.rpartition(".")[0]
        yield Mutant("M3 experts whole on every rank", own, styles, _without(experts, *own))
        yield Mutant("M5 no tokens sent", (entry,), styles, _without(experts, entry))
        yield Mutant(
            "M5 tokens sent to another module",
            (entry, parent),
            styles,
            {**_without(experts, entry), parent: experts[entry]},
        )
        for router in (path for path in modules.owners if path.rpartition(".")[0] == parent and path != entry):
            yield Mutant("M1 router split", (router,), styles, {**experts, router: "grouped_gemm"})


@dataclass(frozen=True, slots=True)
class _Modules:
    """Generic paths of modules -> the local names and dims of their own parameters."""

    owners: Mapping[str, Mapping[str, int]]
    paths: frozenset[str]

    @staticmethod
    def of(graph: Graph) -> "_Modules":
        owners: dict[str, dict[str, int]] = {}
        for module in graph.modules:
            if module.parameters:
                dims = {name: len(graph.values[number].shape) for name, number in module.parameters}
                owners.setdefault(generic(module.path), {}).update(dims)
        return _Modules(owners, frozenset(generic(module.path) for module in graph.modules if module.path))


def _all(modules: _Modules, styles: Styles) -> Iterator[Mutant]:
    for entry, style in styles.items():
        yield Mutant(_missing(modules, entry, style), (entry,), _without(styles, entry))
        for operator, other in REPLACED.get(style, ()):
            yield Mutant(operator, (entry,), {**styles, entry: other})
        yield from _renamed(styles, entry)
        yield from _by_parameter(modules, styles, entry)
        yield from _moved(modules, styles, entry)
    yield from _twice(modules, styles)
    yield from _blocks(styles)
    yield from _added(modules, styles)


def _without(styles: Styles, *entries: str) -> dict[str, str]:
    return {key: value for key, value in styles.items() if key not in entries}


def _missing(modules: _Modules, entry: str, style: str) -> str:
    if style in ("replicated_with_grad_allreduce", "mla_kv_a_proj"):
        return "E6 gradient summed, or not"
    if style == "moe_identity_expert":
        return "M4 experts counted once per rank"
    return "T2 entry missing" if entry in modules.paths else "L8 raw parameter missing"


def _renamed(styles: Styles, entry: str) -> Iterator[Mutant]:
    """T3: a key that matches nothing."""
    wrong = f"{entry}_"
    yield Mutant(
        "T3 matches nothing, or the wrong module", (entry, wrong), {**_without(styles, entry), wrong: styles[entry]}
    )


def _by_parameter(modules: _Modules, styles: Styles, entry: str) -> Iterator[Mutant]:
    """A module's entry written for its weight alone, and its bias laid out on its own."""
    parameters = modules.owners.get(entry, {})
    if "weight" in parameters:
        alone = f"{entry}.weight"
        yield Mutant("T4 no reduction", (entry, alone), {**_without(styles, entry), alone: styles[entry]})
    if "bias" in parameters and styles[entry] in ("colwise", "rowwise", "packed_colwise", "colwise_gather_output"):
        other = "colwise" if styles[entry] == "rowwise" else "replicate"
        yield Mutant("T7 bias", (f"{entry}.bias",), {**styles, f"{entry}.bias": other})


def _moved(modules: _Modules, styles: Styles, entry: str) -> Iterator[Mutant]:
    """T3: the style on the module around, or on one beside it that has none."""
    parent = entry.rpartition(".")[0]
    beside = [path for path in modules.owners if path.rpartition(".")[0] == parent and path not in styles]
    for other in ([parent] if parent in modules.paths and parent not in styles else []) + beside[:1]:
        yield Mutant(
            "T3 matches nothing, or the wrong module", (entry, other), {**_without(styles, entry), other: styles[entry]}
        )


def _twice(modules: _Modules, styles: Styles) -> Iterator[Mutant]:
    """T5, M4: the module around a reduced one reduces again."""
    parents = {entry.rpartition(".")[0]: style for entry, style in styles.items() if style in REDUCING}
    for parent, style in sorted(parents.items()):
        if parent in modules.paths and parent not in styles:
            operator = "M4 experts reduced twice" if style == "moe_tp_experts" else "T5 reduced twice"
            yield Mutant(operator, (parent,), {**styles, parent: "all_reduce"})


def _blocks(styles: Styles) -> Iterator[Mutant]:
    """Several entries of one block at once: all swapped, all but one of a kind gone, all gone."""
    blocks: dict[str, list[str]] = {}
    for entry in styles:
        blocks.setdefault(entry.rpartition(".")[0], []).append(entry)
    swap = {"colwise": "rowwise", "rowwise": "colwise"}
    for block, entries in blocks.items():
        swapped = tuple(entry for entry in entries if styles[entry] in swap)
        if len(swapped) > 1:
            yield Mutant("T1 pair swapped", swapped, {**styles, **{entry: swap[styles[entry]] for entry in swapped}})
        alike = [entry for entry in entries if styles[entry] == styles[entries[0]]]
        for kept in alike if len(alike) > 2 else ():
            gone = tuple(entry for entry in alike if entry != kept)
            yield Mutant("L5 divided on one of several projections only", gone, _without(styles, *gone))
        if len(entries) > 1 and block:
            yield Mutant("M3 block whole on every rank", tuple(entries), _without(styles, *entries))


def _added(modules: _Modules, styles: Styles) -> Iterator[Mutant]:
    """Entries for modules that need none: norms whose gradient is summed, routers and whole projections that are split."""
    experts = {entry.rpartition(".")[0] for entry, style in styles.items() if style == "moe_tp_experts"}
    for path, parameters in modules.owners.items():
        if path in styles or any(join(path, name) in styles for name in parameters):
            continue
        router = path.rpartition(".")[0] in experts
        yield Mutant(
            "M6 router's gradient summed" if router else "E6 gradient summed, or not",
            (path,),
            {**styles, path: "replicated_with_grad_allreduce"},
        )
        if max(parameters.values()) == 1:
            yield Mutant("T9 norm of a part", (path,), {**styles, path: "sequence_parallel"})
            yield Mutant("T5 reduced twice", (path,), {**styles, path: "all_reduce"})
        else:
            operator = "M1 router split" if router else "T3 matches nothing, or the wrong module"
            for style in ("colwise", "colwise_gather_output", "rowwise_split_input"):
                yield Mutant(operator, (path,), {**styles, path: style})
