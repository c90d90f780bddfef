"""BE408: an attention that vLLM cannot read off the source."""

from collections.abc import Sequence

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE408",
        name="attention-not-readable",
        severity=Severity.ERROR,
        what="The attention has no `layer_idx` of its own, or a wrong one; or its `scaling` does not reach the client; or the "
        "forward cannot take the client's output; or vLLM does not find the call in the source.",
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


def not_found_in_source(owner: str, place: Place) -> Finding:
    """The module of class `owner` calls the interface, and its forward has no form that vLLM finds."""
    problem = "the attention goes through the interface, and vllm does not find the call in the source of the forward"
    needed = "name = ALL_ATTENTION_FUNCTIONS[...] (or .get_interface(...)) and one call of that name, in the module's own forward"
    return _not_readable(owner, place, problem=problem, why="it looks for that form", needed=needed)


def given_by_position(owner: str, place: Place, client: str, count: int) -> Finding:
    """The call gives `count` arguments by position that the client's attention function takes as keywords."""
    problem = f"{count} argument{'s' if count > 1 else ''} after the mask given by position"
    why = f"{client}'s attention function takes them as keywords"
    return _not_readable(owner, place, problem=problem, why=why, needed="scaling=self.scaling, dropout=...")


def scaling_not_taken(owner: str, place: Place, client: str, *, given: float, taken: float) -> Finding:
    """The client takes another scale than the call gives."""
    problem = f"the call gives the scale {given:.4g}, and {client} takes {taken:.4g}"
    why = f"{client} does not see the scale that the call gives"
    return _not_readable(
        owner, place, problem=problem, why=why, needed="scaling=self.scaling, as a keyword of the call"
    )


def scaling_differs(owner: str, place: Place, *, own: float, asked: float, size: float) -> Finding:
    """The model's own attention function applies another scale than the call asks for."""
    problem = f"its own attention function scales by {own:.4g}, and the call asks for {asked:.4g}"
    why = f"a client knows the scale from the call alone (the output differs by {size:.2g})"
    return _not_readable(
        owner, place, problem=problem, why=why, needed="that scale as scaling=self.scaling in the call"
    )


def sinks_not_readable(owner: str, place: Place, client: str) -> Finding:
    """The call passes sinks in another form than `s_aux=self.<parameter>`."""
    problem = "the sinks are not given as s_aux=self.<parameter>"
    return _not_readable(
        owner, place, problem=problem, why=f"{client} reads them there, and raises", needed="s_aux=self.sinks"
    )


def output_form(owner: str, place: Place, error: str) -> Finding:
    """The forward raises on the output in the form in which an engine gives it."""
    problem = f"the attention's output is taken in another form ({error})"
    why = "the client gives one row for each token, heads side by side"
    needed = "sizes of the module's input: output.reshape(*input_shape, -1)"
    return _not_readable(owner, place, problem=problem, why=why, needed=needed)


def layer_index_shared(owner: str, layer: int, paths: Sequence[str], place: Place, client: str) -> Finding:
    """Two modules have the same `layer_idx`."""
    problem = f"{' and '.join(paths)} have the same layer_idx, {layer}"
    return _not_readable(
        owner, place, problem=problem, why=f"{client} gives each layer one cache", needed="one layer_idx each"
    )


def layer_index_wrong(owner: str, place: Place, *, given: Sequence[int], count: int) -> Finding:
    """The `layer_idx` of the modules are not the numbers of the layers."""
    problem = f"the layers call themselves {', '.join(map(str, given[:6]))}, and there are {count}"
    why = "a cache is made for each layer from 0 up"
    return _not_readable(owner, place, problem=problem, why=why, needed=f"layer_idx from 0 to {count - 1}")
