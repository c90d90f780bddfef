"""BE402: attention that no engine can take over."""

from collections.abc import Sequence

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE402",
        name="attention-not-through-interface",
        severity=Severity.ERROR,
        what="A module computes its attention itself, or mixes tokens in another way outside of it (a token shift, a "
        "convolution, a recurrence, something kept from an earlier call); or calls the attention interface more than once, or "
        "not for a single token; or a layer has no attention behind the interface.",
        why="An engine registers its own attention, with its paged cache, in `ALL_ATTENTION_FUNCTIONS`. What "
        "does not go through it keeps no cache and sees only the tokens of one step.",
        use_instead="One call of `ALL_ATTENTION_FUNCTIONS` in the forward of the module that owns the projections.",
        fix_safety="No edit is offered: edits change a plan, and here the model's own files have to change.",
        invalid=(
            Example(
                note="The scores are computed in the forward.",
                code="""\
class Attention(Attention):
    def forward(self, hidden_states, attention_mask=None, **kwargs):
        query, key, value = self.heads(hidden_states)
        weights = torch.softmax(query @ key.transpose(-1, -2) * self.scaling, dim=-1)
        return self.o_proj((weights @ value).transpose(1, 2).reshape(hidden_states.shape))
""",
            ),
        ),
        valid=(
            Example(
                note="The interface computes them.",
                code="""\
class Attention(Attention):
    pass
""",
            ),
        ),
    )
)


def not_one_call(owner: str, count: int, place: Place) -> Finding:
    """The forward of class `owner` calls the attention interface not at all, or several times."""
    problem = f"{count} calls of the attention interface in one forward"
    return Finding(
        "BE402",
        Severity.ERROR,
        f"{owner}: {problem}.",
        place,
        why="a layer has one attention of the client",
        found=problem,
        needed="one call",
        fault=Fault.MODEL,
    )


def layer_without_attention(layer: int, owner: str, place: Place, *, layers: Sequence[int]) -> Finding:
    """A layer (of class `owner`) in which no module calls the interface; `layers` are those in which one does."""
    return Finding(
        "BE402",
        Severity.ERROR,
        f"Layer {layer} ({owner}) has no attention behind the interface.",
        place,
        why="vllm gives every layer an attention of its own, and runs no other layer",
        found=f"attention in layers {', '.join(map(str, layers[:4]))}{', ...' if len(layers) > 4 else ''} alone",
        needed="one call of ALL_ATTENTION_FUNCTIONS in each layer",
        fault=Fault.MODEL,
    )


def attention_written_out(owner: str, target: str, place: Place, client: str) -> Finding:
    """A module of class `owner` computes attention (the op `target`) without the interface."""
    return Finding(
        "BE402",
        Severity.ERROR,
        f"{owner} computes its attention itself.",
        place,
        why=f"{client} puts its own attention, with its cache, behind ALL_ATTENTION_FUNCTIONS",
        found=target,
        needed="a call of ALL_ATTENTION_FUNCTIONS in the module's own forward",
        fault=Fault.MODEL,
    )


def tokens_mixed(owner: str, operation: str, place: Place, client: str) -> Finding:
    """A module of class `owner` lets a token see another one outside of the attention, in `operation` (empty if not found)."""
    how = f"in {operation}" if operation else "in an operation that was not found"
    return Finding(
        "BE402",
        Severity.ERROR,
        f"{owner} mixes tokens outside of the attention.",
        place,
        why=f"{client} runs a step with the new tokens alone, and keeps a cache for its attention only",
        found=f"another token changes the result, {how}",
        needed="tokens that see each other through ALL_ATTENTION_FUNCTIONS alone",
        fault=Fault.MODEL,
    )


def one_token_bypasses(owner: str, place: Place, client: str) -> Finding:
    """A module of class `owner` calls the interface for a sequence, and not for one token, as in decoding."""
    return Finding(
        "BE402",
        Severity.ERROR,
        f"{owner} does not call the attention interface for a single token.",
        place,
        why=f"{client} decodes token by token; the tokens before are in the cache of its attention alone",
        found="another path for a single token",
        needed="one call of ALL_ATTENTION_FUNCTIONS for any number of tokens",
        fault=Fault.MODEL,
    )


def earlier_call_kept(place: Place, client: str) -> Finding:
    """What the model keeps of one call in its attributes changes the next one."""
    return Finding(
        "BE402",
        Severity.ERROR,
        "The model keeps something of one call, which changes the next one.",
        place,
        why=f"{client} runs tokens of other requests in the next call, and keeps a cache for its attention only",
        found="another result for the same token after another sequence",
        needed="a forward whose result depends on its arguments alone",
        fault=Fault.MODEL,
    )
