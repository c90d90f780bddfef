"""BE407: a window or soft-cap that does not reach the attention."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE407",
        name="attention-option-not-passed",
        severity=Severity.ERROR,
        what="The module has a sliding window, or the config a soft-cap, and the call of the interface does "
        "not pass it; or the client has no such thing; or the config gives a layer a window that its mask does not have.",
        why="Attention functions know windows and soft-caps from the call alone. SGLang's has neither soft-"
        "cap nor sinks, and drops the keywords. vLLM is given no mask, and takes windows from `sliding_window` and "
        "`layer_types` of the config.",
        use_instead="`sliding_window=self.sliding_window` and `softcap=self.softcap` in the call; a mask that does what the "
        "config says.",
        fix_safety="No edit is offered: edits change a plan, and here the model's own files have to change.",
        invalid=(
            Example(
                note="The window stays behind.",
                code="""\
class Attention(Attention):
    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.sliding_window = 16
""",
            ),
            Example(
                note="The config has a window, the mask has none: vLLM cuts what the model attends to.",
                code="""\
class Model(Model):
    def __init__(self, config):
        config.sliding_window = 16
        super().__init__(config)
""",
            ),
        ),
        valid=(
            Example(
                note="There is none.",
                code="""\
class Attention(Attention):
    pass
""",
            ),
        ),
    )
)


WHOLE, WINDOWED = "create_causal_mask", "create_sliding_window_causal_mask"
"""The functions of `transformers.masking_utils` for a mask without a window, and with one."""
_SOFTCAP_NEEDED = (
    "softcap= in the call, attn_logit_softcapping in the config, and _supports_sdpa = False (sdpa has no soft-cap)"
)
_FROM_CALL = "attention functions know it from the call alone"


def mask_window_differs(place: Place, window: int, client: str, *, windowed: bool) -> Finding:
    """The mask has a sliding window (`windowed`) other than the one that the client gives the layer, or has none where the client
    gives one; `window` is the client's, in tokens, 0 for none.
    """
    theirs = f"a sliding window of {window}" if window else "no sliding window"
    problem = f"the mask {'has a' if windowed else 'has no'} sliding window, and {client} gives this layer {theirs}"
    return Finding(
        "BE407",
        Severity.ERROR,
        f"{problem[0].upper()}{problem[1:]} ({place.module}).",
        place,
        why=f"{client} takes no mask: it knows windows from config.sliding_window and config.layer_types alone",
        found=WINDOWED if windowed else WHOLE,
        needed=f"{WHOLE if windowed else WINDOWED}, or a config that says what the mask does",
        fault=Fault.MODEL,
    )


def window_not_passed(owner: str, place: Place, severity: Severity) -> Finding:
    """The module has a sliding window, and its call of the interface does not pass it. A warning for a client that takes windows
    from the config: then the window is lost in Transformers' flash attention only.
    """
    problem = "the module has a sliding window, and does not pass it to the interface"
    needed = "sliding_window=self.sliding_window"
    return _option(owner, place, problem=problem, why=_FROM_CALL, needed=needed, severity=severity)


def softcap_not_passed(owner: str, place: Place, field: str) -> Finding:
    """A config field is a soft-cap of attention scores, and the call does not pass it."""
    problem = f"the config has {field}, and the call passes no softcap"
    return _option(owner, place, problem=problem, why=_FROM_CALL, needed=_SOFTCAP_NEEDED)


def option_not_supported(owner: str, place: Place, option: str, client: str) -> Finding:
    """The call passes an option that the client's attention does not have."""
    problem = f"the model needs {option}, which {client}'s attention does not have"
    why = "keywords that it does not know are dropped"
    return _option(owner, place, problem=problem, why=why, needed=f"a model without {option}")


def causality_not_said(owner: str, place: Place) -> Finding:
    """Neither the module nor the call has `is_causal`: engines take it for True, and Transformers' flash attention raises."""
    return _option(
        owner,
        place,
        problem="the module has no is_causal, and the call passes none",
        why="Transformers' flash attention reads it there, and raises; engines take it for True",
        needed="self.is_causal = True",
        severity=Severity.WARNING,
    )


def not_causal(owner: str, place: Place) -> Finding:
    """`is_causal` is False in a decoder."""
    why = "an engine takes the model for an encoder, or attends to what is not there yet"
    return _option(owner, place, problem="is_causal is False in a decoder", why=why, needed="self.is_causal = True")


def softcap_not_in_config(owner: str, place: Place, field: str) -> Finding:
    """The call passes a soft-cap, and the config lacks the field in which vLLM looks for one."""
    problem = f"the call passes a softcap, and the config has no {field}"
    why = "the client knows it from that field alone"
    return _option(owner, place, problem=problem, why=why, needed=f"config.{field}")


def window_not_in_config(owner: str, place: Place) -> Finding:
    """The call passes a sliding window that the config does not give the layer."""
    problem = "the call passes a sliding window that the config does not give this layer"
    why = "the client knows windows from config.sliding_window and config.layer_types alone"
    return _option(owner, place, problem=problem, why=why, needed="both fields in the config")


def _option(
    owner: str, place: Place, *, problem: str, why: str, needed: str, severity: Severity = Severity.ERROR
) -> Finding:
    return Finding(
        "BE407", severity, f"{owner}: {problem}.", place, why, found=problem, needed=needed, fault=Fault.MODEL
    )


_NO_BOUNDS = "a client computes softmax(scaling * query @ key) @ value in its place"


def softcap_in_function(owner: str, place: Place, size: float) -> Finding:
    """The own attention function of class `owner` caps the scores, and the call passes no `softcap`."""
    problem = (
        f"its own attention function caps the scores, and the call passes no softcap (the output differs by {size:.2g})"
    )
    return _option(owner, place, problem=problem, why=_FROM_CALL, needed=_SOFTCAP_NEEDED)


def bounds_in_function(owner: str, place: Place, size: float) -> Finding:
    """The own attention function of class `owner` keeps the scores between bounds, which no client does."""
    problem = f"its own attention function bounds the scores (the output differs by {size:.2g})"
    return _option(owner, place, problem=problem, why=_NO_BOUNDS, needed="scores as they are, or a softcap in the call")


def sinks_in_function(owner: str, place: Place, size: float) -> Finding:
    """The own attention function of class `owner` has attention sinks, and the call passes no `s_aux`."""
    problem = f"its own attention function has sinks, and the call passes no s_aux (the output differs by {size:.2g})"
    return _option(owner, place, problem=problem, why=_FROM_CALL, needed="s_aux=self.<parameter> in the call")
