"""TP222: a quantised checkpoint, of which the layout of packed weights and scales was not looked at."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="TP222",
        name="quantised-checkpoint",
        severity=Severity.UNDECIDED,
        what="The checkpoint is quantised: its weights are packed, and have scales. A rank's part that ends inside a block with "
        "one scale is wrong. FP8 by blocks is proved where every rank holds whole blocks of linear layers; of other methods the "
        "plan is right for the weights before they were quantised, and nothing is known of the packed ones.",
        why="A quantised layer multiplies each block of its weight by a scale of its own. Which part of the scales, zero points "
        "and packed words a rank gets is decided by the quantiser of the client, not by the plan alone.",
        use_instead="A degree at which every rank holds whole blocks; a checkpoint that is not quantised; or a run of this one: "
        "`plan verify CHECKPOINT --weights`.",
        fix_safety="No edit is offered: the blocks are the checkpoint's.",
        invalid=(
            Example(
                note="Two ranks hold 192 of 384 input features each, one and a half blocks.",
                code='"layers.*.mlp.down_proj": "rowwise"  # intermediate_size 384, weight_block_size [128, 128]',
            ),
        ),
        valid=(
            Example(
                note="Three ranks hold one block each.",
                code='"layers.*.mlp.down_proj": "rowwise"  # intermediate_size 384, weight_block_size [128, 128], tp 3',
            ),
        ),
    )
)


def not_looked_at(method: str) -> Finding:
    """The layout of a method's packed weights and scales is not known."""
    return Finding(
        "TP222",
        Severity.UNDECIDED,
        f"the checkpoint is quantised ({method}), and what a rank gets of its packed weights and scales was not looked at",
        Place(None),
        why="what was looked at is the model before it was quantised",
        found=method,
        needed="weights that are not quantised, or a run with the checkpoint's own",
    )


def plain_twin(method: str) -> Finding:
    """The twin is not quantised, where every rank of the checkpoint holds the packed weights whole."""
    return Finding(
        "TP222",
        Severity.WARNING,
        f"the checkpoint is quantised ({method}) and the twin is not: the run did not load, train or save packed weights",
        Place(None),
        why="no entry shards a module that may be packed, so every rank holds the packed weights whole",
        found=method,
        needed="a run of the checkpoint's own weights, where loading and saving them is in question",
    )


def refused(method: str, words: str) -> Finding:
    """The installed Transformers refuses to shard a checkpoint of this method; `words` are its own."""
    return Finding(
        "TP222",
        Severity.ERROR,
        f"Transformers refuses to shard a checkpoint in {method}: {words}",
        Place(None),
        why="its quantiser raises as soon as it is given a plan for more than one rank",
        found=method,
        needed="one rank, or a checkpoint in another form",
        fault=Fault.CLIENT,
    )


def block_is_cut(entry: str, module: str, *, side: str, held: int, block: int) -> Finding:
    """A rank holds `held` features of one side of a module (`in_features` or `out_features`), which are not whole blocks."""
    return Finding(
        "TP222",
        Severity.ERROR,
        f"a rank holds {held} {side} of {module}, and they are quantised in blocks of {block}",
        Place(entry, module),
        why="each block has one scale, and a rank gets whole scales only",
        found=f"{held / block:g} blocks",
        needed="whole blocks",
    )
