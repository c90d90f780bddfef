"""Is the expert plan right? Every module that tokens are sent to must keep to the contract of the dispatch.

The dispatch itself is the client's code; what it asks of a module, and from where that is known, is in
`planner.propagation.expert_dispatch`.
"""

from collections.abc import Iterator

from shardproof.planner.ir.findings import Finding, Place, Severity
from shardproof.planner.ir.graph import Graph, Module
from shardproof.planner.ir.plan import Plan, generic, join
from shardproof.planner.propagation.expert_dispatch import dispatch_fault, stacked

DISPATCH, STACKED = "ep_dispatch_experts", "grouped_gemm"


def check_experts(graph: Graph, plan: Plan, prefix: str, degree: int) -> tuple[Finding, ...]:
    """Findings TP201, TP210 and TP214 of the expert-parallel entries, at this many ranks."""
    styles = {join(prefix, entry.pattern): entry.style for entry in plan.ep}
    called = {call.module for call in graph.calls}
    found: list[Finding] = []
    seen: set[str] = set()
    # A repeated layer is not called again: the first of its kind stands for it.
    for module in sorted(graph.modules, key=lambda module: module.path not in called):
        pattern = generic(module.path)
        if pattern not in seen:
            seen.add(pattern)
            found += list(_module_findings(graph, module, pattern, styles, degree))[:1]
    return tuple(found)


def _module_findings(
    graph: Graph, module: Module, pattern: str, styles: dict[str, str], degree: int
) -> Iterator[Finding]:
    # A module's entry lays out its parameters too, where they have none of their own.
    keys = {name: name if name in styles else pattern for name in (join(pattern, own) for own, _ in module.parameters)}
    own = {name: styles.get(key) for name, key in keys.items()}
    by_expert = [keys[name] for name, style in own.items() if style == STACKED]
    if styles.get(pattern) != DISPATCH:
        if by_expert:
            yield _finding(
                module,
                pattern if dispatch_fault(graph, module) is None else by_expert[0],
                "no tokens are sent to the ranks that hold these experts",
                f"{by_expert[0]}: {STACKED}",
                f"{pattern}: {DISPATCH} beside it",
            )
        return
    if stacked(graph, module) and all(call.module != module.path for call in graph.calls):
        yield _unseen(module, pattern)
        return
    fault = dispatch_fault(graph, module)
    if fault is not None:
        yield _finding(module, pattern, fault, "an entry for experts that tokens cannot be sent to", "no such entry")
    for name, style in own.items():
        if style != STACKED:
            yield _finding(
                module, name, f"{name} stays whole", f"{name}: {styles.get(name, 'no entry')}", f"{name}: {STACKED}"
            )
    count = stacked(graph, module) or 0
    if count % degree:
        yield _indivisible(module, pattern, count, degree)


def _finding(module: Module, entry: str, message: str, found: str, needed: str) -> Finding:
    return Finding(
        "TP214",
        Severity.ERROR,
        f"Tokens cannot be dispatched to the experts of {module.path}: {message}.",
        Place(entry, module.path),
        why="a rank that holds E / t experts is sent the tokens that chose one of them, and nothing else",
        found=found,
        needed=needed,
    )


def _unseen(module: Module, entry: str) -> Finding:
    """Experts that no token of the trace went to, such as those for images: what is right for them is not known."""
    return Finding(
        "TP210",
        Severity.UNDECIDED,
        f"{module.path} took no part in the traced forward",
        Place(entry, module.path),
        why="what did not run in the trace is not proved",
        found="no call",
        needed="a forward that calls it on every input",
    )


def _indivisible(module: Module, entry: str, count: int, degree: int) -> Finding:
    return Finding(
        "TP201",
        Severity.ERROR,
        f"The {count} experts of {module.path} do not divide over {degree} ranks.",
        Place(entry, module.path),
        why="every rank holds as many experts as any other",
        found=str(count),
        needed=f"a multiple of {degree}",
    )
