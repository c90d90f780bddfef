"""From what the ranks said to findings: one fault, one finding, at the place where it first shows."""

from collections.abc import Mapping, Sequence

from torch import nn

from planner.frontend.load import base_prefix, build
from planner.ir.findings import Fault, Finding, Place, Severity, as_written
from planner.ir.plan import generic
from verify.dynamic.cases import Case
from verify.dynamic.compare import Comparison
from verify.dynamic.localize import Divergence, entry_of
from verify.dynamic.outcome import Failure, Outcome, worst

_OUR_LIMITS = ("MemoryError", "OutOfMemoryError", "TimeoutError")
_MOST = 4
"""Gradient findings: one fault spreads to every gradient upstream of it."""


def measures_of(outcomes: Mapping[int, Outcome]) -> dict[str, float]:
    """The largest relative error of each kind of comparison."""
    largest: dict[str, float] = {}
    for comparison in worst(outcomes).values():
        largest[comparison.what] = max(largest.get(comparison.what, 0.0), comparison.error)
    return largest


def findings_of(case: Case, outcomes: Mapping[int, Outcome]) -> tuple[Finding, ...]:
    """What the ranks' outcomes mean for the plan."""
    model = build(case.loaded)
    styles = case.plan.styles(base_prefix(model))
    refused = next((outcome.refused for outcome in outcomes.values() if outcome.refused), None)
    wrong = [comparison for comparison in worst(outcomes).values() if not comparison.right]
    divergence = next((outcome.divergence for outcome in outcomes.values() if outcome.divergence), None)
    failures = {rank: outcome.failure for rank, outcome in outcomes.items() if outcome.failure}
    failed = [_failure(failures, case, styles, model)] if failures else []
    found = (*_wrong(case, wrong, styles, divergence), *failed, *([_refusal(refused)] if refused else []))
    return tuple(as_written(finding, base_prefix(model)) for finding in found)


def _failure(failures: Mapping[int, Failure], case: Case, styles: dict[str, str], model: nn.Module) -> Finding:
    """The first failure; where all ranks failed alike, which of them was first is chance, and is not said."""
    failures = {rank: failure for rank, failure in failures.items() if not failure.heard_of} or failures
    alike = len(failures) == case.tp * case.pp and len({(f.stage, f.kind) for f in failures.values()}) == 1
    rank = min(failures) if alike else min(failures, key=lambda rank: failures[rank].when)
    first = failures[rank]
    owners = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    entry = entry_of(first.module, styles) or (generic(first.module) if first.module in owners else None)
    return failure_finding("every rank" if alike else f"rank {rank}", first, entry)


def failure_finding(who: str, failure: Failure, entry: str | None) -> Finding:
    """A rank that raised: the plan's fault, unless the single-device model raised too, or it was a limit of this
    machine."""
    ours = failure.kind in _OUR_LIMITS or failure.heard_of
    decided = failure.sharded and not ours
    fault = Fault.PLAN if decided else Fault.OURS if ours else Fault.MODEL
    return Finding(
        code="DY504",
        severity=Severity.ERROR if decided else Severity.UNDECIDED,
        message=f"{who} failed in {failure.stage}: {failure.kind}: {failure.message}",
        place=Place(entry, failure.module or None, failure.source),
        why="the per-rank program cannot run" if decided else "nothing was compared",
        found=failure.kind,
        needed="a run to the end on every rank",
        fault=fault,
    )


def _wrong(
    case: Case, wrong: Sequence[Comparison], styles: dict[str, str], divergence: Divergence | None
) -> tuple[Finding, ...]:
    """Weights before outputs before decode before gradients: each is a consequence of the ones before it."""
    kinds: dict[str, list[Comparison]] = {code: [] for code in ("DY506", "DY501", "DY503", "DY502")}
    for comparison in wrong:
        kinds[_code(comparison.what)].append(comparison)
    if kinds["DY506"]:
        return tuple(_weight(comparison, styles) for comparison in kinds["DY506"][:_MOST])
    if kinds["DY501"]:
        return (_output(kinds["DY501"], divergence),)
    if kinds["DY503"]:
        return (_decode(kinds["DY503"], divergence),)
    return _gradients(case, kinds["DY502"], styles)


def _code(what: str) -> str:
    words = {"gradient": "DY502", "decode": "DY503", "generated": "DY503", "weight": "DY506"}
    return next((code for word, code in words.items() if word in what), "DY501")


def _output(wrong: Sequence[Comparison], divergence: Divergence | None) -> Finding:
    worst_one = max(wrong, key=lambda comparison: comparison.error)
    names = ", ".join(f"{comparison.what} by {comparison.error:.1e}" for comparison in wrong)
    where = f"; the first module to differ is {divergence.module}" if divergence else ""
    return Finding(
        code="DY501",
        severity=Severity.ERROR,
        message=f"the sharded model's output differs from the single-device one ({names}){where}",
        place=_place(divergence, worst_one.place),
        why="every rank's result must be the single-device one, or its own shard of it",
        found=divergence.found if divergence else f"relative error {worst_one.error:.1e}",
        needed=divergence.needed if divergence else f"at most {worst_one.limit:.0e}",
    )


