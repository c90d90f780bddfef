"""BE404: a bias added to the attention's mask."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE404",
        name="attention-bias-not-carried",
        severity=Severity.ERROR,
        what="A bias is added to the scores: by the mask, by the forward of the attention, or by the model's own attention "
        "function.",
        why="Engines make the causal mask themselves and take none, so ALiBi slopes, relative positions and "
        "other biases that travel in the mask are lost, silently.",
        use_instead="Rotary or learned positions; a bias needs an attention of the engine's own that knows it.",
        fix_safety="No edit is offered: edits change a plan, and here the model's own files have to change.",
        invalid=(
            Example(
                note="Slopes are added to the mask.",
                code="""\
class Attention(Attention):
    def forward(self, hidden_states, attention_mask=None, **kwargs):
        query, key, value = self.heads(hidden_states)
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        bias = 0.1 * torch.arange(key.shape[2], device=query.device, dtype=query.dtype)
        bias = bias.expand(1, 1, query.shape[2], -1)
        attention_mask = bias if attention_mask is None else bias + attention_mask
        output, _ = attend(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)
        return self.o_proj(output.reshape(hidden_states.shape))
""",
            ),
        ),
        valid=(
            Example(
                note="The mask is passed as it came.",
                code="""\
class Attention(Attention):
    pass
""",
            ),
        ),
    )
)


def mask_changed(owner: str, place: Place) -> Finding:
    """The forward of class `owner` computes with the mask before it gives it to the interface."""
    problem = "the attention mask is changed, or a bias is added to it"
    return Finding(
        "BE404",
        Severity.ERROR,
        f"{owner}: {problem}.",
        place,
        why="the client's attention takes no mask",
        found=problem,
        needed="no bias",
        fault=Fault.MODEL,
    )


def own_function_biased(owner: str, place: Place, does: str, size: float) -> Finding:
    """The own attention function of class `owner` adds to the scores; `size` is the relative difference of its output."""
    return Finding(
        "BE404",
        Severity.ERROR,
        f"{owner}: its own attention function {does}.",
        place,
        why="a client computes softmax(scaling * query @ key) @ value in its place, with no bias",
        found=f"the output differs by {size:.2g} of its largest value",
        needed="no bias",
        fault=Fault.MODEL,
    )
