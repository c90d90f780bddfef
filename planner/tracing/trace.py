"""Record one forward of a model on the meta device as a `Graph`: full real size, no memory, no weights.

`recorded_run` does one recording; here is what a model is given, and what is tried where a recording fails.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from shardproof.planner.inputs.accepted import NoInputsError, plain_form, search
from shardproof.planner.inputs.example import (
    TRACED,
    accept_call,
    accept_form,
    accepted_form,
    example_inputs,
    guesses_calls,
    known_call,
)
from shardproof.planner.inputs.run_modes import NoCacheError, RunMode, Script
from shardproof.planner.ir.graph import Graph
from shardproof.planner.tracing.layers.repeats import let_layers_repeat, run_every_layer, runs_every_layer
from shardproof.planner.tracing.meta_answers.placeholders import (
    FOUND,
    mask_count,
    masks_find_a_few,
    masks_find_as_many,
    search_first_only,
)
from shardproof.planner.tracing.recorded_run import TraceError, Tracing, forward_of
from shardproof.planner.tracing.session import forget, structural_copy


def trace(model: nn.Module, inputs: Mapping[str, Any] | None = None) -> Graph:
    """Record one forward of a meta-device model.

    Args:
        model: every parameter on the meta device, in eval mode.
        inputs: keyword arguments of the forward, tensors on meta; by default the fullest of `planner.inputs.example` that the
            model takes.

    Raises:
        TraceError: the forward cannot run on meta tensors; names the module and source line where it stopped.
    """
    if inputs is None and accepted_form(model) is None and guesses_calls(model):
        form = known_call(model, TRACED) or plain_form(structural_copy(model), TRACED)
        if form is not None:
            accept_call(model, form, TRACED)
    if inputs is not None or accepted_form(model) is not None:
        return _settled(model, inputs if inputs is not None else example_inputs(model))
    try:
        accepted, graph = search(
            model, lambda given: _settled(model, given), sizes=TRACED, failed=TraceError, reached=_ops_before
        )
    except NoInputsError as error:
        raise TraceError(str(error), "", None) from None
    accept_form(model, accepted.form)
    refused = accepted.refused
    return replace(graph, notes=(*graph.notes, _left_out(refused))) if isinstance(refused, TraceError) else graph


def _ops_before(error: Exception) -> int:
    """How far a forward came: the ops that ran before it raised."""
    return len(error.before.ops) if isinstance(error, TraceError) and error.before is not None else 0


def trace_script(model: nn.Module, script: Script) -> tuple[Graph, bool]:
    """Record the forwards of one script in one graph, and say whether they exchange modules or write to parameters.

    Raises:
        TraceError: a forward cannot run on meta tensors.
    """
    tracing, graph = _run_script(model, script)
    return graph, tracing.rebuilds


def _run_script(
    model: nn.Module, script: Script, *, hooked: bool = False, every: bool = False
) -> tuple[Tracing, Graph]:
    ran_before, found_before = runs_every_layer(model, script.mode), mask_count(model, script.mode)
    while True:  # each other way is tried once
        tracing = Tracing(model, hooked=hooked, every=every)
        try:
            graph = tracing.run_script(script)
            if not tracing.repeats.without_state:
                return tracing, graph
            run_every_layer(model, script.mode)
        except TraceError as error:
            if (
                not _finds_less(model, error)
                and not _finds_as_many(model, script.mode, error)
                and not _reads_what_layers_left(tracing, script, error)
            ):
                # What did not help here is not needed for what is traced next.
                if not ran_before:
                    let_layers_repeat(model, script.mode)
                if found_before is None:
                    masks_find_a_few(model, script.mode)
                raise


def settle(model: nn.Module, script: Script) -> None:
    """Let a script change the model: some rescale their weights the first time in a mode."""
    Tracing(model, keep=True).run_script(script)
    forget(model)


def _finds_less(model: nn.Module, failed: TraceError) -> bool:
    """Whether what failed may run where its search in data finds the first place only, and was not tried so."""
    return isinstance(failed.__cause__, IndexError) and search_first_only(model)


_UNLIKE_FOUND = re.compile(
    rf"dimension of length (\d+) at -\d+! .* broadcastable to \[{FOUND}\b|shape mismatch: .*\[(\d+)\b.*\[{FOUND}\b"
)


_PARTS_OF_FOUND = re.compile(rf"sum exactly to {FOUND} .*split_sizes=\[([\d, ]+)\]")
"""What was found is cut into parts whose lengths are known: rows without their padding, one behind the other."""


def _finds_as_many(model: nn.Module, mode: RunMode, failed: TraceError) -> bool:
    """Whether what failed may run where a search finds as many tokens as there are features for them, which the failure
    tells, and was not tried so.
    """
    told, parts = _UNLIKE_FOUND.search(str(failed)), _PARTS_OF_FOUND.search(str(failed))
    count = next((int(size) for size in told.groups() if size), 0) if told is not None else 0
    count = sum(int(size) for size in parts[1].split(",")) if parts is not None else count
    return count > FOUND and masks_find_as_many(model, mode, count)


def _reads_what_layers_left(tracing: Tracing, script: Script, failed: TraceError) -> bool:
    """Whether what failed may run where every layer runs, and was not tried so: a layer for which another stood left nothing in
    its attributes (an auxiliary loss) or its cache, which what runs after it may read.
    """
    if not tracing.repeats.stands_for or isinstance(failed.__cause__, NoCacheError):
        return False
    tried = runs_every_layer(tracing.model, script.mode)
    run_every_layer(tracing.model, script.mode)
    return not tried


def _left_out(failed: TraceError) -> str:
    """What was asked of the model first, and why it was not traced so."""
    where = f" ({failed.source})" if failed.source is not None else ""
    return f"traced on fewer inputs, for with all that it takes it fails in {failed.module or 'the model'}{where}: {failed}"


def _settled(model: nn.Module, inputs: Mapping[str, Any]) -> Graph:
    return trace_settled(model, forward_of(model, inputs))


def trace_settled(model: nn.Module, script: Script, *, hooked: bool = False, every: bool = False) -> Graph:
    """Record a script of a model that no longer changes itself: some rescale their weights, or exchange modules, the first time.

    Args:
        model: as in `trace`; left as its first run makes it.
        script: what is run.
        hooked: what a module is noted to be given is what its own hooks made of that.
        every: layers run also where they repeat another.

    Raises:
        TraceError: as in `trace`.
    """
    tracing, graph = _run_script(model, script, hooked=hooked, every=every)
    if not tracing.rebuilds:
        return graph
    settle(model, script)
    again = _run_script(model, script, hooked=hooked, every=every)[1]
    note = f"{type(model).__name__}'s first forward changes the model itself; it was traced as it is afterwards"
    return replace(again, notes=(*again.notes, note))
