"""BE410: weights that have no place in the engine."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
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
        fix_safety="No edit is offered: edits change a plan, and here the model's own files have to change.",
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


def head_named_otherwise(owner: str, path: str, place: Place, client: str) -> Finding:
    """The output layer of class `owner` is at `path`, not at `lm_head`."""
    problem = f"its output layer is {path}, whose weight has no place there"
    why = f"{client} makes the head itself and calls it lm_head"
    return _name(owner, place, problem=problem, why=why, needed="self.lm_head = nn.Linear(...)")


def head_has_a_bias(owner: str, path: str, place: Place, client: str) -> Finding:
    """The output layer, at `path`, has a bias, and the head that the engine makes in this version has none."""
    problem = f"its output layer {path} has a bias, which has no place there"
    why = f"{client} makes the head itself, and without a bias{' up to 0.24' if client == 'vllm' else ''}"
    return _name(owner, place, problem=problem, why=why, needed="an output layer without a bias")


def norm_weight_named_otherwise(owner: str, name: str, place: Place, client: str) -> Finding:
    """The parameter of a root-mean-square norm (of class `owner`) is not called `weight`."""
    problem = f"it is a root-mean-square norm, and its parameter is called {name}"
    why = f"{client} replaces such a norm by its own, whose parameter is called weight"
    return _name(owner, place, problem=problem, why=why, needed=f"self.weight instead of self.{name}")


def _name(owner: str, place: Place, *, problem: str, why: str, needed: str) -> Finding:
    return Finding(
        "BE410", Severity.ERROR, f"{owner}: {problem}.", place, why, found=problem, needed=needed, fault=Fault.MODEL
    )
