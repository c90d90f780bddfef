"""BE417: code that the client rewrites."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
from shardproof.planner.ir.plan import generic
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE417",
        name="client-rewrites-code",
        severity=Severity.UNDECIDED,
        what="The client rewrites this module's forward in a way that is not modelled.",
        why="In vLLM a fuser cuts a packed projection with fewer key-value heads into unequal blocks and changes the "
        "sizes in the source. No placement says that, so nothing is claimed.",
        use_instead="A run in the client: `plan verify MODEL --level client --client vllm`.",
        fix_safety="No edit is offered: the plan is not what decides here.",
        invalid=(
            Example(
                note="GPT-BigCode splits one projection into query, key and value.",
                model="gpt_bigcode",
                client="vllm",
                alone=True,
            ),
        ),
        valid=(
            Example(
                note="Three projections.",
                model="llama",
                client="vllm",
            ),
        ),
    )
)


def not_followed(module: str, entry: str, client: str, why: str) -> Finding:
    """What the client's own analysis of a module finds is not known, because our repetition of it failed."""
    return Finding(
        "BE417",
        Severity.UNDECIDED,
        f"whether {client} rewrites {module} is not known: the trace of its forward ended before it began ({why})",
        Place(entry=entry, module=module),
        why="the client decides by a symbolic trace of the forward, which could not be repeated here",
        found="no trace",
        needed="a run in the client: `plan verify --level client`",
        fault=Fault.CLIENT,
    )


def shared_expert_summed(module: str, entry: str, client: str) -> Finding:
    """A shared expert whose result the client may add to that of the experts before the sum over the ranks."""
    return Finding(
        "BE417",
        Severity.UNDECIDED,
        f"whether {client} adds {module} to the experts before it sums over the ranks is not known.",
        Place(entry=entry, module=module),
        why="where the block of experts is fused, its sum over the ranks takes in the shared expert, which must give a part then",
        found="a shared expert beside the experts",
        needed="a run in the client: `plan verify --level client`",
        fault=Fault.CLIENT,
    )


def packed_projection_rewritten(module: str, entry: str, client: str) -> Finding:
    """The client cuts a packed projection of query, key and value by itself, in a way that is not modelled."""
    return Finding(
        "BE417",
        Severity.UNDECIDED,
        f"{client} cuts {module} into query, key and value by itself, and rewrites the split after it.",
        Place(entry=entry, module=module),
        why="blocks of unequal size, and sizes that the client writes into the source, have no placement here",
        found="a packed projection with fewer key-value heads",
        needed="a run in the client: `plan verify --level client`",
        fault=Fault.CLIENT,
    )


def uneven_heads_not_proved(module: str, client: str, why: str) -> Finding:
    """The client deals heads unevenly, and the ranks' programs could not be proved one by one."""
    name = client.partition(" ")[0]
    return Finding(
        "BE417",
        Severity.UNDECIDED,
        f"{client} gives the ranks unequal numbers of heads, and {why}",
        Place(entry=generic(module), module=module),
        why="each number of heads is proved in a model of its own, and the ranks' programs are traced at their sizes",
        found="unequal numbers of heads",
        needed=f"a run in the client: `plan verify --level client --client {name}`",
        fault=Fault.CLIENT,
    )


def heuristic_not_modelled(client: str) -> Finding:
    """Without a plan the client shards by names of its own choice, which is not modelled."""
    return Finding(
        "BE417",
        Severity.UNDECIDED,
        f"without a plan {client} shards by its own heuristic, which is not modelled.",
        Place(),
        why="the client looks for names of layers where neither the config nor the class has a plan",
        found="no plan",
        needed="a plan, or a run in the client: `plan verify --level client`",
        fault=Fault.CLIENT,
    )


def other_code(client: str, installed: str) -> Finding:
    """The client runs modeling code of its own version, and the installed one is what was traced."""
    return Finding(
        "BE417",
        Severity.WARNING,
        f"{client} runs its own modeling code; the code that was traced is that of Transformers {installed}.",
        Place(),
        why="the plan is read as that version reads it, and a model may have been written differently there",
        found=f"Transformers {installed}",
        needed="nothing, where the model's code is your own or did not change",
        fault=Fault.CLIENT,
    )


def experts_replaced(module: str, client: str) -> Finding:
    """The client puts experts of its own in place of those of each layer's `module`."""
    return Finding(
        "BE417",
        Severity.UNDECIDED,
        f"{client} puts experts of its own in the place of `{module}` of a layer.",
        Place(),
        why="what runs there is the client's code, and not the model's that was traced",
        found="a router and experts",
        needed="a run in the client",
        fault=Fault.CLIENT,
    )
