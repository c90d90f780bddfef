"""TP202: one rank's forward raises."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="TP202",
        name="local-program-fails",
        severity=Severity.ERROR,
        what="With its own part of the weights a rank cannot run the model: an op raises on the local shapes.",
        why="A size that the code takes from the config, such as `view(b, s, self.num_heads, d)`, is the "
        "global one, and a rank's tensor has 1 / degree of the elements.",
        use_instead="`-1` in place of the number of heads in the modeling code; or a style that keeps the full "
        "width there (`colwise_gather_output`).",
        fix_safety="An edit is offered where another style was proved.",
        invalid=(
            Example(
                note="OPT's attention writes its number of heads into the view.",
                model="opt",
                plan=(
                    ("lm_head", "colwise_gather_output"),
                    ("model.decoder.layers.*.self_attn.q_proj", "colwise"),
                    ("model.decoder.layers.*.self_attn.k_proj", "colwise"),
                    ("model.decoder.layers.*.self_attn.v_proj", "colwise"),
                    ("model.decoder.layers.*.self_attn.out_proj", "rowwise"),
                ),
                alone=True,
            ),
        ),
        valid=(
            Example(
                note="Its MLP has no such view.",
                model="opt",
                plan=(
                    ("lm_head", "colwise_gather_output"),
                    ("model.decoder.layers.*.fc1", "colwise"),
                    ("model.decoder.layers.*.fc2", "rowwise"),
                ),
                alone=True,
            ),
        ),
    )
)
