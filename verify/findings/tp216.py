"""TP216: a parameter that is converted after it was cut, and comes out as another part."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
from shardproof.planner.ir.placement import Placement
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="TP216",
        name="part-mixed-by-conversion",
        severity=Severity.ERROR,
        what="The checkpoint holds a sharded parameter in another form (merged with others, or its halves in turns), and "
        "the client cuts that form before it converts it.",
        why="Transformers reads of every checkpoint tensor the part that the placement says, and converts the part. A cut "
        "and a conversion along the same dim do not commute: the first half of query|key is all query, and its halves are "
        "then taken for a query and a key.",
        use_instead="A style that cuts another dim, or no entry: what stays whole is converted whole. A checkpoint that is "
        "saved in the model's own form has nothing to convert.",
        fix_safety="The edit that leaves the parameter whole is offered where it was proved.",
        invalid=(Example(note="The checkpoint holds gate, query, key and value in one matrix.", model="hrm_text"),),
        valid=(
            Example(
                note="Only what is saved as the model holds it.",
                model="hrm_text",
                plan=(("lm_head", "colwise_gather_output"),),
                alone=True,
            ),
        ),
    )
)


def part_is_mixed(
    parameter: str, place: Place, *, sources: str, placement: Placement, held: Placement | None
) -> Finding:
    """A rank holds another part (`held`, where it has a name) than the placement says, after the conversion of `sources`."""
    after = "; whatever it then computes, it would save another parameter" if held else ""
    return Finding(
        "TP216",
        Severity.ERROR,
        f"loaded from a checkpoint, a rank does not hold its part of {parameter}",
        place,
        why=f"Transformers cuts what the checkpoint holds ({sources}) and makes the parameter of each rank's part{after}",
        found=str(held) if held else "a mixture of other parts",
        needed=str(placement),
        fault=Fault.CLIENT,
    )
