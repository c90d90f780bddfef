"""Sentences, and JSON, about the clients in which a plan is right."""

from shardproof.planner.ir.findings import Verdict
from shardproof.planner.ir.readable_text import listing
from shardproof.verify.report.client_readings import ClientVerdict, Everywhere
from shardproof.verify.report.formats.text import share


def right_in(found: Everywhere) -> str:
    """One sentence: where the plan is right, and where not."""
    right = listing([reached.client for reached in found.clients if reached.verdict is Verdict.PROVED])
    wrong = [reached for reached in found.clients if reached.verdict is not Verdict.PROVED]
    if not wrong:
        return f"One plan for {right}."
    shown = "" if all(reached.verdict is Verdict.REFUTED for reached in wrong) else " shown to be"
    others = listing([reached.client for reached in wrong])
    return f"Right in {right}; not{shown} in {others}." if right else f"Not{shown} right in {others}."


def everywhere_lines(found: Everywhere) -> list[str]:
    """The sentence, and for each client in which the plan is not right: the smallest part that cannot be sharded there, and
    why.
    """
    lines = [right_in(found)]
    for reached in found.clients:
        if reached.verdict is not Verdict.PROVED:
            lines += [f"  {reached.client}: {_nearest(reached)}", *(f"    {why}" for why in _given_up(reached))]
    return lines if found.one else [*lines, f"  {_shared(found)}"]


def everywhere_json(found: Everywhere) -> dict[str, object]:
    """`clients` by name and version, and `one_plan`: the share that one plan for all shards, null where there is none."""
    return {
        "clients": {
            reached.client: {
                "verdict": reached.verdict.value,
                "reasons": list(reached.reasons),
                "nearest": reached.nearest.value,
                "losses": dict(reached.losses),
                "sharded_fraction": round(reached.share, 6),
            }
            for reached in found.clients
        },
        "one_plan": None if found.shared is None else round(found.shared, 6),
    }


def _nearest(reached: ClientVerdict) -> str:
    if reached.nearest is not Verdict.PROVED:
        return (
            f"no plan alone is right there; `plan check MODEL --backend {reached.option}` says what in the code is not"
        )
    return f"`--for {reached.option}` gives what is right there, with {share(reached.share)} of the bytes sharded"


def _given_up(reached: ClientVerdict) -> list[str]:
    """Each parent module that is not sharded as planned and why; where all are sharded after rewording, what was wrong before."""
    if not reached.losses:
        return [*reached.reasons[:1]]
    return [f"{parent or 'the base model'} is whole, or gathered: {why}" for parent, why in reached.losses.items()]


def _shared(found: Everywhere) -> str:
    if found.shared is None:
        return "no plan is right in all of them."
    return f"`--for all` gives one plan that is right in all; in Transformers it shards {share(found.shared)} of the bytes."
