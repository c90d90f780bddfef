"""BE405 and BE407: masks, windows, soft-caps, sinks and causality, as the call passes them and as the client knows them.

vLLM knows windows and soft-caps from the config alone (`_create_attention_instances`, 0.32.0). `config.sliding_window` holds
where `layer_types` says `sliding_attention`, and in every layer if there are no `layer_types` (`engine/arg_utils.py`).
"""

from collections.abc import Iterator, Sequence

from shardproof.planner.ir.findings import Finding, Place, Severity
from shardproof.planner.loading.configs.config_fields import field_of
from shardproof.verify.clients.contract.client_spec import SOFTCAP, client_window
from shardproof.verify.clients.contract.experiments.client_attention import AttentionCall
from shardproof.verify.clients.contract.experiments.masks import MaskSeen
from shardproof.verify.clients.contract.experiments.trial import Trial
from shardproof.verify.clients.contract.facts import ContractFacts
from shardproof.verify.findings import be404, be405, be407


def check_options(trial: Trial, calls: Sequence[AttentionCall], contract: ContractFacts) -> Iterator[Finding]:
    """Windows, soft-caps and causality that the model has and the call does not pass, or the client does not have."""
    cap = next((name for name in _fields(trial.text) if _caps_scores(name) and field_of(trial.text, name)), None)
    for call in calls:
        owner, place = type(call.module).__name__, Place(module=call.path or None, source=call.source)
        if getattr(call.module, "sliding_window", None) and call.options.get("sliding_window") is None:
            severity = Severity.WARNING if contract.is_modelled else Severity.ERROR
            yield be407.window_not_passed(owner, place, severity)
        if cap is not None and call.options.get("softcap") is None:
            yield be407.softcap_not_passed(owner, place, cap)
        yield from _causality(owner, place, call)
        if contract.attention_from_config:
            yield from _beside_config(trial, owner, place, call, contract)
        for keyword, name in contract.attention_lacks.items():
            if call.options.get(keyword) is not None:
                yield be407.option_not_supported(owner, place, name, contract.client)


def _fields(text: object) -> list[str]:
    return sorted(vars(text)) if text is not None else []


def _caps_scores(name: str) -> bool:
    """Whether a config field is a soft-cap of attention scores, by its words; one of the logits is the head's."""
    words = name.lower()
    caps = "softcap" in words or "soft_cap" in words or "logit_cap" in words
    return caps and "attn" in words.replace("attention", "attn")


def _causality(owner: str, place: Place, call: AttentionCall) -> Iterator[Finding]:
    """`is_causal`, on the module or in the call (`integrations/flash_attention.py`, `sdpa_attention.py`, 5.23.0)."""
    given = call.options.get("is_causal")
    held = getattr(call.module, "is_causal", None)
    if given is None and not isinstance(held, bool):
        yield be407.causality_not_said(owner, place)
    if given is False or (given is None and held is False):
        yield be407.not_causal(owner, place)


def _beside_config(
    trial: Trial, owner: str, place: Place, call: AttentionCall, contract: ContractFacts
) -> Iterator[Finding]:
    """Options of the call that the config says otherwise, for a client that knows the config alone."""
    cap, window = call.number("softcap"), int(call.number("sliding_window"))
    known = field_of(trial.text, SOFTCAP)
    if cap and cap != known:
        yield be407.softcap_not_in_config(owner, place, SOFTCAP)
    if window and client_window(trial.text, contract, call.layer) != window:
        yield be407.window_not_in_config(owner, place)


def check_masks(trial: Trial, seen: Sequence[MaskSeen], contract: ContractFacts) -> Iterator[Finding]:
    """Masks of the model's own run that say something else than the client's attention does, one finding for each line."""
    told: set[str] = set()
    for mask in seen:
        window = client_window(trial.text, contract, mask.call.layer)
        for finding in _mask(mask, window, contract):
            key = f"{finding.code} {finding.place.source}"
            if key not in told:
                told.add(key)
                yield finding


def _mask(mask: MaskSeen, window: int, contract: ContractFacts) -> Iterator[Finding]:
    place = Place(module=mask.call.path or None, source=mask.source)
    owner, tokens = type(mask.call.module).__name__, mask.allowed.shape[-2]
    if mask.bias is not None:
        yield be404.mask_changed(owner, place)
        return
    if mask.says(window if window < tokens else 0):
        if mask.by_hand:
            yield be405.mask_by_hand_same(mask.call.path, Place(source=mask.source), contract.client)
        elif mask.windows and mask.windows.isdisjoint({window, None}):  # it does not show in so short a row
            yield be407.mask_window_differs(place, window, contract.client, windowed=any(mask.windows))
        return
    width = mask.windowed
    if width >= 0 and not mask.by_hand:
        yield be407.mask_window_differs(place, window, contract.client, windowed=bool(width))
    elif mask.made is not None:
        yield be405.mask_altered(mask.made.function or "its arguments", Place(source=mask.source), contract.client)
    else:
        yield be405.mask_written_out(mask.call.path, Place(source=mask.source), contract.client)
