"""How sharp and how sound the proof is: mutants of right plans, judged by the proof and by a run.

The bases are plans that are right: the suggested one, and the one that the model carries, each confirmed by a run with
everything compared. A mutant is *equivalent* where its run is right too. Counted, per operator and per type: refuted by the
proof (and how many of those findings name a mutated entry), equivalent, not decided by the proof, and the two that must be
zero: false proofs (proved, and the run refutes) and false accusations (refuted, and the run says right).

One JSON line a mutant, so that an interrupted sweep goes on where it stopped.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic

from rich.console import Console
from rich.progress import track

from benchmarks.mutants_table import Judged, page, table
from benchmarks.types import causal_types
from shardproof.planner.inference.suggest import suggest
from shardproof.planner.ir.errors import LoadError
from shardproof.planner.ir.findings import Finding, Severity
from shardproof.planner.ir.graph import Graph
from shardproof.planner.ir.plan import Plan, TpEntry, generic, join
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import base_prefix, carried_plan, reads_config_plan
from shardproof.planner.loading.load import LoadedModel, load
from shardproof.planner.tracing.programs import Subject
from shardproof.planner.tracing.recorded_run import TraceError
from shardproof.planner.twins.twin import TwinError, twin
from shardproof.verify.proof.experts import check_experts
from shardproof.verify.proof.fixes import with_fix
from shardproof.verify.proof.plan_form import check_plan
from shardproof.verify.proof.tensor import check_tensor
from shardproof.verify.report.report import LevelResult
from shardproof.verify.run.inprocess import InProcess
from shardproof.verify.run.verdicts import findings_of
from shardproof.verify.stages.case import Case
from tests.mutants.operators import Mutant, Styles, expert_mutants, mutants

BASE = Mutant("base", (), {})
GRADIENT = frozenset({"TP207", "TP208"})
ODD = "tests.zoo.odd_models:"


@dataclass(frozen=True, slots=True)
class Options:
    """`limit` mutants a base, chosen by `seed`, operators in turn; `time` seconds in all (0: no end); `only` part of a name.

    With `redo`, those that are known and were not judged well, and no others.
    """

    tp: int = 2
    limit: int = 0
    seed: int = 0
    time: float = 0.0
    only: str = ""
    redo: bool = False


@dataclass(frozen=True, slots=True)
class _Base:
    """A plan to mutate: its styles, and those of its experts where they are what is mutated."""

    name: str
    styles: dict[str, str]
    experts: dict[str, str]

    def mutants(self, graph: Graph) -> Iterator[Mutant]:
        """All of them."""
        if self.experts:
            return expert_mutants(graph, self.styles, self.experts)
        return mutants(graph, self.styles)


@dataclass(frozen=True)
class _Judge:
    """One model, traced once, with a small twin; `small` runs on the ranks of this process."""

    name: str
    subject: Subject
    small: LoadedModel
    reads_config: bool
    ranks: InProcess
    tp: int

    def plan(self, styles: Styles, experts: Styles) -> Plan:
        """Styles with the head model's keys as a plan."""
        inside = f"{self.subject.prefix}." if self.subject.prefix else ""
        base = [key for key in styles if self.reads_config and key.startswith(inside)]
        return Plan(
            tp=tuple(TpEntry(key.removeprefix(inside), styles[key]) for key in base),
            head_tp=tuple(TpEntry(key, style) for key, style in styles.items() if key not in base),
            ep=tuple(TpEntry(key.removeprefix(inside), style) for key, style in experts.items()),
        )

    def proof(self, plan: Plan) -> LevelResult:
        """As `verify.proof.prove.prove`, on the trace that is there; keys as the head model has them."""
        began = monotonic()
        findings = check_plan(self.subject.model, plan, self.tp)
        if not any(finding.severity is not Severity.WARNING for finding in findings):
            styles = plan.styles(self.subject.prefix)
            findings += check_experts(self.subject.graph, plan, self.subject.prefix, self.tp)
            findings += with_fix(self.subject, styles, self.tp, check_tensor(self.subject, styles, self.tp))
        return LevelResult("proof", monotonic() - began, findings)

    def run(self, plan: Plan, *, hasty: bool) -> LevelResult:
        """Ranks as threads, on the twin."""
        began = monotonic()
        case = Case(self.small, plan, self.tp, ep=self.tp if plan.ep else 1)
        findings = findings_of(case, self.ranks.check(case, hasty=hasty))
        return LevelResult("run", monotonic() - began, findings)

    def base(self, base: _Base) -> Judged:
        """A plan as it is, everything compared."""
        plan = self.plan(base.styles, base.experts)
        return _row(self.name, base.name, BASE, self.proof(plan), self.run(plan, hasty=False))

    def judged(self, base: str, mutant: Mutant) -> Judged:
        """One mutant, proved and run."""
        plan = self.plan(mutant.styles, mutant.experts)
        proof, run = self.proof(plan), self.run(plan, hasty=True)
        row = _row(self.name, base, mutant, proof, run)
        if row.run == "confirmed" and set(row.codes) & GRADIENT and self._silent(plan, mutant):
            return replace(row, run="not proved", run_said="the gradient is zero on one device: the run sees nothing")
        return row

    def _silent(self, plan: Plan, mutant: Mutant) -> bool:
        """Whether nothing that was changed has a gradient at all, on the run's inputs."""
        parameters = self.subject.graph.parameters
        near = [name for name in parameters if any(_below(generic(name), entry) for entry in mutant.entries)]
        silent = {generic(name) for name in self.ranks.silent(Case(self.small, plan, self.tp))}
        return {generic(name) for name in near} <= silent


def _below(name: str, entry: str) -> bool:
    return name == entry or name.startswith(f"{entry}.")


