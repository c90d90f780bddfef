"""`plan suggest MODEL`: infer a plan, prove it, print it."""

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardproof.launch.commands.options import (
    AdapterOption,
    DebugOption,
    InputOption,
    ModelArgument,
    PlanForOption,
    PythonOption,
    QuietOption,
    SetOption,
    TrustOption,
    degree,
    settings,
)
from shardproof.launch.commands.read_inputs import ModelReference, read_dialect, read_model
from shardproof.launch.output.console import Progress, only_results_on_stdout, print_aside, print_result
from shardproof.launch.output.finding_lines import locator
from shardproof.launch.output.source_excerpts import excerpt
from shardproof.launch.output.suggestion_text import suggestion_text
from shardproof.launch.result import EXIT_CODES, CommandResult, MisuseError, UndecidedError
from shardproof.launch.saved_shares import shares_of
from shardproof.planner.ir.degrees import Degrees
from shardproof.planner.ir.findings import Verdict
from shardproof.planner.ir.plan import Plan
from shardproof.verify.findings import pl104
from shardproof.verify.report.client_readings import Everywhere
from shardproof.verify.report.difference import Difference
from shardproof.verify.report.environment import environment
from shardproof.verify.report.formats.json import suggestion_json
from shardproof.verify.report.formats.python import Comments, suggestion_python
from shardproof.verify.report.formats.sarif import report_sarif
from shardproof.verify.report.report import LevelResult, Report
from shardproof.verify.report.suggestion import Suggested

if TYPE_CHECKING:
    from shardproof.planner.inference.suggest import Suggestion
    from shardproof.planner.loading.load import LoadedModel
    from shardproof.verify.clients.dialect import Dialect


ALL = "all"
"""The value of `--for` that asks for one plan that is right in every serving client."""


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


