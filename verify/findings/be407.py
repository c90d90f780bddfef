"""BE407: a window or soft-cap that does not reach the attention."""

from shardproof.planner.ir.findings import Severity
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
        fix_safety="No edit is offered: an edit is of a plan, and here it is the model's own files that change.",
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
