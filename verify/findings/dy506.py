"""DY506: the weights that come back are not those that went in."""

from shardproof.planner.ir.findings import Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="DY506",
        name="weights-differ",
        severity=Severity.ERROR,
        what="The state dict put together from the ranks is not the one that the model was loaded with.",
        why="Saving must undo sharding. A packed weight cut across its blocks, or parts put together in "
        "another order, comes back with its rows permuted.",
        use_instead="A style whose layout is the weight's own: a packed style for packed blocks.",
        fix_safety="An edit is offered where a run with it agreed.",
        invalid=(
            Example(
                note="Two blocks, saved as if they were one.",
                code="torch.cat([part for part in parts])  # parts of a packed_colwise weight",
            ),
        ),
        valid=(Example(note="The placement knows its blocks.", code="weight.full_tensor()"),),
    )
)


def parameter_differs(parameter: str, entry: str | None, *, how: str, error: float) -> Finding:
    """A parameter that was put together from the ranks (`how` says by what) has a relative error."""
    return Finding(
        "DY506",
        Severity.ERROR,
        f"{parameter}, {how}, is not the parameter that was loaded",
        Place(entry, parameter.rpartition(".")[0] or None),
        why="the shards of a parameter must be its parts, each once",
        found=f"relative error {error:.1e}",
        needed="the same bits",
    )
