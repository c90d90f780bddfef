"""BE419: heads that are not the config's."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE419",
        name="heads-beside-config",
        severity=Severity.ERROR,
        what="The attention is given queries, keys or values of other heads than the config says.",
        why="An engine makes its attention and its cache from `num_attention_heads`, `num_key_value_heads` and `head_dim` (else "
        "`hidden_size // num_attention_heads`) of the config, and reshapes what it is given to them, without a check.",
        use_instead="`num_attention_heads`, `num_key_value_heads` and `head_dim` that say what the attention is given; key-value "
        "heads repeated by the attention function, not before it.",
        fix_safety="No edit is offered: an edit is of a plan, and here it is the model's own files that change.",
        invalid=(
            Example(
                note="The config speaks of heads half as wide.",
                code="""\
class Model(Model):
    def __init__(self, config):
        config.head_dim = 4
        super().__init__(config)
""",
            ),
        ),
        valid=(
            Example(
                note="It says what is there.",
                code="""\
class Model(Model):
    def __init__(self, config):
        config.head_dim = 8
        super().__init__(config)
""",
            ),
        ),
    )
)
