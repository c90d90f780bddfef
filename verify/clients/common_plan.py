"""One plan for all clients that serve a model; where there is none, why not, and the share of bytes that stays sharded."""

from shardproof.planner.ir.findings import Severity, Verdict
from shardproof.planner.ir.plan import Plan
from shardproof.planner.loading.load import LoadedModel
from shardproof.planner.tracing.programs import Subject, on_meta, subject_of
from shardproof.verify.clients.compile import compile_for, in_order
from shardproof.verify.clients.dialect import Dialect
from shardproof.verify.clients.prove import prove_for
from shardproof.verify.clients.reading import sharded_in
from shardproof.verify.clients.registry import find_dialect
from shardproof.verify.report.client_readings import ClientVerdict, Everywhere

SERVING = ("transformers", "vllm", "sglang", "tgi")
"""The clients that read a plan to serve a model."""


def serving() -> tuple[Dialect, ...]:
    """Their dialects, at the newest version that was read."""
    return tuple(map(find_dialect, SERVING))


def everywhere(loaded: LoadedModel, plan: Plan, *, tp: int = 2) -> tuple[Plan, Everywhere]:
    """The plan with its keys in an order that every client reads alike, and the verdict for each client.

    Raises:
        LoadError: the model cannot be built.
        TraceError: the model's forward cannot be run without data.
    """
    plan = in_order(plan)
    subject = subject_of(on_meta(loaded))
    dialects = serving()
    found = tuple(_client_verdict(dialect, loaded, subject, plan, tp) for dialect in dialects)
    if all(reached.verdict is Verdict.PROVED for reached in found):
        return plan, Everywhere(found, found[0].share)
    common = compile_for(dialects, loaded, plan, tp=tp)
    share = sharded_in(dialects[0], subject, common.plan, tp)
    return plan, Everywhere(found, share if common.proof.verdict is Verdict.PROVED else None)


def _client_verdict(dialect: Dialect, loaded: LoadedModel, subject: Subject, plan: Plan, tp: int) -> ClientVerdict:
    proof = prove_for(dialect, loaded, plan, tp=tp)
    if proof.verdict is Verdict.PROVED:
        return ClientVerdict(dialect.name, proof.verdict, share=sharded_in(dialect, subject, plan, tp))
    reasons = tuple(f"{f.code}: {f.message}" for f in proof.findings if f.severity is not Severity.WARNING)
    compiled = compile_for(dialect, loaded, plan, tp=tp)
    share = sharded_in(dialect, subject, compiled.plan, tp)
    return ClientVerdict(dialect.name, proof.verdict, reasons, compiled.proof.verdict, compiled.losses, share)
