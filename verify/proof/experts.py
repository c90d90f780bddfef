"""Is an expert-parallel plan right? Every module that tokens are dispatched to has to keep to the contract of the dispatch.

The dispatch itself is the client's code. Its contract, with sources, is in
`planner.propagation.expert_dispatch`.
"""

from collections.abc import Iterator

from shardproof.planner.ir.findings import Finding
from shardproof.planner.ir.graph import Graph, Module
from shardproof.planner.ir.plan import Plan, generic, join
from shardproof.planner.propagation.expert_dispatch import dispatch_fault, stacked
from shardproof.verify.findings import tp201, tp210, tp214

DISPATCH, STACKED = "ep_dispatch_experts", "grouped_gemm"


def check_experts(graph: Graph, plan: Plan, prefix: str, degree: int, *, tried: bool = False) -> tuple[Finding, ...]:
    """Findings TP201, TP210 and TP214 of the expert-parallel entries, at this many ranks; `tried` as in `dispatch_fault`."""
    styles = {join(prefix, entry.pattern): entry.style for entry in plan.ep}
    called = {call.module for call in graph.calls}
    found: list[Finding] = []
    seen: set[str] = set()
    # The trace calls only the first of several equal layers.
    for module in sorted(graph.modules, key=lambda module: module.path not in called):
        pattern = generic(module.path)
        if pattern not in seen:
            seen.add(pattern)
            found += list(_module_findings(graph, module, pattern, styles, degree, tried=tried))[:1]
    return tuple(found)


def _module_findings(
    graph: Graph, module: Module, pattern: str, styles: dict[str, str], degree: int, *, tried: bool
) -> Iterator[Finding]:
    # A module's entry also gives the placement of its parameters that have no entry of their own.
    keys = {name: name if name in styles else pattern for name in (join(pattern, own) for own, _ in module.parameters)}
    own = {name: styles.get(key) for name, key in keys.items()}
    by_expert = [keys[name] for name, style in own.items() if style == STACKED]
    if styles.get(pattern) != DISPATCH:
        if by_expert:
            yield tp214.not_dispatchable(
                module.path,
                pattern if dispatch_fault(graph, module) is None else by_expert[0],
                problem="no tokens are sent to the ranks that hold these experts",
                found=f"{by_expert[0]}: {STACKED}",
                needed=f"{pattern}: {DISPATCH} beside it",
            )
        return
    if stacked(graph, module) and all(call.module != module.path for call in graph.calls):
        yield tp210.experts_not_called(module.path, pattern)
        return
    fault = dispatch_fault(graph, module, tried=tried)
    if fault is not None:
        found = "an entry for experts that tokens cannot be sent to"
        yield tp214.not_dispatchable(module.path, pattern, problem=fault, found=found, needed="no such entry")
    for name, style in own.items():
        if style != STACKED:
            found = f"{name}: {styles.get(name, 'no entry')}"
            needed = f"{name}: {STACKED}"
            yield tp214.not_dispatchable(module.path, name, problem=f"{name} stays whole", found=found, needed=needed)
    count = stacked(graph, module) or 0
    if count % degree:
        yield tp201.experts_do_not_divide(module.path, pattern, count=count, degree=degree)
