"""BE402 to BE408, BE418 and BE419: attention that an engine cannot take over, or takes over wrongly.

All of it is decided by runs of a small model (`contract/experiments`): who calls the attention interface, with what, what is done
with the answer, and what the model's own attention function computes. Source of what each client does with a call: the dialects,
and `experiments/client_attention.py`.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from shardproof.planner.ir.findings import Finding, Place, Severity
from shardproof.planner.ir.plan import generic
from shardproof.planner.loading.configs.config_fields import field_of
from shardproof.verify.clients.contract.client_spec import client_scale
from shardproof.verify.clients.contract.experiments.client_attention import AttentionCall
from shardproof.verify.clients.contract.experiments.decode_step import ATTENDS
from shardproof.verify.clients.contract.experiments.results import EngineOutcome, Experiments
from shardproof.verify.clients.contract.experiments.score_path import Departure
from shardproof.verify.clients.contract.experiments.trial import Trial
from shardproof.verify.clients.contract.facts import ContractFacts
from shardproof.verify.clients.contract.heads import check_heads
from shardproof.verify.clients.contract.options import check_options
from shardproof.verify.clients.contract.source import source_of
from shardproof.verify.clients.vllm.attention_call import called_directly, is_readable, read_call
from shardproof.verify.findings import be402, be403, be404, be405, be406, be407, be408, be418


def check_attention(
    experiments: Experiments, trial: Trial, outcome: EngineOutcome, contract: ContractFacts
) -> Iterator[Finding]:
    """Findings of the attention modules, one for each class and problem."""
    if outcome.error is not None:
        yield from _raises(outcome, contract)
    yield from _mixes(experiments, contract)
    calls = one_of_each(outcome.calls)
    yield from _counts(outcome, contract)
    for call in calls:
        yield from _call(trial, call, contract)
    if outcome.error is None:
        yield from _layers(experiments, outcome, contract)
    yield from check_options(trial, calls, contract)
    if contract.attention_from_config:
        yield from check_heads(trial, calls)
    yield from _weights(experiments, outcome, contract)
    yield from _own_function(experiments, outcome, contract)


def one_of_each(calls: Sequence[AttentionCall]) -> list[AttentionCall]:
    """The first call of each kind of attention module: of the same class, at the same place of a layer, with the same scale."""
    found: dict[tuple[object, ...], AttentionCall] = {}
    for call in calls:
        shape = (call.query.shape, call.key.shape, call.scale, tuple(sorted(call.options)), len(call.extra))
        found.setdefault((type(call.module), generic(call.path), *shape), call)
    return list(found.values())


def place_of(call: AttentionCall) -> Place:
    """The module of a call and its line."""
    return Place(module=call.path or None, source=call.source)


def _raises(outcome: EngineOutcome, contract: ContractFacts) -> Iterator[Finding]:
    """The run as the engine raises: by what it would not raise says why."""
    call = outcome.calls[-1] if outcome.calls else None
    owner = type(call.module).__name__ if call is not None else "The model"
    place = Place(module=call.path if call is not None else None, source=outcome.source)
    error = " ".join(f"{type(outcome.error).__name__}: {outcome.error}".split())[:160]
    match outcome.cause:
        case "mask":
            yield be405.mask_needed(error, Place(source=outcome.source), contract.client)
        case "form":
            yield be408.output_form(owner, place, error)
        case "weights":
            yield be403.weights_used(owner, place)
        case _:
            yield be418.call_raises(error, Place(source=outcome.source), contract.client)


def _mixes(experiments: Experiments, contract: ContractFacts) -> Iterator[Finding]:
    for one in experiments.mixing.found or ():
        place = Place(module=one.path or None, source=one.source)
        if any(word in one.operation for word in ATTENDS):
            yield be402.attention_written_out(one.module, one.operation, place, contract.client)
        else:
            yield be402.tokens_mixed(one.module, one.operation, place, contract.client)


def check_step(experiments: Experiments, contract: ContractFacts) -> Iterator[Finding]:
    """What one token alone, as in decoding, does otherwise: it attends by itself, or an earlier call changes it."""
    step = experiments.step.found
    if step is None:
        return
    if step.bypass is not None:
        place = Place(module=step.bypass.path or None, source=step.bypass.source)
        yield be402.one_token_bypasses(step.bypass.module, place, contract.client)
    if step.remembers:
        yield be402.earlier_call_kept(Place(source=step.source), contract.client)


def _counts(outcome: EngineOutcome, contract: ContractFacts) -> Iterator[Finding]:
    """Modules that call the interface more than once, and layers with more than one module that does."""
    by_path: dict[str, list[AttentionCall]] = {}
    for call in outcome.calls:
        by_path.setdefault(call.path, []).append(call)
    told: set[str] = set()
    for calls in by_path.values():
        owner = type(calls[0].module).__name__
        if len(calls) > 1 and owner not in told:
            told.add(owner)
            yield be402.not_one_call(owner, len(calls), place_of(calls[1]))
    by_layer: dict[object, list[str]] = {}
    for path, calls in by_path.items():
        by_layer.setdefault(calls[0].layer, []).append(path)
    for layer, paths in by_layer.items():
        if isinstance(layer, int) and len(paths) > 1:
            call = by_path[paths[1]][0]
            yield be408.layer_index_shared(
                type(call.module).__name__, layer, paths[:2], place_of(call), contract.client
            )
            return


def _call(trial: Trial, call: AttentionCall, contract: ContractFacts) -> Iterator[Finding]:
    """What is wrong with the form of one call of the interface."""
    owner, place, module = type(call.module).__name__, place_of(call), call.module
    if not isinstance(call.layer, int) or isinstance(call.layer, bool):
        yield be408.no_layer_index(owner, place)
    if len(call.extra) > len(contract.positional):
        yield be408.given_by_position(owner, place, contract.client, len(call.extra) - len(contract.positional))
    if not contract.reads_source:
        yield from _scale(trial, call, contract)
        return
    if getattr(module, "config", None) is None:
        yield be408.no_config(owner, place)
    read = read_call(module)
    if read.count == 0 and called_directly(module):
        yield be408.called_where_looked_up(owner, place)
    elif read.count == 0:
        yield be408.not_found_in_source(owner, place)
    elif read.count > 1:
        yield be402.not_one_call(owner, read.count, place)
    elif read.scale is not None and not is_readable(read.scale, module):
        yield be408.scaling_not_readable(owner, place, ast.unparse(read.scale))
    else:
        yield from _scale(trial, call, contract)
    yield from _sinks(call, contract)


def _scale(trial: Trial, call: AttentionCall, contract: ContractFacts) -> Iterator[Finding]:
    """The scale of the call, and the one that the client takes for it."""
    theirs = client_scale(trial, contract, call)
    if abs(theirs - call.scale) > 1e-6 * abs(call.scale):
        yield be408.scaling_not_taken(
            type(call.module).__name__, place_of(call), contract.client, given=call.scale, taken=theirs
        )


def _sinks(call: AttentionCall, contract: ContractFacts) -> Iterator[Finding]:
    """vLLM takes attention sinks from `s_aux=self.<parameter>` alone, and raises on others (`check_sinks`, 0.32.0)."""
    given = call.options.get("s_aux")
    expression = read_call(call.module).sinks
    held = any(parameter is given for parameter in call.module.parameters(recurse=False))
    if given is not None and (expression is None or not held):
        yield be408.sinks_not_readable(type(call.module).__name__, place_of(call), contract.client)


def _layers(experiments: Experiments, outcome: EngineOutcome, contract: ContractFacts) -> Iterator[Finding]:
    """Layers without an attention behind the interface, and numbers of layers that are not theirs."""
    trial = experiments.trial.found
    count = field_of(trial.text, "num_hidden_layers") if trial is not None else None
    numbers = [call.layer for call in outcome.calls if isinstance(call.layer, int)]
    if not numbers or not isinstance(count, int) or len(numbers) < len(outcome.calls):
        return
    missing = [number for number in range(count) if number not in numbers]
    if not missing:
        return
    paths = list(dict.fromkeys(call.path for call in outcome.calls))
    if len(paths) >= count or max(numbers) >= count:
        call = next(
            (call for call in outcome.calls if isinstance(call.layer, int) and call.layer >= count), outcome.calls[0]
        )
        yield be408.layer_index_wrong(
            type(call.module).__name__, place_of(call), given=sorted(set(numbers)), count=count
        )
    elif contract.reads_source:
        yield _without_attention(experiments, missing[0], sorted(set(numbers)))


def _without_attention(experiments: Experiments, layer: int, layers: list[int]) -> Finding:
    """The first layer in which no module calls the interface: vLLM wants one in each (`_create_attention_instances`)."""
    trial = experiments.trial.found
    assert trial is not None
    model = experiments.built
    stack = next(
        ((path, part) for path, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part) > layer),
        None,
    )
    kind = type(stack[1][layer]) if stack is not None else type(model)
    place = Place(module=f"{stack[0]}.{layer}" if stack is not None else None, source=source_of(kind))
    return be402.layer_without_attention(layer, kind.__name__, place, layers=layers)


def _weights(experiments: Experiments, outcome: EngineOutcome, contract: ContractFacts) -> Iterator[Finding]:
    """Weights of the attention that change the result: an engine gives none back."""
    use = experiments.used_weights(contract).found if outcome.states is not None and outcome.calls else None
    if use is not None and use.used:
        call = outcome.calls[0]
        yield be403.weights_used(type(call.module).__name__, Place(module=call.path or None, source=use.source))


_IN_FUNCTION: Mapping[Departure, str] = {
    Departure.BIAS: "adds a bias to the scores",
    Departure.MASK: "hides keys, or shows keys, that the mask does not",
    Departure.NORMALISATION: "does not normalise the scores by a softmax",
    Departure.SINKS: "gives each query weights that do not add up to 1",
    Departure.INPUTS: "multiplies other queries and keys than it is given",
    Departure.AFTER: "changes the weights, or the result, after the softmax",
    Departure.UNKNOWN: "computes something else",
}


def _own_function(experiments: Experiments, outcome: EngineOutcome, contract: ContractFacts) -> Iterator[Finding]:
    """What the model's own attention function does beyond the reference."""
    paths = tuple(dict.fromkeys(call.path for call in outcome.calls))
    use = experiments.used_weights(contract).found if paths and outcome.states is not None else None
    for one in experiments.own_function(paths).found or () if paths else ():
        if use is not None and use.used and one.explanation.departure is Departure.AFTER:
            continue  # told already: the module, not its function
        owner, why, size = type(one.call.module).__name__, one.explanation, one.size
        place = Place(module=one.call.path or None, source=why.source or one.call.source)
        does = _IN_FUNCTION.get(why.departure, "")
        match why.departure:
            case Departure.SCALE:
                line = place if "scaling" in one.call.options else place_of(one.call)
                yield be408.scaling_differs(owner, line, own=why.scale, asked=one.call.scale, size=size)
            case Departure.SOFTCAP:
                yield be407.softcap_in_function(owner, place, size)
            case Departure.BOUNDS:
                yield be407.bounds_in_function(owner, place, size)
            case Departure.BIAS:
                yield be404.own_function_biased(owner, place, does, size)
            case Departure.MASK if one.call.mask is None:
                continue  # its own function needs a mask that the model does not give; no client runs that function
            case Departure.MASK:
                yield be405.own_function_masks(owner, place, does, size)
            case Departure.SINKS:
                yield be407.sinks_in_function(owner, place, size)
            case Departure.NORMALISATION | Departure.INPUTS | Departure.AFTER | Departure.UNKNOWN:
                yield be403.own_function_differs(owner, place, does, size)


def check_claim(
    kind: type, outcome: EngineOutcome | None, contract: ContractFacts, *, may_switch: bool
) -> Iterator[Finding]:
    """BE406: `_supports_attention_backend` of the class that `AutoModel` makes, missing or claimed falsely.

    `may_switch` is vLLM's second question (`_try_resolve_transformers`, 0.32.0): does the file use the interface?
    """
    claims = bool(getattr(kind, "_supports_attention_backend", False))
    calls = outcome is not None and bool(outcome.calls)
    unknown = outcome is None or outcome.error is not None
    severity = Severity.WARNING if may_switch and calls and contract.takes_interface_users else Severity.ERROR
    place = Place(source=source_of(kind))
    if claims and not calls and not unknown:
        yield be406.claimed_without_attention(kind.__name__, place, contract.client, severity)
    elif not claims:
        yield be406.not_claimed(kind.__name__, place, contract.client, severity)
