"""TP214: experts on other ranks that tokens cannot be sent to."""

from shardproof.planner.ir.findings import Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="TP214",
        name="experts-not-dispatchable",
        severity=Severity.ERROR,
        what="The expert plan puts whole experts on ranks, and their module does not work with experts that are elsewhere.",
        why="The client sends each token to the rank of its expert, runs the experts there with weights of one, and takes "
        "the sum of the results times the routing weights. That is the same sum only where the module is called with "
        "(hidden states, expert ids, routing weights), has `num_experts`, meets every parameter by expert number, and "
        "multiplies the result by the routing weights.",
        use_instead="A tensor plan (`moe_tp_experts`), which cuts every expert; or a module with that signature.",
        fix_safety="No edit is offered: the module, or the whole expert plan, has to change.",
        invalid=(
            Example(
                note="The experts run all at once, on tokens that are laid out by expert already.",
                code="def forward(self, hidden_states):\n"
                "    hidden_states = hidden_states.view(self.num_experts, -1, self.hidden_size)\n"
                "    return torch.bmm(hidden_states, self.gate_up_proj)",
            ),
        ),
        valid=(
            Example(
                note="One expert at a time, on the tokens that chose it, times its routing weight.",
                code="def forward(self, hidden_states, top_k_index, top_k_weights):\n"
                "    for expert in hit:\n"
                "        slot, token = torch.where(mask[expert])\n"
                "        part = F.linear(hidden_states[token], self.down_proj[expert])\n"
                "        result.index_add_(0, token, part * top_k_weights[token, slot, None])",
            ),
        ),
    )
)


def not_dispatchable(module: str, entry: str, *, problem: str, found: str, needed: str) -> Finding:
    """An experts module, or an entry of it, that does not keep to the contract of the dispatch."""
    return Finding(
        "TP214",
        Severity.ERROR,
        f"Tokens cannot be dispatched to the experts of {module}: {problem}.",
        Place(entry, module),
        why="a rank that holds E / t experts is sent the tokens that chose one of them, and nothing else",
        found=found,
        needed=needed,
    )
