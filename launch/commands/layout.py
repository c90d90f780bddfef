"""`plan layout MODEL --devices N --memory SIZE`: which layouts are legal, what each costs, and how to start the best."""

import re
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardproof.launch.commands.options import (
    DebugOption,
    InputOption,
    ModelArgument,
    PythonOption,
    QuietOption,
    SetOption,
    TrustOption,
    settings,
)
from shardproof.launch.commands.read_inputs import ModelReference, read_model, read_plan
from shardproof.launch.output.console import Progress, only_results_on_stdout, print_result
from shardproof.launch.result import CommandResult, UndecidedError

if TYPE_CHECKING:
    from shardproof.launch.output.layouts_text import ServedModel
    from shardproof.planner.layouts.cost import Facts, Load, Machine
    from shardproof.planner.layouts.search import Search
    from shardproof.planner.loading.load import LoadedModel

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGT]?i?)B(?:/s)?")


class TableFormat(StrEnum):
    TEXT = "text"
    JSON = "json"
    HTML = "html"


class Dtype(StrEnum):
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Optimizer(StrEnum):
    ADAMW = "adamw"


MOST = 2**17
"""The most devices; the search still takes seconds."""

_WIDTHS = {Dtype.FLOAT32: 4, Dtype.BFLOAT16: 2, Dtype.FLOAT16: 2}


def _bytes(text: str) -> float:
    found = _SIZE.fullmatch(text.strip())
    if found is None or found[2] not in _UNITS or float(found[1]) <= 0:
        raise typer.BadParameter(f"a size is a number with a unit, such as 80GiB or 450GB/s, not {text!r}")
    return float(found[1]) * _UNITS[found[2]]


def layout(
    model: ModelArgument,
    devices: Annotated[int, typer.Option(min=1, max=MOST, metavar="N", help="Devices in all.")],
    memory: Annotated[float, typer.Option(parser=_bytes, metavar="SIZE", help="Memory of a device, such as 80GiB.")],
    nodes: Annotated[int, typer.Option(min=1, metavar="N", help="Nodes that the devices are in.")] = 1,
    intra_bw: Annotated[
        float, typer.Option(parser=_bytes, metavar="RATE", help="Link within a node; ranking only.")
    ] = "450GB/s",  # type: ignore[assignment]  # typer parses defaults
    inter_bw: Annotated[
        float, typer.Option(parser=_bytes, metavar="RATE", help="Link between nodes; ranking only.")
    ] = "50GB/s",  # type: ignore[assignment]  # typer parses defaults
    context: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens of a sequence.")] = 4096,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Sequences in all.")] = 32,
    train: Annotated[
        Optimizer | None, typer.Option(help="For training with this optimizer.", show_default="serving")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Of parameters, gradients, moments and cache.")] = Dtype.BFLOAT16,
    plan: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A plan file.", show_default="the model's own, else a suggestion"),
    ] = None,
    form: Annotated[TableFormat, typer.Option("--format", help="What to print on stdout.")] = TableFormat.TEXT,
    set_: SetOption = None,
    input_: InputOption = None,
    trust_remote_code: TrustOption = False,
    _python: PythonOption = None,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Rank the layouts of a model on so many devices: memory and communication of a rank, and the launch commands."""
    if devices % nodes:
        raise typer.BadParameter(f"{devices} devices do not divide evenly over {nodes} nodes", param_hint="--nodes")
    with only_results_on_stdout(debug=debug):
        from shardproof.launch.rank_layouts import machine_of
        from shardproof.planner.layouts.cost import Load

        machine = machine_of(devices=devices, memory=memory, nodes=nodes, intra=intra_bw, inter=inter_bw)
        load = Load(context, batch, _WIDTHS[dtype], train is not None)
        wanted = ModelReference(model, settings(set_), trust_remote_code, tuple(input_ or ()))
        result = rank_model(wanted, plan, machine, load, form=form, progress=Progress(quiet))
    print_result(result.text)
    raise typer.Exit(result.code)


def rank_model(
    model: ModelReference,
    plan_file: Path | None,
    machine: "Machine",
    load: "Load",
    *,
    form: TableFormat,
    progress: Progress,
) -> CommandResult:
    """The ranked layouts; exit code 1 where none is legal."""
    given = read_plan(plan_file) if plan_file else None
    loaded = read_model(model, progress)
    with progress.step(f"searching the layouts of {machine.devices} devices for {loaded.title}"):
        from shardproof.launch.rank_layouts import rank_layouts
        from shardproof.planner.tracing.recorded_run import TraceError

        try:
            ranked = rank_layouts(loaded, given, machine, load)
        except TraceError as error:
            raise UndecidedError(
                f"{loaded.title}: the forward cannot be traced, so nothing is known: {error}."
            ) from error
    found = ranked.search
    return CommandResult(
        _format_of(form)(_served(model, loaded), found, ranked.facts, machine, load), 0 if found.choices else 1
    )


def _served(model: ModelReference, loaded: "LoadedModel") -> "ServedModel":
    from shardproof.launch.output.layouts_text import ServedModel

    return ServedModel(
        loaded.title, model.reference if loaded.checkpoint is not None else None, model.trust_remote_code
    )


def _format_of(form: TableFormat) -> "Callable[[ServedModel, Search, Facts, Machine, Load], str]":
    from shardproof.launch.output.layouts_page import layouts_html
    from shardproof.launch.output.layouts_text import layouts_json, layouts_text

    match form:
        case TableFormat.TEXT:
            return layouts_text
        case TableFormat.JSON:
            return layouts_json
        case TableFormat.HTML:
            return layouts_html
