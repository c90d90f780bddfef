"""TP202: one rank's forward raises."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
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


def local_forward_fails(error: str, place: Place, *, sharded: bool) -> Finding:
    """One rank's forward raises at `place`; undecided where the module that raises has no sharded parameter."""
    return Finding(
        "TP202",
        Severity.ERROR if sharded else Severity.UNDECIDED,
        f"a rank's forward fails in {place.module or 'the model'}: {error}",
        place,
        why="a size of the whole model is written into the code, or parts meet that do not fit",
        found=error,
        needed="a forward that takes its sizes from its inputs, or an entry that gives it whole inputs",
        fault=Fault.MODEL if sharded else Fault.PLAN,
    )


def hook_fails(error: str, place: Place) -> Finding:
    """The hook of a style raises on the module at `place`."""
    return Finding(
        "TP202",
        Severity.ERROR,
        f"the style's hook fails on {place.module}: {error}",
        place,
        why="a style's hook acts on the first positional argument, or on the output, as one tensor",
        found=error,
        needed="no entry here, or one on the module that makes the tensor",
    )


def tied_tables_not_found(kind: str, error: str) -> Finding:
    """Transformers looks for the tied tables of a model of class `kind` before it shards it, and its class does not say them."""
    return Finding(
        "TP202",
        Severity.ERROR,
        f"Transformers cannot shard {kind}, whose weights are tied: {error}",
        Place(None),
        why="before it shards a model with tied weights, Transformers asks it for its input embeddings",
        found=error,
        needed=f"a method get_input_embeddings in {kind}, and get_output_embeddings where a head is tied",
        fault=Fault.MODEL,
    )
