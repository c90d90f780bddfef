"""The formats in which `plan suggest` prints a plan, and what a plan loses in each."""

import json
import shutil
from enum import StrEnum
from typing import TYPE_CHECKING

from shardproof.launch.output.finding_lines import locator
from shardproof.launch.output.source_excerpts import excerpt
from shardproof.launch.output.suggestion_text import suggestion_text
from shardproof.launch.result import MisuseError
from shardproof.verify.report.formats.json import suggestion_json
from shardproof.verify.report.formats.python import Comments, suggestion_python
from shardproof.verify.report.formats.sarif import report_sarif
from shardproof.verify.report.suggestion import Suggested

if TYPE_CHECKING:
    from shardproof.planner.loading.load import LoadedModel


class PlanFormat(StrEnum):
    PYTHON = "python"
    TEXT = "text"
    """For a reader: the entries in one table, the verdict, the degrees, and the plan as Python."""
    JSON = "json"
    OVERRIDES = "overrides"
    """The keys of config.json, and of vLLM's hf_overrides: a plan that needs no change of code."""
    PARALLELIZE = "parallelize"
    """Python that makes the styles for torch's `parallelize_module`."""
    NEMO = "nemo"
    """The same for the `tp_plan` of a NeMo AutoModel recipe."""
    DISTRIBUTED_CONFIG = "distributed-config"
    """Python that makes Transformers' `DistributedConfig`, which is merged over the model's own plan."""
    DIFFUSERS = "diffusers"
    """Python that makes the `_tp_plan` of a class of diffusers."""
    DEEPSPEED = "deepspeed"
    """The `tensor_parallel` section of a DeepSpeed config, with a `partition_config`."""
    SARIF = "sarif"
    HTML = "html"


TOOL_FORMS = (
    PlanFormat.PARALLELIZE,
    PlanFormat.NEMO,
    PlanFormat.DISTRIBUTED_CONFIG,
    PlanFormat.DIFFUSERS,
    PlanFormat.DEEPSPEED,
)
"""Forms that one tool takes: the plan is made in the words of that tool."""


def terminal_width() -> int:
    """Columns of the terminal; COLUMNS overrides them, and without a terminal they are 100."""
    return shutil.get_terminal_size((100, 24)).columns


def client_of_format(form: PlanFormat, named: str | None) -> str | None:
    """In whose words the plan is made: those of the tool that takes the form, else of the client that was named."""
    from shardproof.launch.authoring.tool_forms import CLIENT_OF, ToolForm

    if form not in TOOL_FORMS:
        return named
    own = CLIENT_OF[ToolForm(form.value)]
    if named is not None and named.partition("@")[0] != (own or "transformers"):
        raise MisuseError(f"--format {form.value} has a reader of its own; leave --for {named} out.")
    return own


def formatted(
    loaded: "LoadedModel", suggested: Suggested, form: PlanFormat, comments: Comments, *, why: bool
) -> tuple[str, Suggested]:
    """What is printed, and the suggestion with the proof and the notes of what arrives in that form."""
    from shardproof.launch.authoring.tool_forms import ToolForm, in_form, with_lost_in_config

    if form in TOOL_FORMS:
        made, suggested = in_form(loaded, suggested, ToolForm(form.value))
        return made.text, suggested
    if form is PlanFormat.OVERRIDES and suggested.everywhere is not None:
        suggested = with_lost_in_config(loaded, suggested)
    return _formatted(loaded, suggested, form, comments, why=why), suggested


def _formatted(loaded: "LoadedModel", suggested: Suggested, form: PlanFormat, comments: Comments, *, why: bool) -> str:
    match form:
        case PlanFormat.PYTHON:
            return suggestion_python(suggested, comments=comments)
        case PlanFormat.TEXT:
            python = suggestion_python(suggested, comments=comments, head=False)
            return suggestion_text(suggested, width=terminal_width(), why=why, python=python)
        case PlanFormat.JSON:
            return suggestion_json(suggested)
        case PlanFormat.SARIF:
            return report_sarif(suggested.report, locate=locator(loaded.name, loaded))
        case PlanFormat.HTML:
            return _page(loaded, suggested, comments)
        case _:
            whole = suggested.plan.to_json()
            return json.dumps({key: whole[key] for key in ("base_model_tp_plan", "base_model_pp_plan") if whole[key]})


def _page(loaded: "LoadedModel", suggested: Suggested, comments: Comments) -> str:
    """The report of the proof as HTML, with the plan as Python source and the groups of dims."""
    from shardproof.planner.tracing.programs import on_meta
    from shardproof.verify.report.formats.html import report_html
    from shardproof.verify.report.picture import picture

    return report_html(
        suggested.report,
        picture(on_meta(loaded), suggested.plan, tp=suggested.tp, pp=1),
        layout=f"tp {suggested.tp}",
        excerpt=excerpt,
        explanation=suggested.explanation,
        plan=suggestion_python(suggested, comments=comments),
    )
