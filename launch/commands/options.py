"""Command-line arguments that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from shardproof.launch.commands import completion
from shardproof.launch.output.console import say
from shardproof.launch.result import MisuseError, ReportFormat

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A Transformers model type, config.json, checkpoint folder, Hub id, file.py:Class or package.mod:Class.",
        show_default=False,
        autocompletion=completion.models,
    ),
]
ModelsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL...",
        help="Models: Transformers model types, config.json files, checkpoint folders, globs of them, Hub ids, file.py:Class or "
        "package.mod:Class. Without one: those under [tool.shardproof] in pyproject.toml.",
        show_default=False,
        autocompletion=completion.models,
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", metavar="FILE", help="Write the result into a file.", show_default="standard output"),
]
BaselineOption = Annotated[
    Path | None,
    typer.Option("--baseline", metavar="FILE", help="Known findings: they are told, and do not fail again."),
]
WriteBaselineOption = Annotated[
    Path | None, typer.Option("--write-baseline", metavar="FILE", help="Write every finding as known, and exit with 0.")
]
ChangedOption = Annotated[
    bool,
    typer.Option(
        "--changed",
        help="Only models of pyproject.toml whose files changed: by git, or the files given in place of models.",
    ),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a field of the config; repeatable.")
]
InputOption = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="NAME: DTYPE[DIMS]",
        help="An argument of the forward of any nn.Module, such as 'x: float[b, 16, 64]'; repeatable.",
        show_default="guessed from the first layers",
    ),
]


InputsOption = Annotated[
    str | None,
    typer.Option(
        "--inputs",
        metavar="FILE.py:FUNCTION",
        help="A function that returns the arguments of the forward of any nn.Module; it may take the model's fields.",
        show_default="guessed from the first layers",
    ),
]


def inputs_given(declared: list[str] | None, function: str | None) -> tuple[str, ...]:
    """What `--input` and `--inputs` say, in one."""
    return (*(declared or ()), *((function,) if function else ()))


def _elsewhere(context: typer.Context, python: Path | None) -> None:
    """Hand the whole command over to another interpreter, and end with its exit code."""
    if python is None or context.resilient_parsing:
        return
    from shardproof.launch.clients.other_python import run_elsewhere

    raise typer.Exit(run_elsewhere(str(python), context.find_root().obj or (), say))


PythonOption = Annotated[
    Path | None,
    typer.Option(
        "--python",
        metavar="FILE",
        help="Do all of it in this Python, with the Transformers and torch that it has; nothing is installed there.",
        show_default="this one",
        is_eager=True,
        callback=_elsewhere,
    ),
]
AdapterOption = Annotated[
    list[str] | None,
    typer.Option("--adapter", metavar="FOLDER", help="An adapter (LoRA, DoRA, rsLoRA) saved by PEFT; repeatable."),
]
AttentionOption = Annotated[
    str | None,
    typer.Option(
        "--attention",
        metavar="NAME",
        help="The attention implementation: eager, sdpa, flex_attention, or another that Transformers registers.",
        show_default="the config's, and eager beside sdpa",
    ),
]
ExpertsOption = Annotated[
    str | None,
    typer.Option(
        "--experts",
        metavar="NAME",
        help="The experts implementation: eager, batched_mm, grouped_mm, or another that Transformers registers.",
        show_default="eager",
    ),
]
TrustOption = Annotated[bool, typer.Option("--trust-remote-code", help="Run the code that lies with the checkpoint.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on stderr but errors.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an unexpected error.")]


FormatOption = Annotated[ReportFormat, typer.Option("--format", help="What to print on stdout.")]


ForOption = Annotated[
    str | None,
    typer.Option(
        "--for",
        "--client",
        metavar="CLIENT",
        help="Whose reading of the plan: transformers, vllm, sglang, tgi, torchtitan, deepspeed or nemo, or one version, as "
        "vllm@0.24; with --level client also accelerate and trl.",
        autocompletion=completion.readings,
        show_default="transformers",
    ),
]

PlanForOption = Annotated[
    str | None,
    typer.Option(
        "--for",
        "--client",
        metavar="CLIENT",
        help="In whose words: transformers, vllm, sglang, tgi, torchtitan, deepspeed or nemo, one version, as vllm@0.24, or all: "
        "one plan that transformers, vllm, sglang and tgi all read rightly.",
        autocompletion=completion.addressees,
        show_default="transformers, and what the others make of it",
    ),
]


def degree(text: str) -> int:
    """A parallel degree, at least 1, from its text."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise typer.BadParameter(f"a degree is a whole number from 1 up, not {text!r}")
    return int(text)


def several(given: list[str] | None) -> tuple[str, ...]:
    """The values of a repeatable option."""
    return tuple(given or ())


def settings(given: list[str] | None) -> dict[str, str]:
    """The values of `--set`, by key.

    Raises:
        MisuseError: a value is not of the form KEY=VALUE.
    """
    pairs = [text.partition("=") for text in given or ()]
    for key, equals, _ in pairs:
        if not equals or not key:
            raise MisuseError(f"--set takes KEY=VALUE, such as --set num_hidden_layers=2, not {key!r}.")
    return {key: value for key, _, value in pairs}
