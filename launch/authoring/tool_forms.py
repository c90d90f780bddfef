"""A suggestion in the form that a tool takes, with the proof of the plan that the tool then has."""

from dataclasses import replace
from enum import StrEnum

from shardproof.launch.authoring.arriving_plan import through_config, through_distributed_config
from shardproof.launch.authoring.plan_forms import (
    PrintedForm,
    deepspeed_form,
    diffusers_form,
    distributed_config_form,
    parallelize_form,
)
from shardproof.planner.ir.errors import ArgumentError
from shardproof.planner.ir.findings import Finding
from shardproof.planner.ir.plan import Plan
from shardproof.planner.loading.carried_plan import base_prefix
from shardproof.planner.loading.load import LoadedModel
from shardproof.planner.tracing.programs import on_meta
from shardproof.verify.clients.deepspeed.layout import styles_read, vocabulary_apart
from shardproof.verify.clients.diffusers.dialect import DIFFUSERS
from shardproof.verify.clients.nemo.dialect import NEMO
from shardproof.verify.clients.nemo.heads import refused_heads
from shardproof.verify.clients.torchtitan.parallelize import PARALLELIZE
from shardproof.verify.proof.prove import prove
from shardproof.verify.report.suggestion import Suggested


class ToolForm(StrEnum):
    """The forms whose plan is compiled or merged first."""

    PARALLELIZE = "parallelize"
    NEMO = "nemo"
    DISTRIBUTED_CONFIG = "distributed-config"
    DIFFUSERS = "diffusers"
    DEEPSPEED = "deepspeed"


CLIENT_OF = {
    ToolForm.PARALLELIZE: PARALLELIZE.client,
    ToolForm.NEMO: PARALLELIZE.client,
    ToolForm.DISTRIBUTED_CONFIG: None,
    ToolForm.DIFFUSERS: DIFFUSERS.client,
    ToolForm.DEEPSPEED: "deepspeed",
}
"""In whose reading the plan of a form is suggested; None for Transformers."""


def in_form(loaded: LoadedModel, suggested: Suggested, form: ToolForm) -> tuple[PrintedForm, Suggested]:
    """The text, and the suggestion with what is lost in its notes and the proof of what arrives."""
    model = on_meta(loaded)
    styles = suggested.plan.styles(base_prefix(model))
    match form:
        case ToolForm.PARALLELIZE:
            made = parallelize_form(_title(suggested, "parallelize_module"), styles, suggested.lost)
            return made, suggested
        case ToolForm.NEMO:
            suggested = _with_findings(suggested, tuple(refused_heads(NEMO, model, suggested.tp)))
            title = _title(suggested, "tp_plan of a NeMo AutoModel recipe, FILE.PLAN")
            return parallelize_form(title, styles, suggested.lost, nemo=True), suggested
        case ToolForm.DIFFUSERS:
            if not loaded.is_module:
                raise ArgumentError(
                    f"{loaded.title} is a Transformers model, and diffusers runs its own classes alone."
                )
            whys = {entry.pattern: entry.brief for entry in (*suggested.plan.head_tp, *suggested.plan.tp)}
            return diffusers_form(_title(suggested, "diffusers"), styles, whys, suggested.lost), suggested
        case ToolForm.DEEPSPEED:
            read = styles_read(model, base_prefix(model), suggested.plan)
            apart = vocabulary_apart(model, read) is not None
            made = deepspeed_form(suggested.tp, styles, vocabulary_apart=apart)
        case ToolForm.DISTRIBUTED_CONFIG:
            arriving = through_distributed_config(model, suggested.plan)
            suggested = _proved_again(loaded, suggested, arriving.plan)
            made = distributed_config_form(
                _title(suggested, "DistributedConfig"), suggested.tp, arriving.given, arriving.lost
            )
    return made, replace(suggested, notes=(*suggested.notes, *made.lost))


def with_lost_in_config(loaded: LoadedModel, suggested: Suggested) -> Suggested:
    """The suggestion for keys of a config: what they cannot say is in its notes, and what arrives is proved."""
    arriving = through_config(on_meta(loaded), suggested.plan)
    if not arriving.lost:
        return suggested
    return replace(
        _proved_again(loaded, suggested, arriving.plan), plan=suggested.plan, notes=(*suggested.notes, *arriving.lost)
    )


def _proved_again(loaded: LoadedModel, suggested: Suggested, plan: Plan) -> Suggested:
    proof = prove(loaded, plan, tp=suggested.tp)
    return replace(suggested, report=replace(suggested.report, levels=(proof,)))


def _with_findings(suggested: Suggested, findings: tuple[Finding, ...]) -> Suggested:
    levels = tuple(replace(level, findings=(*level.findings, *findings)) for level in suggested.report.levels)
    return replace(suggested, report=replace(suggested.report, levels=levels))


def _title(suggested: Suggested, tool: str) -> str:
    return f"Plan of {suggested.model} for {tool}: {suggested.report.verdict} at tp {suggested.tp}."
