"""BE410: weights that have no place in the engine."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE410",
        name="weight-name-not-loaded",
        severity=Severity.ERROR,
        what="The checkpoint has a weight under a name that the engine's own module in its place does not have.",
        why="The engine (vLLM) makes the output layer itself, as `lm_head`, and replaces root-mean-square norms by its own, "
        "whose parameter "
        "is `weight`. Another name in the checkpoint has no place there, and loading raises.",
        use_instead="`self.lm_head` on the head class, `self.weight` in a norm.",
        fix_safety="No edit is offered: an edit is of a plan, and here it is the model's own files that change.",
        invalid=(
            Example(
                note="A norm whose parameter is a gain.",
                code="""\
class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.gain * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Layer(Layer):
    norm = Norm
""",
            ),
        ),
        valid=(
            Example(
                note="It is a weight.",
                code="""\
class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Layer(Layer):
    norm = Norm
""",
            ),
        ),
    )
)
