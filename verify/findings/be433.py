"""BE433: a stage of Transformers' own pipeline runtime that is not its part of the model."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
from shardproof.planner.ir.graph import Op
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE433",
        name="stage-is-no-part",
        severity=Severity.ERROR,
        what="A stage of Transformers' pipeline runtime does not compute its part of the model: it applies an operation "
        "again, leaves one out, or raises.",
        why="The runtime does not read the pipeline plan. It replaces `embed_tokens`, `norm`, `lm_head` and the layers of "
        "others by identities and gives what it received to the model as `inputs_embeds`, so that all else of the forward "
        "runs on every stage.",
        use_instead="Tensor parallelism alone with this client, or a client that reads the plan.",
        fix_safety="No edit is offered: no plan changes what this runtime does.",
        invalid=(
            Example(
                note="Granite multiplies the embeddings before its layers, and so again on every stage.",
                model="granite",
                overrides=(("embedding_multiplier", "12.0"),),
                client="transformers",
                stages=2,
            ),
        ),
        valid=(
            Example(
                note="Llama does nothing to the hidden states outside of its modules.",
                model="llama",
                client="transformers",
                stages=2,
            ),
        ),
    )
)


def layers_miscounted(client: str, stack: str, *, depth: int, count: int) -> Finding:
    """The config says `count` layers, and the list `stack` holds `depth`."""
    return Finding(
        "BE433",
        Severity.ERROR,
        f"{client} deals out {count} layers, and {stack} holds {depth}",
        Place(module=stack),
        why="stages are cut by the config's num_hidden_layers",
        found=f"num_hidden_layers = {count}",
        needed=f"{depth}, or one stage",
        fault=Fault.MODEL,
    )


def stage_differs(stage: int, client: str, op: Op | None, *, more: bool) -> Finding:
    """A stage's value is not the whole program's: it runs `op` besides (`more`), or does not run it; None where no op tells."""
    does = "applies" if more else "does not apply"
    what = "gives another value" if op is None else f"{does} {op.target} of {op.module or 'the model'}"
    return Finding(
        "BE433",
        Severity.ERROR,
        f"stage {stage} of {client} {what}{' to what it received' if more and stage else ''}.",
        Place(module=op.module or None if op else None, source=op.source if op else None),
        why="each stage runs the model's whole forward, with some of its modules replaced by identities",
        found=op.target if op and more else "not run",
        needed="the whole program's part, every op of it once",
        fault=Fault.CLIENT,
    )


def stage_raises(stage: int, client: str, error: str, place: Place) -> Finding:
    """A stage's forward raises at `place`."""
    return Finding(
        "BE433",
        Severity.ERROR,
        f"stage {stage} of {client} raises: {error}",
        place,
        why="the model's forward meets an identity where it expects its own module, or no token ids",
        found=error.partition(":")[0],
        needed="a forward that runs with identities in the place of absent modules",
        fault=Fault.CLIENT,
    )


def no_even_split(client: str, found: str) -> Finding:
    """The base model has no list `layers`, or fewer layers than stages; `found` says which."""
    return Finding(
        "BE433",
        Severity.ERROR,
        f"{client} makes no stages of this model: {found}.",
        why="its runtime splits the list `layers` of the base model",
        found=found,
        needed="a base model with its layers under that name, at least one a stage",
        fault=Fault.CLIENT,
    )
