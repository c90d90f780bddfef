"""BE425: a model that gives other numbers as a client runs it."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE425",
        name="client-run-differs",
        severity=Severity.ERROR,
        what="The hidden states of the model, run as the client runs it, are not those that Transformers gives.",
        why="A small copy of the model was run in both ways: in Transformers, each sequence alone, and with the client's "
        "attention, all sequences in one row. No other finding explains the difference.",
        use_instead="A forward that gives the same whatever attention is behind the interface.",
        fix_safety="No edit is offered: the cause was not found.",
        invalid=(
            Example(
                note="The layer does something else with other attention than torch's.",
                code="""\
class Layer(Layer):
    def forward(self, hidden_states, **kwargs):
        known = self.self_attn.config._attn_implementation in ("sdpa", "eager")
        return super().forward(hidden_states * (1.0 if known else 2.0), **kwargs)
""",
            ),
        ),
        valid=(
            Example(
                note="It does the same.",
                code="""\
class Layer(Layer):
    pass
""",
            ),
        ),
    )
)


def hidden_states_differ(client: str, size: float) -> Finding:
    """The hidden states differ by `size`, relative to the largest."""
    return Finding(
        "BE425",
        Severity.ERROR,
        f"The model gives other hidden states as {client} runs it, by {size:.2g} of the largest; the cause was not found.",
        Place(),
        why="the same weights and tokens were run in Transformers, and with the client's attention on one row of sequences",
        found=f"{size:.2g}",
        needed="at most 1e-5",
        fault=Fault.MODEL,
    )
