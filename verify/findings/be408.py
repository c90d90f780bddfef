"""BE408: an attention that vLLM cannot read off the source."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE408",
        name="attention-not-readable",
        severity=Severity.ERROR,
        what="The attention has no integer `layer_idx`, or gives its `scaling` as a computation, or takes the interface's output "
        "by its shape.",
        why="A cache is allocated by vLLM for each `layer_idx`, and the scale is read from the source of the call: a "
        "literal, or an attribute. What comes back is one row for each token, heads side by side.",
        use_instead="`self.layer_idx = layer_idx`, `scaling=self.scaling`, and `output.reshape(*input_shape, -1)` by the "
        "shape of the input.",
        fix_safety="No edit is offered: an edit is of a plan, and here it is the model's own files that change.",
        invalid=(
            Example(
                note="The scale is computed in the call.",
                code="""\
class Attention(Attention):
    def forward(self, hidden_states, attention_mask=None, **kwargs):
        query, key, value = self.heads(hidden_states)
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        output, _ = attend(self, query, key, value, attention_mask, scaling=self.scaling * 1.0, **kwargs)
        return self.o_proj(output.reshape(hidden_states.shape))
""",
            ),
        ),
        valid=(
            Example(
                note="It is an attribute.",
                code="""\
class Attention(Attention):
    pass
""",
            ),
        ),
    )
)
