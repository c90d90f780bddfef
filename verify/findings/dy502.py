"""DY502: the ranks give another gradient."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="DY502",
        name="gradient-differs",
        severity=Severity.ERROR,
        what="The output agrees on real ranks, and a parameter's gradient does not.",
        why="The backward has collectives of its own. One that is missing leaves each rank with its own "
        "term of a sum; one too many multiplies it by the degree.",
        use_instead="`replicated_with_grad_allreduce` where a whole parameter sees this rank's heads; no such "
        "entry where it sees everything.",
        fix_safety="An edit is offered where a run with it agreed.",
        invalid=(
            Example(
                note="A per-head norm without its reduction.",
                code='"layers.*.self_attn.q_proj": "colwise",\n# no entry for "layers.*.self_attn.q_norm"',
            ),
        ),
        valid=(
            Example(
                note="Its gradient is summed over the ranks.",
                code='"layers.*.self_attn.q_proj": "colwise",\n'
                '"layers.*.self_attn.q_norm": "replicated_with_grad_allreduce",',
            ),
        ),
    )
)
