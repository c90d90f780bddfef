"""BE405: a mask that the model makes itself."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE405",
        name="mask-made-by-hand",
        severity=Severity.ERROR,
        what="The model makes the mask of its attention itself, changes it on the way to the attention, or has the masking "
        "functions of Transformers alter it.",
        why="An engine's attention is given no mask. It is causal, with the window of the config, which is what "
        "`create_causal_mask` and `create_sliding_window_causal_mask` make; whatever else a mask says is lost, silently.",
        use_instead="`create_causal_mask` or `create_sliding_window_causal_mask` of `transformers.masking_utils`, passed on as "
        "they are; windows as `layer_types` and `sliding_window` of the config.",
        fix_safety="No edit is offered: an edit is of a plan, and here it is the model's own files that change.",
        invalid=(
            Example(
                note="A triangle of the model's own.",
                code="""\
class Model(Model):
    def make_mask(self, inputs_embeds, attention_mask):
        length = inputs_embeds.shape[1]
        hidden = torch.ones(length, length, dtype=torch.bool, device=inputs_embeds.device).triu(1)
        return torch.zeros(1, 1, length, length, device=hidden.device).masked_fill(hidden, -1e9)
""",
            ),
        ),
        valid=(
            Example(
                note="The masking functions make it.",
                code="""\
class Model(Model):
    pass
""",
            ),
        ),
    )
)
