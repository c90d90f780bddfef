"""The command `plan`: one result on stdout, one sentence on stderr for an error, an exit code.

Torch is imported only by the commands that need it, so that help and explanations are printed at once.
"""

import gc
import os
import re
import signal
import sys
import traceback
from contextlib import suppress
from types import FrameType
from typing import Annotated, NoReturn

import typer

from shardproof.launch.commands.check import check
from shardproof.launch.commands.doctor import doctor
from shardproof.launch.commands.explain import explain
from shardproof.launch.commands.layout import layout
from shardproof.launch.commands.port import port
from shardproof.launch.commands.suggest import suggest
from shardproof.launch.commands.undo import undo
from shardproof.launch.commands.verify import verify
from shardproof.launch.failures import bug, failure_sentence, interrupted
from shardproof.launch.output.console import print_result, say
from shardproof.launch.ranks.job import in_job, is_first_rank
from shardproof.launch.result import INTERRUPTED, MISUSE, UNDECIDED
from shardproof.planner.ir.readable_text import nearest
from shardproof.planner.transformers_facts.version import untested_warning
from shardproof.verify.report.environment import environment

# The class of typer's usage errors lies in click or in a copy of it, depending on typer's version.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

GREETING = """\
Tensor- and pipeline-parallel plans of Transformers models: inferred, proved, and run on real ranks. Three commands to try:

  plan suggest llama                    the plan of a model, with its reasons, proved
  plan verify llama --level proof       is the plan that a model carries right at two ranks?
  plan check llama --backend vllm       does an engine run the model's code as it is?

`plan --help` lists all commands, and `plan doctor` says what this environment can do."""

app = typer.Typer(
    name="plan",
    help="Infer tensor- and pipeline-parallel plans of Transformers models, prove them, confirm them on real ranks.",
    epilog="Exit codes: 0 verified at every level asked for, 1 refuted, 2 misuse, 3 not decided.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich would cost more than everything else that help needs
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the versions and exit.")] = False,
    no_color: Annotated[bool, typer.Option("--no-color", help="No colour on a terminal, as NO_COLOR=1.")] = False,
) -> None:
    """Infer tensor- and pipeline-parallel plans of Transformers models, prove them, confirm them on real ranks."""
    if no_color:
        os.environ["NO_COLOR"] = "1"
    if version:
        have = environment()
        others = ", ".join(f"{name} {have[name]}" for name in ("python", "torch", "transformers"))
        print_result(f"shardproof {have['shardproof']} ({others})")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print_result(GREETING)
        raise typer.Exit
    # A warning is printed once, and not by every rank of a job.
    if context.invoked_subcommand in _NEED_TRANSFORMERS and (warning := untested_warning()) and is_first_rank():
        say(warning)


_NEED_TRANSFORMERS = ("suggest", "verify", "layout", "check")


app.command(short_help="Infer a plan, prove it, and print or write it.")(suggest)
app.command(short_help="Prove a plan, and run it on real ranks.")(verify)
app.command(short_help="Rank the layouts of a number of devices, with launch commands.")(layout)
app.command(short_help="Check a model's contract with each client.")(check)
app.command(short_help="Explain a finding, or list them all.")(explain)
app.command(short_help="Show what Transformers 5 asks of code for version 4, as a diff.")(port)
app.command(short_help="Undo what `--write` wrote.")(undo)
app.command(short_help="Say what is installed, and what is missing.")(doctor)


def run(arguments: list[str]) -> int:
    """Run the command and return the exit code. No error leaves it as a traceback."""
    try:
        code = typer.main.get_command(app).main(
            args=arguments, prog_name="plan", standalone_mode=False, obj=tuple(arguments)
        )
        # Typer turns Ctrl-C inside a command into this code.
        return _report_interrupt() if code == INTERRUPTED else code if isinstance(code, int) else 0
    except _UsageError as error:
        return _report_error(_usage(error), MISUSE)
    except (KeyboardInterrupt, typer.Abort):
        return _report_interrupt()
    except Exception as error:
        if interrupted(error):
            return _report_interrupt()
        return (
            _report_error(*found)
            if (found := failure_sentence(error))
            else _report_bug(error, debug="--debug" in arguments)
        )


def _usage(error: BaseException) -> str:
    """A usage error as one sentence: typer's message, and the command that prints help."""
    message = str(getattr(error, "format_message", lambda: str(error))()).replace("Value error, ", "")
    message = _with_nearest(" ".join(message.split()))
    context = getattr(error, "ctx", None)
    command = getattr(context, "command_path", None) or "plan"
    see = f"see `{command} --help`."
    return f"{message} {see.capitalize()}" if message.endswith("?") else f"{message.rstrip('.')}; {see}"


def _with_nearest(message: str) -> str:
    """The message about a wrong choice or option, with the nearest known one in place of typer's list."""
    if choice := _CHOICE.search(message):
        return message + nearest(choice[1], _QUOTED.findall(choice[2]), count=1)
    if option := _OPTION.search(message):
        known = (option[2] or "").split(", ")
        return f"No such option: {option[1]}.{nearest(option[1], known, count=1)}"
    return message


_CHOICE = re.compile(r"'([^']*)' is not one of (.+)")
_OPTION = re.compile(r"No such option: (\S+)(?: \(Possible options: (.+)\))?")
_QUOTED = re.compile(r"'([^']+)'")


def _report_error(sentence: str, code: int) -> int:
    """Print the error; in a job only rank 0 does, since all ranks have the same error."""
    if sentence and is_first_rank():
        say(sentence)
    return code


def _report_interrupt() -> int:
    return _report_error("interrupted.", INTERRUPTED)


def _report_bug(error: Exception, *, debug: bool) -> int:
    """Report an unexpected error; in a job every rank reports its own."""
    if debug:
        traceback.print_exception(error)
    say(bug(error, "" if debug else " --debug shows the traceback."))
    return UNDECIDED


def _raise_on_sigterm(number: int, _: FrameType | None) -> NoReturn:
    # An exception, so that the clean-up that ends the ranks runs.
    raise SystemExit(128 + number)


def main() -> None:
    """The console script."""
    # A command makes many objects and ends: collecting as often as a server does costs it a tenth of its time.
    gc.set_threshold(50_000, 20, 20)
    signal.signal(signal.SIGTERM, _raise_on_sigterm)
    code = run(sys.argv[1:])
    if not in_job():
        sys.exit(code)
    # In a job rank 0 gives the exit code: torchrun ends all ranks as soon as one of them fails, also while rank 0 still prints.
    # No clean-up at exit: a rank whose peer has died may wait in a collective that never returns.
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with suppress(OSError):
                stream.flush()
    os._exit(code if is_first_rank() else 0)
