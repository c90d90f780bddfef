"""BE420: experts of which the config does not say how many a token takes."""

from collections.abc import Sequence

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE420",
        name="experts-not-in-config",
        severity=Severity.ERROR,
        what="The model has a module `experts`, and its config no field that says how many of them a token takes.",
        why="An engine runs the experts itself. vLLM reads `num_experts_per_tok` or `top_k` of the config, and stops where "
        "there is neither.",
        use_instead="`num_experts_per_tok` in the config, or an `attribute_map` that leads to the field of another name.",
        fix_safety="No edit is offered: edits change a plan, and here the model's own files have to change.",
        invalid=(
            Example(
                note="Two experts, and no number.",
                code="""\
class Layer(Layer):
    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
""",
            ),
        ),
        valid=(
            Example(
                note="The config says it.",
                code="""\
class Layer(Layer):
    def __init__(self, config, layer_idx):
        config.num_experts_per_tok = 1
        super().__init__(config, layer_idx)
        self.experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
""",
            ),
        ),
    )
)


def count_of_experts_missing(config: str, experts: str, place: Place, fields: Sequence[str], client: str) -> Finding:
    """The config, of this class, has none of the fields in which vLLM looks for the number of experts of a token."""
    problem = f"it has no {' or '.join(fields)}"
    return Finding(
        "BE420",
        Severity.ERROR,
        f"{config}: {problem}.",
        place,
        why=f"{client} runs {experts} itself, and reads there how many experts a token takes",
        found=problem,
        needed=f"{fields[0]}, or an attribute_map that has it",
        fault=Fault.MODEL,
    )
