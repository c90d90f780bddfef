"""BE402: attention that no engine can take over."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE402",
        name="attention-not-through-interface",
        severity=Severity.ERROR,
        what="A module computes its attention itself, or calls the attention interface more than once; or a layer has no "
        "attention behind the interface.",
        why="An engine registers its own attention, with its paged cache, in `ALL_ATTENTION_FUNCTIONS`. What "
        "does not go through it keeps no cache and sees only the tokens of one step.",
        use_instead="One call of `ALL_ATTENTION_FUNCTIONS` in the forward of the module that owns the projections.",
        fix_safety="No edit is offered: an edit is of a plan, and here it is the model's own files that change.",
        invalid=(
            Example(
                note="The scores are computed in the forward.",
                code="""\
class Attention(Attention):
    def forward(self, hidden_states, attention_mask=None, **kwargs):
        query, key, value = self.heads(hidden_states)
        weights = torch.softmax(query @ key.transpose(-1, -2) * self.scaling, dim=-1)
        return self.o_proj((weights @ value).transpose(1, 2).reshape(hidden_states.shape))
""",
            ),
        ),
        valid=(
            Example(
                note="The interface computes them.",
                code="""\
class Attention(Attention):
    pass
""",
            ),
        ),
    )
)
