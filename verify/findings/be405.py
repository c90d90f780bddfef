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


def mask_written_out(module: str, target: str, place: Place, client: str) -> Finding:
    """The mask of an attention in `module` is made by an op (`target`) of the model's own."""
    return _unseen(f"the mask of {module} is made by hand ({target})", place, client)


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
