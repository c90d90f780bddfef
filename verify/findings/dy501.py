"""DY501: the ranks give another output."""

from collections.abc import Mapping

from shardproof.planner.ir.findings import Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="DY501",
        name="output-differs",
        severity=Severity.ERROR,
        what="On real ranks the hidden states or the logits are not those of the single-device model.",
        why="In float64 rounding stays below 1e-12, relative, and a wrong plan shows above 1e-6: what "
        "lies above the limit is no rounding.",
        use_instead="The entry of the first module that differs, which the finding names, is where to look; `plan "
        "suggest MODEL` writes a plan that was proved.",
        fix_safety="An edit is offered where a run with it agreed.",
        invalid=(
            Example(
                note="Every rank adds the MLP's output of all ranks twice.",
                code='"layers.*.mlp.down_proj": "rowwise",\n"layers.*.mlp": "all_reduce",',
            ),
        ),
        valid=(Example(note="One reduction.", code='"layers.*.mlp.down_proj": "rowwise",'),),
    )
)


def output_differs(
    largest: Mapping[str, float], place: Place, *, first: str | None, found: str, needed: str
) -> Finding:
    """Outputs of the sharded model are wrong: the largest relative error of each kind, and the first module that differs."""
    names = ", ".join(f"{what} by {error:.1e}" for what, error in largest.items())
    where = f"; the first module to differ is {first}" if first is not None else ""
    return Finding(
        "DY501",
        Severity.ERROR,
        f"the sharded model's output differs from the single-device one ({names}){where}",
        place,
        why="every rank's result must be the single-device one, or its own shard of it",
        found=found,
        needed=needed,
    )
