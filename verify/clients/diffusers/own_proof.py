"""The proof of the plan that a class of modules carries, as diffusers' runtime reads it."""

from dataclasses import replace

from shardproof.planner.ir.plan import Plan
from shardproof.planner.loading.load import LoadedModel
from shardproof.planner.tracing.programs import on_meta
from shardproof.verify.clients.diffusers.dialect import DIFFUSERS
from shardproof.verify.clients.prove import prove_for
from shardproof.verify.findings import tp210
from shardproof.verify.proof.plan_form import check_plan
from shardproof.verify.report.report import LevelResult
from shardproof.verify.report.scope import Scope

ASSUMED = (
    "the `_tp_plan` of this class is diffusers' own, whose runtime is for inference: training was not looked at",
    "a branch on data takes the side that was traced",
)


def prove_own_plan(loaded: LoadedModel, plan: Plan, *, tp: int, pp: int = 1, strict: bool = False) -> LevelResult:
    """Prove or refute a class's `_tp_plan`: the form of its keys, and the forward in evaluation. With `strict`, what is assumed
    is undecided.

    Raises:
        ValueError: a degree is below 1.
        LoadError: the model cannot be built.
    """
    proof = prove_for(DIFFUSERS, loaded, plan, tp=tp, pp=pp)
    form = check_plan(on_meta(loaded), plan, tp)
    undecided = tuple(tp210.assumption(one) for one in ASSUMED) if strict else ()
    findings = tuple(dict.fromkeys((*form, *proof.findings, *undecided)))
    return replace(proof, findings=findings, scope=Scope(("evaluation",), assumptions=ASSUMED))
