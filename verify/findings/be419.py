"""BE419: heads that are not the config's."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
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
        fix_safety="No edit is offered: edits change a plan, and here the model's own files have to change.",
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


def heads_differ(tensor: str, place: Place, *, given: tuple[int, int], told: tuple[int, int]) -> Finding:
    """A query, key or value (`tensor`) has other heads than the config says; both as (number of heads, width of one)."""
    return Finding(
        "BE419",
        Severity.ERROR,
        f"{place.module} gives a {tensor} of {given[0]} heads of {given[1]} to the attention, and the config says "
        f"{told[0]} of {told[1]}.",
        place,
        why="the client takes the numbers of heads and their width from the config, and reshapes what it is given to them",
        found=f"{given[0]} heads of {given[1]}",
        needed=f"{told[0]} heads of {told[1]}, or a config that says what the attention is given",
        fault=Fault.MODEL,
    )