def _decode(wrong: Sequence[Comparison], divergence: Divergence | None) -> Finding:
    error = max(comparison.error for comparison in wrong)
    return Finding(
        code="DY503",
        severity=Severity.ERROR,
        message=(
            f"decoding through the cache differs from the single-device model by {error:.1e}, the full forward does not"
        ),
        place=_place(divergence, wrong[0].place),
        why="the cache of a rank must hold the keys and values of its own heads, at the global layer index",
        found=f"relative error {error:.1e}",
        needed=f"at most {wrong[0].limit:.0e}",
    )


def _place(divergence: Divergence | None, module: str) -> Place:
    return Place(divergence.entry, divergence.module) if divergence else Place(module=module or None)


def _weight(comparison: Comparison, styles: dict[str, str]) -> Finding:
    return Finding(
        code="DY506",
        severity=Severity.ERROR,
        message=f"{comparison.place}, put together from the ranks' shards, is not the parameter that was loaded",
        place=Place(entry_of(comparison.place, styles), comparison.place.rpartition(".")[0] or None),
        why="the shards of a parameter must be its parts, each once",
        found=f"relative error {comparison.error:.1e}",
        needed="the same bits",
    )


def _gradients(case: Case, wrong: Sequence[Comparison], styles: dict[str, str]) -> tuple[Finding, ...]:
    """The last layer in which any is wrong is where the fault is: backward runs from the end to the beginning."""
    once = {comparison.place for comparison in wrong if comparison.what == "gradient"}
    client = [c for c in wrong if c.place not in once and _clients_accumulation(case, c, styles)]
    plain = [comparison for comparison in wrong if comparison not in client]
    by_key = {
        generic(comparison.place): comparison for comparison in reversed(plain) if comparison.place in once or not once
    }
    found = [_gradient(comparison, styles, len(plain)) for comparison in list(by_key.values())[:_MOST]]
    return (*found, *([_accumulation(case, client, styles)] if client else []))


def _gradient(comparison: Comparison, styles: dict[str, str], count: int) -> Finding:
    entry = entry_of(comparison.place, styles)
    module = comparison.place.rpartition(".")[0]
    style = styles[entry] if entry else "no entry"
    return Finding(
        code="DY502",
        severity=Severity.ERROR,
        message=(
            f"the {comparison.what} of {comparison.place} differs by {comparison.error:.1e} ({count} differ in all)"
        ),
        place=Place(entry or generic(module), module or None),
        why="each rank sees only its own part of the loss's dependence on it, and the parts must be summed once",
        found=style,
        needed="a style that reduces this gradient once",
    )


def _clients_accumulation(case: Case, comparison: Comparison, styles: dict[str, str]) -> bool:
    """Whether this is Transformers' own way with `replicated_with_grad_allreduce`.

    Its hook reduces the *accumulated* gradient, so after a second backward the first counts `tp` times: `(tp + 1) g`
    where
    `2 g` is right, a relative error of `(tp - 1) / 2`. Source: transformers 5.23.0, distributed/tensor_parallel.py,
    `ReplicatedWithGradAllReduce`.
    """
    entry = entry_of(comparison.place, styles)
    expected = (case.tp - 1) / 2
    return (
        entry is not None
        and styles[entry] == "replicated_with_grad_allreduce"
        and abs(comparison.error - expected) < 1e-6
    )


def _accumulation(case: Case, wrong: Sequence[Comparison], styles: dict[str, str]) -> Finding:
    return Finding(
        code="DY502",
        severity=Severity.WARNING,
        message=(
            f"with gradients accumulated over two backwards, Transformers counts the first one {case.tp} times for "
            f"{len(wrong)} parameters under replicated_with_grad_allreduce"
        ),
        place=Place(entry_of(wrong[0].place, styles), wrong[0].place.rpartition(".")[0]),
        why="its hook all-reduces the accumulated gradient, not what one backward adds",
        found=f"{case.tp + 1} g",
        needed="2 g; until it is mended, zero the gradients before every backward",
        fault=Fault.CLIENT,
    )


def _refusal(refused: Failure) -> Finding:
    return Finding(
        code="DY504",
        severity=Severity.WARNING,
        message="training raises: the model adds in place to a sharded module's output, which autograd refuses",
        place=Place(source=refused.source),
        why=(
            "the client's hook gives a view made by a custom function; gradients were compared with `a = a + b` instead"
        ),
        found="a += b",
        needed="a = a + b",
        fault=Fault.MODEL,
    )
