"""`plan suggest MODEL`: infer a plan, prove it, print it."""

import sys
from typing import Annotated

import typer

from shardproof.launch.commands.options import (
    AdapterOption,
    AttentionOption,
    DebugOption,
    ExpertsOption,
    InputOption,
    InputsOption,
    ModelArgument,
    PlanForOption,
    PythonOption,
    QuietOption,
    SetOption,
    TrustOption,
    degree,
    inputs_given,
    settings,
    several,
)
from shardproof.launch.commands.read_inputs import ModelReference, read_model
from shardproof.launch.commands.suggestion.plan_formats import PlanFormat, client_of_format, formatted, terminal_width
from shardproof.launch.commands.suggestion.suggest_plan import suggest_plan
from shardproof.launch.commands.suggestion.written_plan import write_suggestion
from shardproof.launch.output.console import Progress, only_results_on_stdout, print_aside, print_result
from shardproof.launch.output.suggestion_text import suggestion_text
from shardproof.launch.result import EXIT_CODES, CommandResult, MisuseError
from shardproof.verify.report.formats.python import Comments

FormOption = Annotated[
    PlanFormat | None,
    typer.Option(
        "--format", help="What to print on stdout.", show_default="text on a terminal, python in a file or a pipe"
    ),
]
CommentsOption = Annotated[
    Comments, typer.Option(help="Reasons in the Python: none, a few words, or in full with source lines.")
]
WhyOption = Annotated[
    bool, typer.Option("--why", help="Explain the plan: reasons, groups of dims, what stays whole, patches.")
]
DegreeOption = Annotated[
    int | None,
    typer.Option(
        parser=degree, metavar="N", help="Degree at which it has to be right.", show_default="least legal above 1"
    ),
]
CompareOption = Annotated[
    bool, typer.Option("--compare", help="Put the model's own plan beside it, with a verdict on each difference.")
]
WriteOption = Annotated[
    bool, typer.Option("--write", help="Write the plan into the model's classes, and print the diff instead.")
]
InstalledOption = Annotated[
    bool, typer.Option("--allow-installed", help="Let --write change the files of an installed package.")
]


def suggest(
    model: ModelArgument,
    set_: SetOption = None,
    input_: InputOption = None,
    inputs: InputsOption = None,
    adapter: AdapterOption = None,
    attention: AttentionOption = None,
    experts: ExpertsOption = None,
    trust_remote_code: TrustOption = False,
    form: FormOption = None,
    comments: CommentsOption = Comments.SHORT,
    why: WhyOption = False,
    tp: DegreeOption = None,
    compare: CompareOption = False,
    write: WriteOption = False,
    allow_installed: InstalledOption = False,
    for_: PlanForOption = None,
    _python: PythonOption = None,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Infer a plan from the model's computation, prove it, and print it, ready to paste."""
    progress = Progress(quiet)
    form = form or (PlanFormat.TEXT if _on_terminal() else PlanFormat.PYTHON)
    with only_results_on_stdout(debug=debug):
        adapters = several(adapter)
        if adapters and write:
            raise MisuseError(
                "--write puts a plan into a model's class, which has no adapters; leave --adapter or --write out."
            )
        reference = ModelReference(
            model,
            settings(set_),
            trust_remote_code,
            inputs_given(input_, inputs),
            adapters,
            attention,
            experts,
        )
        loaded = read_model(reference, progress)
        explained = why or form is PlanFormat.HTML
        client = client_of_format(form, for_)
        if adapters and client is not None:
            raise MisuseError(f"--adapter: how {client} shards adapters is not known; leave --for {client} out.")
        if client and client.partition("@")[0] != "transformers" and loaded.asked.keywords():
            raise MisuseError(f"--attention and --experts are Transformers' own; leave them or --for {client} out.")
        suggested = suggest_plan(loaded, progress=progress, tp=tp, compared=compare, client=client, why=explained)
        text, suggested = formatted(loaded, suggested, form, comments, why=why)
        result = CommandResult(text, EXIT_CODES[suggested.report.verdict])
        if not quiet and (write or form is not PlanFormat.TEXT):
            print_aside(suggestion_text(suggested, width=terminal_width(), why=why))
        if write:
            result = write_suggestion(loaded, suggested, progress, allow_installed=allow_installed)
    print_result(result.text)
    raise typer.Exit(result.code)


def _on_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()
