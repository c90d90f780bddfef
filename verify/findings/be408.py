"""BE408: an attention that vLLM cannot read off the source."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE408",
        name="attention-not-readable",
        severity=Severity.ERROR,
        what="The attention has no integer `layer_idx`, or gives its `scaling` as a computation, or takes the interface's output "
        "by its shape.",
        why="A cache is allocated by vLLM for each `layer_idx`, and the scale is read from the source of the call: a "
        "literal, or an attribute. What comes back is one row for each token, heads side by side.",
        use_instead="`self.layer_idx = layer_idx`, `scaling=self.scaling`, and `output.reshape(*input_shape, -1)` by the "
        "shape of the input.",
        fix_safety="No edit is offered: edits change a plan, and here the model's own files have to change.",
        invalid=(
            Example(
                note="The scale is computed in the call.",
                code="""\
class Attention(Attention):
    def forward(self, hidden_states, attention_mask=None, **kwargs):
        query, key, value = self.heads(hidden_states)
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        output, _ = attend(self, query, key, value, attention_mask, scaling=self.scaling * 1.0, **kwargs)
        return self.o_proj(output.reshape(hidden_states.shape))
""",
            ),
        ),
        valid=(
            Example(
                note="It is an attribute.",
                code="""\
class Attention(Attention):
    pass
""",
            ),
        ),
    )
)


def called_where_looked_up(owner: str, place: Place) -> Finding:
    """The attention function has no name of its own in the forward."""
    problem = "the attention function is called where it is looked up"
    needed = "a local name for ALL_ATTENTION_FUNCTIONS[...], and one call of it"
    return _not_readable(owner, place, problem=problem, why="the call is looked for by that name", needed=needed)


def no_config(owner: str, place: Place) -> Finding:
    """The attention module has no `config`."""
    problem, why = "the attention has no config", "its attention implementation is read there"
    return _not_readable(owner, place, problem=problem, why=why, needed="self.config")


def no_layer_index(owner: str, place: Place) -> Finding:
    """The attention module has no integer `layer_idx`."""
    problem, why = "the attention has no integer layer_idx", "layers are told apart by it"
    return _not_readable(owner, place, problem=problem, why=why, needed="self.layer_idx = layer_idx")


def output_shape_used(owner: str, place: Place, expression: str) -> Finding:
    """The forward takes sizes from what the interface returns, in this expression."""
    problem = f"the shape of the attention's output is used in {expression}"
    why = "the client gives one row for each token, heads side by side"
    needed = "sizes of the module's input: output.reshape(*input_shape, -1)"
    return _not_readable(owner, place, problem=problem, why=why, needed=needed)


def scaling_not_readable(owner: str, place: Place, expression: str) -> Finding:
    """`scaling` is neither a constant nor an attribute of the module."""
    problem, why = f"scaling is given as {expression}", "it is read from the source"
    return _not_readable(owner, place, problem=problem, why=why, needed="scaling=self.scaling")


def _not_readable(owner: str, place: Place, *, problem: str, why: str, needed: str) -> Finding:
    return Finding(
        "BE408", Severity.ERROR, f"{owner}: {problem}.", place, why, found=problem, needed=needed, fault=Fault.MODEL
    )
