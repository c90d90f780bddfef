"""BE403: attention weights used in the forward."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE403",
        name="weights-used-after-softmax",
        severity=Severity.ERROR,
        what="The attention weights are computed with, or are no softmax of the scores: in the forward, or in the model's own "
        "attention function.",
        why="An engine's attention is a softmax of the scores times the values. It never has the weights, and gives back None.",
        use_instead="The output alone; what changes the weights has to happen before the interface, or in an "
        "attention function of one's own.",
        fix_safety="No edit is offered: edits change a plan, and here the model's own files have to change.",
        invalid=(
            Example(
                note="The weights are scaled by a gate.",
                code="""\
class Attention(Attention):
    def forward(self, hidden_states, attention_mask=None, **kwargs):
        query, key, value = self.heads(hidden_states)
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        output, weights = attend(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)
        if weights is not None:
            output = output + (weights * 0.5).sum()
        return self.o_proj(output.reshape(hidden_states.shape))
""",
            ),
        ),
        valid=(
            Example(
                note="The weights are passed on, at most.",
                code="""\
class Attention(Attention):
    pass
""",
            ),
        ),
    )
)


def weights_used(owner: str, place: Place) -> Finding:
    """The forward of class `owner` computes with the attention weights."""
    problem = "the attention weights are used after the softmax"
    return Finding(
        "BE403",
        Severity.ERROR,
        f"{owner}: {problem}.",
        place,
        why="the client gives back no weights",
        found=problem,
        needed="the output alone",
        fault=Fault.MODEL,
    )


def own_function_differs(owner: str, place: Place, does: str, size: float) -> Finding:
    """The own attention function of class `owner` does something (`does`) that no client does; `size` is the relative difference
    of the module's output.
    """
    return Finding(
        "BE403",
        Severity.ERROR,
        f"{owner}: its own attention function {does}.",
        place,
        why="a client computes softmax(scaling * query @ key) @ value in its place",
        found=f"the output differs by {size:.2g} of its largest value",
        needed="an attention function that computes no more",
        fault=Fault.MODEL,
    )
