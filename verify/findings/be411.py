"""BE411: a style, or a plan, that the client cannot read."""

from collections.abc import Sequence

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE411",
        name="style-not-in-dialect",
        severity=Severity.ERROR,
        what="An entry has a style that the client does not know, or the client is given no plan that it can read.",
        why="Every client has its own table of styles. SGLang, DeepSpeed and Transformers refuse the whole "
        "plan for one unknown name; vLLM takes the layer for replicated and says nothing, so memory is "
        "lost, and where its neighbours are split the result is wrong. No name for a gathered output or a"
        " split input is valid in both current vLLM and current SGLang.",
        use_instead="A style of that client's table, or the plan that `plan suggest --for CLIENT` writes.",
        fix_safety="No edit is offered: the right style follows from the model, and `plan suggest --for` finds it.",
        invalid=(
            Example(
                note="SGLang knows no colwise_gather_output.",
                model="llama",
                plan=(("model.layers.*.self_attn.q_proj", "colwise_gather_output"),),
                client="sglang",
            ),
        ),
        valid=(
            Example(
                note="The plan of Llama has only styles that SGLang has.",
                model="llama",
                client="sglang",
            ),
        ),
    )
)


def style_unknown(style: str, entry: str, *, client: str, cite: str, refused: bool, styles: Sequence[str]) -> Finding:
    """A style that the client does not have: it refuses the plan, or keeps the module whole. `styles` are those that it has."""
    return Finding(
        "BE411",
        Severity.ERROR if refused else Severity.WARNING,
        f'{client} has no style "{style}": it is {"refused" if refused else "silently replicated"}.',
        Place(entry=entry),
        why=f"a style is looked up in the client's own table ({cite})",
        found=f'"{style}"',
        needed=f"one of {', '.join(styles)}",
    )


def plan_required(client: str, cite: str) -> Finding:
    """The client does not start above one rank without an entry of the base model."""
    return Finding(
        "BE411",
        Severity.ERROR,
        f"{client} refuses a model without a tensor-parallel plan of its base model.",
        why=f"above one rank the plan is required ({cite})",
        found="no entry of the base model",
        needed="base_model_tp_plan",
    )


def names_unknown(client: str, cite: str, names: Sequence[str]) -> Finding:
    """A client that shards by attribute names (`names` are some of them), of which the model has not enough."""
    return Finding(
        "BE411",
        Severity.ERROR,
        f"{client} reads no plan, and knows none of this model's projections by name.",
        why=f"it looks for attribute names in every layer, and raises where there is none ({cite})",
        found="no known projection",
        needed=f"layers with {', '.join(names)}, or a case of its own in the client",
        fault=Fault.CLIENT,
    )


def module_not_taken(client: str, style: str, module: str, entry: str) -> Finding:
    """The client's style raises for a module that is neither a linear layer nor an embedding."""
    return Finding(
        "BE411",
        Severity.ERROR,
        f'{client} raises for {module}: its style for "{style}" takes linear layers and embeddings alone.',
        Place(entry=entry, module=module),
        why="torch's own styles are asked for the kind of the module (torch/distributed/tensor/parallel/style.py)",
        found="a module of another kind",
        needed="torch.nn.Linear or torch.nn.Embedding, or no entry",
    )


def no_case(client: str, cite: str, why: str) -> Finding:
    """A client that shards by attribute names raises for this model; `why` says what is missing."""
    return Finding(
        "BE411",
        Severity.ERROR,
        f"{client} reads no plan, and does not shard this model by its names: {why}.",
        why=f"it sets up every module by its attribute name, and raises for any other that has parameters ({cite})",
        found=why,
        needed="the names of Llama's modules, or a case of its own in the client",
        fault=Fault.CLIENT,
    )
