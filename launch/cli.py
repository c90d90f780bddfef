"""The command `plan`. Arguments in, one result on stdout, one sentence on stderr for an error, an exit code.

Nothing here imports torch before a command that needs it runs: help and explanations answer at once.
"""

import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from launch.commands import (
    MISUSE,
    UNDECIDED,
    Layout,
    Level,
    MisuseError,
    Model,
    PlanFormat,
    ReportFormat,
    UndecidedError,
    Verification,
)
from launch.commands import suggest as run_suggest
from launch.commands import verify as run_verify
from launch.console import Progress, only_results_on_stdout, print_result, say
from launch.job import this_rank
from planner.frontend.errors import LoadError
from verify.catalogue import explain as explanation
from verify.catalogue import overview
from verify.environment import environment

INTERRUPTED = 130

# The class of typer's usage errors lies in click or in a copy of it, depending on typer's version.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="plan",
    help="Infer tensor- and pipeline-parallel plans of Transformers models, prove them, confirm them on real ranks.",
    epilog="Exit codes: 0 verified at every level asked for, 1 refuted, 2 misuse, 3 not decided.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A Transformers model type, config.json, checkpoint folder, Hub id, file.py:Class or package.mod:Class.",
        show_default=False,
    ),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a field of the config; repeatable.")
]
TrustOption = Annotated[bool, typer.Option("--trust-remote-code", help="Run the code that lies with the checkpoint.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on stderr but errors.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an unexpected error.")]


def _degree(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise typer.BadParameter(f"a degree is a whole number from 1 up, not {text!r}")
    return int(text)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the versions and exit.")] = False,
) -> None:
    """Infer tensor- and pipeline-parallel plans of Transformers models, prove them, confirm them on real ranks."""
    if version:
        have = environment()
        others = ", ".join(f"{name} {have[name]}" for name in ("python", "torch", "transformers"))
        print_result(f"shardproof {have['shardproof']} ({others})")
        raise typer.Exit


