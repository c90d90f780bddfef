"""BE405: a mask that the model makes itself."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE405",
        name="mask-made-by-hand",
        severity=Severity.ERROR,
        what="The model makes the mask of its attention itself, changes it on the way to the attention, or has the masking "
        "functions of Transformers alter it.",
        why="An engine's attention is given no mask. It is causal, with the window of the config, which is what "
        "`create_causal_mask` and `create_sliding_window_causal_mask` make; whatever else a mask says is lost, silently.",
        use_instead="`create_causal_mask` or `create_sliding_window_causal_mask` of `transformers.masking_utils`, passed on as "
        "they are; windows as `layer_types` and `sliding_window` of the config.",
        fix_safety="No edit is offered: edits change a plan, and here the model's own files have to change.",
        invalid=(
            Example(
                note="A triangle of the model's own.",
                code="""\
class Model(Model):
    def make_mask(self, inputs_embeds, attention_mask):
        length = inputs_embeds.shape[1]
        hidden = torch.ones(length, length, dtype=torch.bool, device=inputs_embeds.device).triu(1)
        return torch.zeros(1, 1, length, length, device=hidden.device).masked_fill(hidden, -1e9)
""",
            ),
        ),
        valid=(
            Example(
                note="The masking functions make it.",
                code="""\
class Model(Model):
    pass
""",
            ),
        ),
    )
)


def mask_altered(argument: str, place: Place, client: str) -> Finding:
    """A masking function is told, by this argument, to make another mask than the config says."""
    return _unseen(f"the mask is altered by {argument}", place, client)


def mask_written_out(module: str, place: Place, client: str) -> Finding:
    """The mask of an attention in `module` is made or changed by the model's own code, and is not the client's."""
    return _unseen(f"the mask of {module} is made by hand, and shows other keys", place, client)


def _unseen(problem: str, place: Place, client: str) -> Finding:
    return Finding(
        "BE405",
        Severity.ERROR,
        f"{problem[0].upper()}{problem[1:]}, which {client} does not see.",
        place,
        why=f"{client}'s attention takes no mask: it is causal, with the window of the config",
        found=problem,
        needed="create_causal_mask or create_sliding_window_causal_mask of transformers.masking_utils, unaltered",
        fault=Fault.MODEL,
    )


def mask_needed(error: str, place: Place, client: str) -> Finding:
    """The model raises where its mask is None, as it is with an engine."""
    return Finding(
        "BE405",
        Severity.ERROR,
        f"The model computes with its mask and raises where there is none: {error}",
        place,
        why=f"with {client} the masking functions of Transformers return None",
        found=error.partition(":")[0],
        needed="the mask passed on as it is",
        fault=Fault.MODEL,
    )


def mask_by_hand_same(module: str, place: Place, client: str) -> Finding:
    """The model makes a mask by hand that says what the client's attention does anyway: nothing is lost."""
    return Finding(
        "BE405",
        Severity.WARNING,
        f"The mask of {module} is made by hand; {client} does not read it.",
        place,
        why=f"{client}'s attention takes no mask: it is causal, with the window of the config, as this mask is",
        found="a mask of the model's own, which is causal",
        needed="create_causal_mask or create_sliding_window_causal_mask of transformers.masking_utils",
        fault=Fault.MODEL,
    )


def own_function_masks(owner: str, place: Place, does: str, size: float) -> Finding:
    """The own attention function of class `owner` shows or hides other keys than the mask; `size` is the relative difference."""
    return Finding(
        "BE405",
        Severity.ERROR,
        f"{owner}: its own attention function {does}.",
        place,
        why="a client's attention is causal, with the window of the config",
        found=f"the output differs by {size:.2g} of its largest value",
        needed="the mask as it was given",
        fault=Fault.MODEL,
    )
