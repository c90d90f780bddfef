"""DY503: decoding through the cache differs."""

from shardproof.planner.ir.findings import Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="DY503",
        name="decode-differs",
        severity=Severity.ERROR,
        what="A prompt followed by cached steps gives other logits than the same tokens at once.",
        why="The cache holds a rank's own keys and values. A wrong layer index, or heads that change "
        "place between the two calls, shows only there.",
        use_instead="A global `layer_idx`, and keys and values sharded alike: the same style for both projections.",
        fix_safety="No edit is offered: the cause is mostly in the modeling code.",
        invalid=(
            Example(
                note="A second stage that counts its layers from 0 writes over another layer's cache.",
                code="self.layer_idx = position_in_this_stage",
            ),
        ),
        valid=(Example(note="The number of the layer in the model.", code="self.layer_idx = layer_idx"),),
    )
)


def decode_differs(what: str, place: Place, *, error: float, limit: float) -> Finding:
    """Decoding through the KV cache has a relative error above `limit`; a limit of 0 is for tokens, which are the same or not."""
    return Finding(
        "DY503",
        Severity.ERROR,
        f"decoding through the cache differs from the single-device model ({what}), the full forward does not",
        place,
        why="the cache of a rank must hold the keys and values of its own heads, at the global layer index",
        found=f"relative error {error:.1e}" if limit else "other tokens",
        needed=f"at most {limit:.0e}" if limit else "the same tokens",
    )