@app.command()
def suggest(
    model: ModelArgument,
    settings: SetOption = None,
    trust_remote_code: TrustOption = False,
    form: Annotated[PlanFormat, typer.Option("--format", help="What to print on stdout.")] = PlanFormat.PYTHON,
    why: Annotated[bool, typer.Option("--why", help="Show the reason of every entry on stderr.")] = False,
    tp: Annotated[
        int | None,
        typer.Option(parser=_degree, metavar="N", help="Degree to prove at.", show_default="least legal above 1"),
    ] = None,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Infer a plan from the model's computation, prove it, and print it, ready to paste."""
    with only_results_on_stdout(debug=debug):
        wanted = Model(model, _settings(settings), trust_remote_code)
        answer, suggested = run_suggest(wanted, progress=Progress(quiet), form=form, tp=tp)
        if not quiet:
            from launch.tables import show_suggestion

            show_suggestion(suggested, why=why)
    print_result(answer.text)
    raise typer.Exit(answer.code)


@app.command()
def verify(
    model: ModelArgument,
    plan: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A plan file (JSON).", show_default="the plan that the model carries"),
    ] = None,
    tp: Annotated[
        int | None, typer.Option(parser=_degree, metavar="N", help="Tensor-parallel degree.", show_default="2")
    ] = None,
    pp: Annotated[
        int | None, typer.Option(parser=_degree, metavar="N", help="Pipeline stages.", show_default="1")
    ] = None,
    level: Annotated[
        list[Level] | None,
        typer.Option(help="What to verify by; repeatable.", show_default="proof, then run unless it is refuted"),
    ] = None,
    form: Annotated[ReportFormat, typer.Option("--format", help="What to print on stdout.")] = ReportFormat.TEXT,
    settings: SetOption = None,
    trust_remote_code: TrustOption = False,
    timeout: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="Time limit of a run; its ranks are ended after it.")
    ] = 300.0,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Verify a plan: by proof, and on real ranks (started here, or those of the torchrun or Slurm job around)."""
    rank = this_rank()
    with only_results_on_stdout(debug=debug):
        request = Verification(
            model=Model(model, _settings(settings), trust_remote_code),
            plan_file=plan,
            layout=layout(tp, pp, ranks=rank.world if rank else None),
            levels=tuple(dict.fromkeys(level or ())),
            form=form,
            timeout=timeout,
        )
        answer = run_verify(request, progress=Progress(quiet or not _speaks()))
    if _speaks():
        print_result(answer.text)
    raise typer.Exit(answer.code)


@app.command()
def explain(
    code: Annotated[
        str | None, typer.Argument(metavar="CODE", help="A finding, such as TP203; none lists them all.")
    ] = None,
) -> None:
    """Explain a finding: what it is, why it matters, an example, what to use instead."""
    if code is None:
        print_result(overview())
        return
    try:
        print_result(explanation(code))
    except KeyError as error:
        raise MisuseError(str(error.args[0])) from error


def _speaks() -> bool:
    """Whether this process is alone, or the first of its job."""
    rank = this_rank()
    return rank is None or rank.speaks


def layout(tp: int | None, pp: int | None, *, ranks: int | None) -> Layout:
    """The degrees: what is given; else 2 tensor-parallel ranks alone, and inside a job of `ranks` all of them."""
    if ranks is None:
        chosen = Layout(tp or (1 if pp else 2), pp or 1)
    else:
        chosen = Layout(tp or max(ranks // (pp or 1), 1), pp or 1)
    if chosen.tp * chosen.pp == 1:
        raise MisuseError("one rank is the single-device model itself; give --tp or --pp of 2 or more.")
    if ranks is not None and chosen.tp * chosen.pp != ranks:
        need = chosen.tp * chosen.pp
        raise MisuseError(
            f"{chosen} needs {need} ranks, and this job has {ranks}; start {need}, or give other degrees."
        )
    return chosen


def _settings(given: list[str] | None) -> dict[str, str]:
    pairs = [text.partition("=") for text in given or ()]
    for key, equals, _ in pairs:
        if not equals or not key:
            raise MisuseError(f"--set takes KEY=VALUE, such as --set num_hidden_layers=2, not {key!r}.")
    return {key: value for key, _, value in pairs}


def run(arguments: list[str]) -> int:
    """The whole command but for the exit: the exit code. No error gets past it as a traceback."""
    try:
        code = typer.main.get_command(app).main(args=arguments, prog_name="plan", standalone_mode=False)
        # Typer turns Ctrl-C inside a command into this code.
        return _stopped() if code == INTERRUPTED else code if isinstance(code, int) else 0
    except _UsageError as error:
        # `plan` alone has printed its help, and has no message.
        return _ended(_usage(error) if str(error) else "", MISUSE)
    except (MisuseError, LoadError) as error:
        return _ended(str(error), MISUSE)
    except UndecidedError as error:
        return _ended(str(error), UNDECIDED)
    except (KeyboardInterrupt, typer.Abort):
        return _stopped()
    except Exception as error:
        return _bug(error, debug="--debug" in arguments)


def _usage(error: BaseException) -> str:
    """A usage error as one sentence; how typer words it, and where help is."""
    message = str(getattr(error, "format_message", lambda: str(error))()).replace("Value error, ", "")
    context = getattr(error, "ctx", None)
    command = getattr(context, "command_path", None) or "plan"
    return f"{' '.join(message.split()).rstrip('.')}; see `{command} --help`."


def _ended(sentence: str, code: int) -> int:
    """Say why; in a job only the first rank does, since all ranks come to the same end."""
    if sentence and _speaks():
        say(sentence)
    return code


def _stopped() -> int:
    return _ended("interrupted.", INTERRUPTED)


def _bug(error: Exception, *, debug: bool) -> int:
    """An error that nobody foresaw. Every rank says its own."""
    if debug:
        traceback.print_exception(error)
    text = " ".join(str(error).split())
    text = text if len(text) <= 300 else text[:297] + "..."
    advice = "" if debug else " --debug shows the traceback."
    say(f"this is a bug in shardproof: {type(error).__name__}{f': {text}' if text else ''}.{advice}")
    return UNDECIDED


def _terminated(number: int, _: FrameType | None) -> NoReturn:
    # An exception, so that what ends the ranks runs on the way out.
    raise SystemExit(128 + number)


def main() -> None:
    """The console script."""
    signal.signal(signal.SIGTERM, _terminated)
    code = run(sys.argv[1:])
    if this_rank() is None:
        sys.exit(code)
    # In a job the first rank's code is the answer: torchrun ends all ranks as soon as one of them fails, also while the
    # first still prints. And no clean-up: a rank whose peer has died may hold a collective that never returns.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if _speaks() else 0)
