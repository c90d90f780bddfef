"""TP210: an op that no rule tells about."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
from shardproof.planner.ir.placement import Placement
from shardproof.planner.transformers_facts.caches import CACHE_NAMES
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="TP210",
        name="no-rule",
        severity=Severity.UNDECIDED,
        what="A sharded or partial value reaches an op that the rule table does not know.",
        why="Without a rule nothing follows, and nothing is never taken for replicated: the verdict is `not proved`.",
        use_instead="`plan verify MODEL --level run`, which needs no rule; or a rule of your own, by "
        "`shardproof.operators.register`: an equation of dims, and a reference in torch.",
        fix_safety="No edit is offered: nothing is known to be wrong.",
        invalid=(
            Example(
                note="A kernel of somebody's own, on this rank's heads.",
                code="y = torch.ops.my_library.fused_scan(self.in_proj(x))  # in_proj is colwise",
            ),
        ),
        valid=(
            Example(
                note="The same op on a whole value needs no rule.",
                code="y = torch.ops.my_library.fused_scan(self.in_proj(x))  # in_proj has no entry",
            ),
        ),
    )
)


def conversion_not_tried(parameter: str, place: Place, *, sources: str, placement: Placement) -> Finding:
    """A parameter that is converted from a checkpoint's `sources`, where the conversion of a part could not be tried."""
    return Finding(
        "TP210",
        Severity.UNDECIDED,
        f"{parameter} is made of a checkpoint's {sources} after each rank has its part of that",
        place,
        why="how the conversion and the cut go together could not be tried",
        found=str(placement),
        needed="a parameter that is cut as the model holds it",
    )


def embedding_style_elsewhere(module: str, entry: str) -> Finding:
    """A style for embeddings on a module that is no lookup."""
    return Finding(
        "TP210",
        Severity.UNDECIDED,
        f"a style for embeddings stands on {module}, which computes something else",
        Place(entry, module),
        why="there the client's distributed tensors choose how to compute, and torch's rules for that are not modelled",
        found="neither a lookup nor a product whose bias lies as its result",
        needed="a style for what the module computes",
    )


def lookup_used_twice(module: str, entry: str) -> Finding:
    """An embedding whose own forward uses the rows that it looks up more than once, split by rows."""
    return Finding(
        "TP210",
        Severity.UNDECIDED,
        f"{module} uses what it looks up more than once",
        Place(entry, module),
        why="the client sums a lookup in a table split by rows over the ranks once, and may raise the second time",
        found="two uses in the module's own forward",
        needed="one use, or the rest outside of the module",
    )


def style_not_modelled(style: str, place: Place, why: str) -> Finding:
    """A style that the installed Transformers has and that the table of styles does not describe as that version does it."""
    return Finding(
        "TP210",
        Severity.UNDECIDED,
        f'the installed Transformers does with "{style}" what is not modelled',
        place,
        why=why,
        found=f'"{style}"',
        needed="a style that is modelled, or --level run",
    )


def style_of_client_not_modelled(client: str, style: str, place: Place) -> Finding:
    """A style that a client has for this module, with an effect that the table of styles does not describe."""
    return Finding(
        "TP210",
        Severity.UNDECIDED,
        f'{client} does with "{style}" here what is not modelled',
        place,
        why="no placement of the module's input and output is known for it",
        found=f'"{style}"',
        needed="a run in the client: `plan verify --level client`",
    )


def parameter_not_used(parameter: str, entry: str) -> Finding:
    """A sharded parameter that no op of the trace read."""
    return Finding(
        "TP210",
        Severity.UNDECIDED,
        f"{parameter} is read by no traced op",
        Place(entry, parameter.rpartition(".")[0]),
        why="what did not run in the trace is not proved",
        found="no use",
        needed="a forward that uses it on every input",
    )


def experts_not_called(module: str, entry: str) -> Finding:
    """Experts that no token of the trace went to, such as those for images."""
    return Finding(
        "TP210",
        Severity.UNDECIDED,
        f"{module} was not called in the traced forward",
        Place(entry, module),
        why="what did not run in the trace is not proved",
        found="no call",
        needed="a forward that calls it on every input",
    )


def not_traced(error: str, place: Place) -> Finding:
    """A single-device program that could not be recorded, because it raised at `place`."""
    return Finding(
        "TP210",
        Severity.UNDECIDED,
        f"the forward could not be traced: {error}",
        place,
        why="what was not traced is not proved",
        found=error,
        needed="a forward that runs on meta tensors",
        fault=Fault.MODEL,
    )


def mode_not_traced(mode: str, error: str, place: Place) -> Finding:
    """A mode in which clients run the model, whose program could not be recorded."""
    return Finding(
        "TP210",
        Severity.UNDECIDED,
        f"the forward in {mode} could not be traced: {error}",
        place,
        why="what was not traced is not proved",
        found=error,
        needed="a forward that runs on meta tensors",
        fault=Fault.MODEL,
    )


def decoding_not_asked() -> Finding:
    """Decoding of a model that takes `use_cache`, and no cache by a name that is known."""
    return Finding(
        "TP210",
        Severity.UNDECIDED,
        "decoding was not looked at: the forward takes use_cache, and no cache by a name that is known",
        why="what was not traced is not proved",
        found="use_cache",
        needed=f"a forward that takes its cache as {', '.join(CACHE_NAMES)}",
        fault=Fault.MODEL,
    )


def left_in_a_buffer(buffer: str, mode: str, placement: str, place: Place) -> Finding:
    """What a forward leaves in a buffer that a later forward reads, and of which a rank has only a part."""
    return Finding(
        "TP210",
        Severity.UNDECIDED,
        f"in {mode}, the forward leaves in {buffer} what only one rank has, and a later forward reads it",
        place,
        why="each forward is proved for itself, with the buffers that one device has",
        found=placement,
        needed="a value that is the same on every rank",
    )


def experts_not_tried(error: str, place: Place) -> Finding:
    """Experts of an expert plan, which could not be run on a small copy of the model."""
    return Finding(
        "TP210",
        Severity.UNDECIDED,
        f"the experts could not be tried on a small copy of the model: {error}",
        place,
        why="what an experts module does with the tokens of a rank depends on data, so it is run",
        found=error,
        needed="a small copy that runs on one device",
        fault=Fault.MODEL,
    )


def drawn_in_stages(target: str, place: Place) -> Finding:
    """Random numbers in evaluation, of which pipeline stages draw others than one device."""
    return Finding(
        "TP210",
        Severity.UNDECIDED,
        f"{target.rpartition('.')[2]} draws random numbers, and stages draw others than one device",
        place,
        why="two forwards with other random numbers cannot be compared",
        found=target,
        needed="a forward that draws nothing in evaluation",
        fault=Fault.MODEL,
    )


def assumption(text: str) -> Finding:
    """What a proof takes for granted, where nothing may be."""
    return Finding(
        "TP210",
        Severity.UNDECIDED,
        f"the proof assumes: {text}",
        why="with --strict nothing is taken for granted",
        found="an assumption",
        needed="code whose path does not depend on data, or no --strict",
        fault=Fault.MODEL,
    )


def attention_not_searched(error: str, place: Place) -> Finding:
    """As `not_traced`, where the trace was wanted to find attention that is written out in the model."""
    message = f"the forward could not be traced, so attention outside the interface is not looked for: {error}"
    return Finding("TP210", Severity.UNDECIDED, message, place, fault=Fault.MODEL)
