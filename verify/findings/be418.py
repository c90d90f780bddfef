"""BE418: a forward that the engine cannot call."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE418",
        name="forward-not-callable",
        severity=Severity.ERROR,
        what="The forward of the base model does not take what the engine gives it: `input_ids`, `inputs_embeds` and "
        "`position_ids`; or counts positions by itself; or the model is an encoder and a decoder.",
        why="An engine puts the tokens of many requests in one row and says where each stands by `position_ids`; a later stage "
        "gets what it received as `inputs_embeds`. vLLM looks for these names in the signature, and raises where one is absent, "
        "whether there are `**kwargs` or not.",
        use_instead="`def forward(self, input_ids=None, position_ids=None, inputs_embeds=None, ..., **kwargs)`, with positions "
        "from `position_ids` wherever it is given.",
        fix_safety="No edit is offered: edits change a plan, and here the model's own files have to change.",
        invalid=(
            Example(
                note="Positions arrive in the keywords, unnamed.",
                code="""\
class Model(Model):
    def forward(self, input_ids=None, inputs_embeds=None, **kwargs):
        return super().forward(input_ids, inputs_embeds=inputs_embeds, **kwargs)
""",
            ),
        ),
        valid=(
            Example(
                note="All are named.",
                code="""\
class Model(Model):
    def forward(self, input_ids=None, position_ids=None, inputs_embeds=None, **kwargs):
        return super().forward(input_ids, position_ids, inputs_embeds, **kwargs)
""",
            ),
        ),
    )
)


def encoder_decoder(owner: str, place: Place, client: str) -> Finding:
    """The model, of class `owner`, is an encoder and a decoder."""
    problem, why = "the model is an encoder and a decoder, of which it runs none", f"{client} serves decoders alone"
    return _not_callable(owner, place, problem=problem, why=why, needed="a decoder alone")


def argument_not_named(owner: str, name: str, place: Place, client: str) -> Finding:
    """The forward of class `owner` does not name an argument that the client gives."""
    problem, why = f"its forward does not name {name}", f"{client} gives it"
    return _not_callable(owner, place, problem=problem, why=why, needed=f"{name}=None in the signature")


def positions_counted(owner: str, place: Place, client: str) -> Finding:
    """The forward of class `owner` counts positions itself, instead of taking them."""
    problem = "its forward takes no position_ids, and counts positions itself"
    why = f"{client} gives the tokens of many requests in one row, each with its position"
    needed = "position_ids=None in the signature, and positions from it where it is given"
    return _not_callable(owner, place, problem=problem, why=why, needed=needed)


def _not_callable(owner: str, place: Place, *, problem: str, why: str, needed: str) -> Finding:
    return Finding(
        "BE418", Severity.ERROR, f"{owner}: {problem}.", place, why, found=problem, needed=needed, fault=Fault.MODEL
    )


def call_raises(error: str, place: Place, client: str) -> Finding:
    """The base model raises when it is called as the client calls it."""
    return Finding(
        "BE418",
        Severity.ERROR,
        f"The base model raises when {client} calls it: {error}",
        place,
        why=f"{client} gives one row of tokens with position_ids, use_cache=False and return_dict=False",
        found=error.partition(":")[0],
        needed="a forward that runs on them",
        fault=Fault.MODEL,
    )


def positions_ignored(owner: str, place: Place, client: str, size: float) -> Finding:
    """A token that is run alone at its position, or several sequences in one row, do not stand where `position_ids` says."""
    problem = f"its forward does not place tokens by position_ids (results differ by {size:.2g})"
    why = f"{client} gives the tokens of many requests in one row, each with its position"
    return _not_callable(
        owner, place, problem=problem, why=why, needed="positions from position_ids wherever it is given"
    )