def _row(model: str, base: str, mutant: Mutant, proof: LevelResult, run: LevelResult) -> Judged:
    errors = [finding for finding in proof.findings if finding.severity is Severity.ERROR]
    return Judged(
        model=model,
        base=base,
        operator=mutant.operator,
        mutant=mutant.name,
        proof=proof.verdict.value,
        run=run.verdict.value,
        codes=tuple(finding.code for finding in proof.findings),
        run_codes=tuple(finding.code for finding in run.findings),
        said=_said(proof),
        run_said=_said(run),
        named=any(_names(finding, mutant) for finding in errors),
        seconds=(round(proof.seconds, 3), round(run.seconds, 3)),
    )


def _said(result: LevelResult) -> str:
    return result.findings[0].message[:300] if result.findings else ""


def _names(finding: Finding, mutant: Mutant) -> bool:
    """The entry at fault, or the one that mends it, is one of those that were changed."""
    fixed = {edit.pattern for edit in finding.fix.edits} if finding.fix else set()
    return bool({finding.place.entry, *fixed} & set(mutant.entries))


def _bases(suggested: Plan, upstream: Plan, prefix: str) -> Iterator[_Base]:
    """Each plan once, and each expert-parallel plan with the tensor-parallel one that it comes with."""
    seen: list[tuple[dict[str, str], dict[str, str]]] = []
    for name, plan in (("suggested", suggested), ("upstream", upstream)):
        styles = plan.styles(prefix)
        experts = {join(prefix, entry.pattern): entry.style for entry in plan.ep}
        for base in (_Base(name, styles, {}), _Base(f"{name} experts", styles, experts)):
            if styles and (base.styles, base.experts) not in seen:
                seen.append((base.styles, base.experts))
                yield base


def judge_type(
    name: str, *, options: Options, known: dict[tuple[str, str], Judged], ranks: InProcess
) -> Iterator[Judged]:
    """Every mutant of one model's right plans that is not `known` yet, bases first."""
    loaded = load(name)
    model, suggestion = build(loaded), suggest(loaded)
    subject = Subject(model, suggestion.graph, base_prefix(model))
    names = {generic(path) for path, _ in (*model.named_modules(), *model.named_parameters())}
    judge = _Judge(name, subject, twin(loaded, tp=options.tp), reads_config_plan(model), ranks, options.tp)
    for base in _bases(suggestion.plan, carried_plan(loaded, model), subject.prefix):
        row = known.get((base.name, BASE.name)) or judge.base(base)
        if (base.name, BASE.name) not in known:
            yield row
        if row.run != "confirmed":
            continue
        # Keys for layers that this config does not have are no part of what is mutated.
        present = replace(base, styles={key: style for key, style in base.styles.items() if key in names})
        found = list(present.mutants(subject.graph))
        if not options.redo:
            found = chosen(found, options, salt=f"{name} {base.name}")
        for mutant in found:
            before = known.get((base.name, mutant.name))
            if (before is not None and not before.well) if options.redo else before is None:
                yield judge.judged(base.name, mutant)


def chosen(found: list[Mutant], options: Options, *, salt: str) -> list[Mutant]:
    """At most `limit`, one of each operator in turn; those of a smaller limit are among those of a larger one."""
    found = [mutant for mutant in found if options.only in mutant.name]
    random.Random(f"{options.seed} {salt}").shuffle(found)
    turns: dict[str, int] = {}
    order: list[tuple[int, Mutant]] = []
    for mutant in found:
        turns[mutant.operator] = turn = turns.get(mutant.operator, -1) + 1
        order.append((turn, mutant))
    ordered = [mutant for _, mutant in sorted(order, key=lambda each: each[0])]
    return ordered[: options.limit or None]


def read(path: Path) -> list[Judged]:
    """The rows of a file; of a mutant that is there twice, the last."""
    rows: dict[tuple[str, str, str], Judged] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        row = Judged(**json.loads(line))
        rows[row.model, row.base, row.mutant] = replace(row, codes=tuple(row.codes), run_codes=tuple(row.run_codes))
    return list(rows.values())


def main(types: tuple[str, ...], out: Path, *, options: Options, page_at: Path | None = None) -> int:
    """Judge mutants of these types, print the table, write JSON lines; exit 1 on a false proof or accusation."""
    console, began = Console(stderr=True), monotonic()
    names = types or (*causal_types(), *odd_models())
    if options.redo:
        names = tuple(sorted({row.model for row in read(out) if not row.well} & set(names)))
    for name in track(names, description="mutants", console=console):
        if options.time and monotonic() - began > options.time:
            break
        rows = [] if options.only else [row for row in read(out) if row.model == name]
        known = {(row.base, row.mutant): row for row in rows}
        with InProcess(options.tp) as ranks, out.open("a") as lines:
            try:
                for row in judge_type(name, options=options, known=known, ranks=ranks):
                    lines.write(json.dumps(asdict(row)) + "\n")
                    lines.flush()
                    if options.only or row.outcome in ("false proof", "false accusation"):
                        console.print(f"{name}: {row.outcome}: {row.base} {row.mutant}: {row.said} | {row.run_said}")
            except (LoadError, TraceError, TwinError, ValueError, TimeoutError) as error:
                console.print(f"{name}: not judged: {error}")
    rows = read(out)
    Console().print(table(rows))
    if page_at is not None:
        page_at.write_text(page(rows))
    return int(any(row.outcome in ("false proof", "false accusation") for row in rows))


def odd_models() -> tuple[str, ...]:
    """The models with meaningless names that the tests have."""
    from tests.zoo import odd_models as odd

    return tuple(f"{ODD}{name}" for name in vars(odd) if name.startswith("Odd") and name not in _NO_MODELS)


_NO_MODELS = ("OddConfig", "OddForCausalLM")
