"""Every mistake in an expert plan is refuted, at the entry that is wrong."""

from shardproof.planner.inference.suggest import suggest
from shardproof.planner.ir.findings import Severity
from shardproof.planner.ir.plan import Plan, TpEntry
from shardproof.planner.loading.load import load
from shardproof.verify.proof.experts import check_experts
from tests.mutants.operators import Mutant, expert_mutants

PREFIX = "model"


def _plan(mutant: Mutant) -> Plan:
    return Plan(ep=tuple(TpEntry(key.removeprefix(f"{PREFIX}."), style) for key, style in mutant.experts.items()))


def test_each_mutant_is_refuted_at_a_mutated_entry() -> None:
    suggestion = suggest(load("mixtral"))
    experts = {f"{PREFIX}.{entry.pattern}": entry.style for entry in suggestion.plan.ep}
    assert not check_experts(suggestion.graph, suggestion.plan, PREFIX, 2)
    for mutant in expert_mutants(suggestion.graph, {}, experts):
        findings = check_experts(suggestion.graph, _plan(mutant), PREFIX, 2)
        assert {finding.place.entry for finding in findings} & set(mutant.entries), (mutant.name, findings)
        assert all(finding.severity is Severity.ERROR for finding in findings)
