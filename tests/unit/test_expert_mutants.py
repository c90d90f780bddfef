"""Every mistake in an expert plan is refuted, at the entry that is wrong."""

from shardproof.planner.ir.findings import Severity
from shardproof.planner.ir.plan import Plan, TpEntry
from shardproof.planner.loading.build import build
from shardproof.planner.loading.load import load
from shardproof.planner.tracing.trace import trace
from shardproof.verify.proof.experts import check_experts
from tests.mutants.operators import Mutant, expert_mutants
from tests.unit.test_ep import MIXTRAL

PREFIX = "model"


def _plan(mutant: Mutant) -> Plan:
    return Plan(ep=tuple(TpEntry(key.removeprefix(f"{PREFIX}."), style) for key, style in mutant.experts.items()))


def test_each_mutant_is_refuted_at_a_mutated_entry() -> None:
    """The plan by hand is the one that is inferred, where the installed Transformers dispatches experts: `test_ep.py`."""
    graph = trace(build(load("mixtral")))
    experts = {f"{PREFIX}.{entry.pattern}": entry.style for entry in MIXTRAL}
    assert not check_experts(graph, Plan(ep=MIXTRAL), PREFIX, 2)
    mutants = list(expert_mutants(graph, {}, experts))
    assert mutants
    for mutant in mutants:
        findings = check_experts(graph, _plan(mutant), PREFIX, 2)
        assert {finding.place.entry for finding in findings} & set(mutant.entries), (mutant.name, findings)
        assert all(finding.severity is Severity.ERROR for finding in findings)