def suggest(
    model: ModelArgument,
    set_: SetOption = None,
    input_: InputOption = None,
    adapter: AdapterOption = None,
    trust_remote_code: TrustOption = False,
    form: Annotated[
        PlanFormat | None,
        typer.Option(
            "--format", help="What to print on stdout.", show_default="text on a terminal, python in a file or a pipe"
        ),
    ] = None,
    comments: Annotated[
        Comments, typer.Option(help="Reasons in the Python: none, a few words, or in full with source lines.")
    ] = Comments.SHORT,
    why: Annotated[
        bool, typer.Option("--why", help="Explain the plan: reasons, groups of dims, what stays whole, patches.")
    ] = False,
    tp: Annotated[
        int | None,
        typer.Option(
            parser=degree, metavar="N", help="Degree at which it has to be right.", show_default="least legal above 1"
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Put the model's own plan beside it, with a verdict on each difference.")
    ] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Write the plan into the model's classes, and print the diff instead.")
    ] = False,
    allow_installed: Annotated[
        bool, typer.Option("--allow-installed", help="Let --write change the files of an installed package.")
    ] = False,
    for_: PlanForOption = None,
    _python: PythonOption = None,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Infer a plan from the model's computation, prove it, and print it, ready to paste."""
    progress = Progress(quiet)
    form = form or (PlanFormat.TEXT if _on_terminal() else PlanFormat.PYTHON)
    with only_results_on_stdout(debug=debug):
        adapters = tuple(adapter or ())
        if adapters and write:
            raise MisuseError(
                "--write puts a plan into a model's class, which has no adapters; leave --adapter or --write out."
            )
        reference = ModelReference(model, settings(set_), trust_remote_code, tuple(input_ or ()), adapters)
        loaded = read_model(reference, progress)
        explained = why or form is PlanFormat.HTML
        client = _client_of(form, for_)
        if adapters and client is not None:
            raise MisuseError(f"--adapter: how {client} shards adapters is not known; leave --for {client} out.")
        suggested = suggest_plan(loaded, progress=progress, tp=tp, compared=compare, client=client, why=explained)
        text, suggested = _text(loaded, suggested, form, comments, why=why)
        result = CommandResult(text, EXIT_CODES[suggested.report.verdict])
        if not quiet and (write or form is not PlanFormat.TEXT):
            print_aside(suggestion_text(suggested, width=_width(), why=why))
        if write:
            result = _write(loaded, suggested, progress, allow_installed=allow_installed)
    print_result(result.text)
    raise typer.Exit(result.code)


def suggest_plan(
    loaded: "LoadedModel",
    *,
    progress: Progress,
    tp: int | None = None,
    compared: bool = False,
    client: str | None = None,
    why: bool = False,
) -> Suggested:
    """Infer a plan and prove it.

    Args:
        loaded: the model.
        progress: reports the steps.
        tp: the degree of the proof; by default the least legal one above 1.
        compared: also compare with the plan that the model carries.
        client: give the plan in this client's dialect; by default in Transformers', with what every serving client makes of it.
        why: also explain the plan.

    Raises:
        UndecidedError: the forward cannot be traced.
    """
    dialects = _dialects(client) if client is not None else ()
    with progress.step(f"inferring a plan for {loaded.title}"):
        suggestion = _infer(loaded, why=why)
    with progress.step("finding the legal degrees"):
        degrees = _degrees(loaded, suggestion.plan)
    if tp is not None and tp > 1 and tp not in degrees.legal:
        with progress.step(f"inferring a plan that is right at tp {tp}"):
            suggestion = _infer(loaded, why=why, tp=tp)
            degrees = _degrees(loaded, suggestion.plan)
    degree = tp or next((degree for degree in degrees.legal if degree > 1), 2)
    everywhere: Everywhere | None = None
    with progress.step(f"proving it at tp {degree}"):
        if dialects:
            plan, proof, losses, fraction = _compiled(loaded, suggestion.plan, dialects, degree)
        else:
            plan, everywhere = _everywhere(loaded, suggestion.plan, degree)
            proof, losses = _proof_of_suggestion(loaded, plan, degree), ()
            if proof.verdict is Verdict.REFUTED:
                suggestion, proof = _right_part(loaded, replace(suggestion, plan=plan), degree)
                plan, degrees, everywhere = suggestion.plan, _degrees(loaded, suggestion.plan), None
            fraction = suggestion.sharded_fraction
    return Suggested(
        model=loaded.title,
        config_class="" if loaded.is_module else type(loaded.config).__name__,
        model_class=loaded.model_class.__name__,
        plan=plan,
        degrees=degrees,
        sharded_fraction=fraction,
        tp=degree,
        report=Report(
            loaded.title, (proof,), environment(), shares=None if dialects else shares_of(loaded, plan, degree)
        ),
        notes=(*suggestion.notes, *losses),
        lost=losses,
        differences=_differences(loaded, suggestion, degree, progress) if compared else None,
        explanation=suggestion.explanation,
        owners=suggestion.owners,
        everywhere=everywhere,
        left=() if dialects else suggestion.left,
    )


def _on_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def _width() -> int:
    """Columns of the terminal; COLUMNS overrides them, and without a terminal they are 100."""
    return shutil.get_terminal_size((100, 24)).columns


def _client_of(form: PlanFormat, named: str | None) -> str | None:
    """In whose words the plan is made: those of the tool that takes the form, else of the client that was named."""
    from shardproof.launch.authoring.tool_forms import CLIENT_OF, ToolForm

    if form not in TOOL_FORMS:
        return named
    own = CLIENT_OF[ToolForm(form.value)]
    if named is not None and named.partition("@")[0] != (own or "transformers"):
        raise MisuseError(f"--format {form.value} has a reader of its own; leave --for {named} out.")
    return own


def _text(
    loaded: "LoadedModel", suggested: Suggested, form: PlanFormat, comments: Comments, *, why: bool
) -> tuple[str, Suggested]:
    """What is printed, and the suggestion with the proof and the notes of what arrives in that form."""
    from shardproof.launch.authoring.tool_forms import ToolForm, in_form, with_lost_in_config

    if form in TOOL_FORMS:
        made, suggested = in_form(loaded, suggested, ToolForm(form.value))
        return made.text, suggested
    if form is PlanFormat.OVERRIDES and suggested.everywhere is not None:
        suggested = with_lost_in_config(loaded, suggested)
    return _printed(loaded, suggested, form, comments, why=why), suggested


def _printed(loaded: "LoadedModel", suggested: Suggested, form: PlanFormat, comments: Comments, *, why: bool) -> str:
    match form:
        case PlanFormat.PYTHON:
            return suggestion_python(suggested, comments=comments)
        case PlanFormat.TEXT:
            python = suggestion_python(suggested, comments=comments, head=False)
            return suggestion_text(suggested, width=_width(), why=why, python=python)
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


def _dialects(client: str) -> tuple["Dialect", ...]:
    from shardproof.verify.clients.common_plan import serving
    from shardproof.verify.clients.diffusers.dialect import DIFFUSERS
    from shardproof.verify.clients.torchtitan.parallelize import PARALLELIZE

    own = {PARALLELIZE.client: PARALLELIZE, DIFFUSERS.client: DIFFUSERS}
    if client in own:
        return (own[client],)
    return serving() if client == ALL else (read_dialect(client),)


def _everywhere(loaded: "LoadedModel", plan: Plan, degree: int) -> tuple[Plan, Everywhere | None]:
    """A plan that every serving client reads in the same way, where there is one, and the verdict for each client."""
    from shardproof.verify.clients.common_plan import everywhere

    if (
        loaded.is_module or loaded.adapters or not (plan.tp or plan.head_tp)
    ):  # no serving client takes a module of any class, nor an adapter by a plan
        return plan, None
    return everywhere(loaded, plan, tp=degree)


def _compiled(
    loaded: "LoadedModel", plan: Plan, dialects: Sequence["Dialect"], degree: int
) -> tuple[Plan, LevelResult, tuple[str, ...], float]:
    """The plan in the dialect of one or several clients, its proof, notes on what is not sharded there, and the share (0 to 1) of
    the parameter bytes that the first client shards.
    """
    from shardproof.planner.loading.carried_plan import base_prefix
    from shardproof.planner.tracing.programs import on_meta, subject_of
    from shardproof.verify.clients.compile import compile_for
    from shardproof.verify.clients.reading import sharded_in
    from shardproof.verify.clients.torchtitan.parallelize import PARALLELIZE, without_shared

    losses: tuple[str, ...] = ()
    if dialects == (PARALLELIZE,):
        plan, shared = without_shared(on_meta(loaded), base_prefix(on_meta(loaded)), plan)
        losses = tuple(
            f"{path} stays whole: parallelize_module would part its weight from the one tied to it" for path in shared
        )
    compiled = compile_for(dialects, loaded, plan, tp=degree)
    losses += tuple(f"{parent or 'the base model'}: {why}" for parent, why in compiled.losses.items())
    reach = tuple(f"it reaches {dialect.name} by {dialect.reach}" for dialect in dialects if dialect.reach)
    fraction = sharded_in(dialects[0], subject_of(on_meta(loaded)), compiled.plan, degree)
    return compiled.plan, compiled.proof, (*losses, *reach), fraction


def _differences(
    loaded: "LoadedModel", suggestion: "Suggestion", degree: int, progress: Progress
) -> tuple[Difference, ...]:
    from shardproof.planner.loading.carried_plan import carried_plan
    from shardproof.planner.tracing.programs import on_meta
    from shardproof.verify.proof.compare_plans import compare

    with progress.step(f"comparing it with the plan that {loaded.title} carries"):
        model = on_meta(loaded)
        return compare(model, suggestion.graph, carried_plan(loaded, model), suggestion.plan, tp=degree)


def _write(loaded: "LoadedModel", suggested: Suggested, progress: Progress, *, allow_installed: bool) -> CommandResult:
    """Write a plan into the model's classes if it is proved, and read it back in a fresh process."""
    from shardproof.launch.authoring.plan_attributes import write_plan
    from shardproof.launch.authoring.read_back import not_carried
    from shardproof.planner.tracing.programs import on_meta

    code = EXIT_CODES[suggested.report.verdict]
    if code:
        progress.note(f"nothing was written: the plan is {suggested.report.verdict}.")
        return CommandResult("", code)
    written = write_plan(loaded, on_meta(loaded), suggested.plan, allow_installed=allow_installed)
    if written.files:
        with progress.step("reading it back"), _undone_on_error(written.files):
            if why := not_carried(loaded, suggested.plan):
                raise MisuseError(f"nothing was changed, because with the plan written {why}")
    for sentence in written.notes:
        progress.note(sentence)
    return CommandResult(written.diff.rstrip("\n"), 0)


@contextmanager
def _undone_on_error(files: tuple[Path, ...]) -> Iterator[None]:
    """Restore the files where the block raises, also after Ctrl-C."""
    from shardproof.launch.authoring.source_files import undo

    try:
        yield
    except BaseException:
        undo(files)
        raise


def _infer(loaded: "LoadedModel", *, why: bool, tp: int | None = None) -> "Suggestion":
    from shardproof.launch.proved_suggestion import suggest as infer
    from shardproof.planner.tracing.trace import TraceError

    try:
        return infer(loaded, why=why, tp=tp)
    except TraceError as error:
        where = f" at {error.source}" if error.source else ""
        raise UndecidedError(
            f"{loaded.title}: the forward cannot be run without data, so nothing can be inferred{where}: {error}"
        ) from error


def _degrees(loaded: "LoadedModel", plan: Plan) -> Degrees:
    from shardproof.verify.proof.degrees import legal_degrees

    return legal_degrees(loaded, plan)


def _right_part(loaded: "LoadedModel", suggestion: "Suggestion", degree: int) -> tuple["Suggestion", LevelResult]:
    from shardproof.launch.proved_suggestion import right_part

    left, proof = right_part(loaded, suggestion, degree)
    return left, proof or _nothing_to_prove(loaded)


def _proof_of_suggestion(loaded: "LoadedModel", plan: Plan, degree: int) -> LevelResult:
    from shardproof.verify.proof.prove import prove

    return prove(loaded, plan, tp=degree) if plan.tp or plan.head_tp else _nothing_to_prove(loaded)


def _nothing_to_prove(loaded: "LoadedModel") -> LevelResult:
    return LevelResult("proof", 0.0, (pl104.nothing_to_prove(loaded.title),))
