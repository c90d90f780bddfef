"""BE402 to BE408: attention that an engine cannot take over, or takes over wrongly.

Source: `vllm/model_executor/models/registry.py` (`is_backend_compatible`) and
`vllm/model_executor/models/transformers/{base,fusers/attention}.py`, 0.32.0: one call of the interface in the module's own
forward, an integer `layer_idx`, `scaling` a literal or `self.<name>`; `__init__.py` (`vllm_attention_forward`): no mask, no
bias, no weights given back; soft-cap and windows from the config alone. `sglang/srt/models/transformers.py`, 0.5.23: the
same, without soft-cap and sinks. `text_generation_server/models/transformers_flash_causal_lm.py`: no bias.
"""

import ast
from collections.abc import Iterator, Mapping

from torch import nn
from transformers import PreTrainedModel

from shardproof.planner.ir.findings import Finding, Place, Severity
from shardproof.planner.ir.graph import Graph
from shardproof.planner.ir.plan import join
from shardproof.planner.loading.config_fields import field_of
from shardproof.verify.clients.contract.facts import ContractFacts
from shardproof.verify.clients.contract.functions import names_in
from shardproof.verify.clients.contract.keywords import interface_calls
from shardproof.verify.clients.contract.source import forward_tree, source_of
from shardproof.verify.findings import be402, be403, be404, be406, be407, be408

SOFTCAP = "attn_logit_softcapping"


def attention_modules(model: nn.Module) -> list[str]:
    """Modules whose own forward looks the attention interface up."""
    found = []
    for path, module in model.named_modules():
        tree = forward_tree(type(module))
        if tree is not None and "ALL_ATTENTION_FUNCTIONS" in names_in(tree):
            found.append(path)
    return found


def check_attention(
    model: nn.Module, graph: Graph | None, paths: list[str], contract: ContractFacts, decoder: str
) -> list[Finding]:
    """Findings of every attention module's class, one a class, and of the model."""
    found: dict[tuple[str, str], Finding] = {}
    for path in paths:
        module = model.get_submodule(path)
        tree = forward_tree(type(module))
        for finding in _of_module(model, path, module, tree, contract) if tree is not None else ():
            found.setdefault((finding.code, type(module).__name__), finding)
    inline = _inline(model, graph, paths, contract.client) if graph is not None else ()
    for finding in (f for f in inline if not decoder or (f.place.module or "").startswith(f"{decoder}.")):
        found.setdefault((finding.code, finding.message), finding)
    without = _without_attention(model, paths, decoder) if contract.reads_source else ()
    return [*_claims(model, paths, contract), *found.values(), *without]


def _without_attention(model: nn.Module, paths: list[str], decoder: str) -> Iterator[Finding]:
    """The first layer in which no module looks the interface up: vLLM wants one in each (`_create_attention_instances`)."""
    config = getattr(model, "config", None)
    count = field_of(config.get_text_config(), "num_hidden_layers") if config is not None else None
    given = [getattr(model.get_submodule(path), "layer_idx", None) for path in paths]
    places = {place for place in given if isinstance(place, int)}
    if not paths or not isinstance(count, int) or len(places) < len(set(given)):
        return
    stack = next(
        (
            (name, layers)
            for name, layers in model.get_submodule(decoder).named_children()
            if isinstance(layers, nn.ModuleList) and len(layers) >= count
        ),
        None,
    )
    missing = next((index for index in range(count) if index not in places), None)
    if stack is None or missing is None:
        return
    kind = type(stack[1][missing])
    place = Place(module=join(join(decoder, stack[0]), str(missing)), source=source_of(kind))
    yield be402.layer_without_attention(missing, kind.__name__, place, layers=sorted(places))


def _of_module(
    model: nn.Module, path: str, module: nn.Module, tree: ast.FunctionDef, contract: ContractFacts
) -> Iterator[Finding]:
    kind, calls = type(module), interface_calls(tree)
    if len(calls) != 1:
        yield be402.not_one_call(kind.__name__, len(calls), _place(kind, path, tree))
        return
    call = calls[0]
    if (used := _used_weights(tree, call)) is not None:
        yield be403.weights_used(kind.__name__, _place(kind, path, used))
    if (changed := _changed_mask(tree, call)) is not None:
        yield be404.mask_changed(kind.__name__, _place(kind, path, changed))
    if contract.reads_source:
        yield from _source_form(kind, path, module, tree, call)
    yield from _options(model, kind, path, module, call, contract)


def _used_weights(tree: ast.FunctionDef, call: ast.Call) -> ast.AST | None:
    """Where the second result of the interface takes part in a computation."""
    names = _results(tree, call)
    weights = names[1] if len(names) == 2 else "_"
    if weights == "_":
        return None
    for node in ast.walk(tree):
        computed = isinstance(node, ast.BinOp) and weights in names_in(node)
        given = isinstance(node, ast.Call) and any(weights in names_in(argument) for argument in node.args)
        own = (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == weights
            and node.func.attr in ("mul", "matmul", "bmm", "add", "mul_", "add_", "div", "softmax", "masked_fill")
        )
        if (computed or given or own) and node is not call:
            return node
    return None


def _changed_mask(tree: ast.FunctionDef, call: ast.Call) -> ast.AST | None:
    """Where the mask that the interface is given is computed with, in the attention's own forward."""
    given = [k.value for k in call.keywords if k.arg == "attention_mask"] + call.args[4:5]
    if not given:
        return None
    if any(isinstance(node, ast.BinOp) for node in ast.walk(given[0])):
        return given[0]
    names = names_in(given[0])
    for node in ast.walk(tree):
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
        )
        mine = any(isinstance(target, ast.Name) and target.id in names for target in targets)
        if mine and (isinstance(node, ast.AugAssign) or _adds(node.value)):  # type: ignore[attr-defined]  # of Assign
            return node
    return None


def _adds(value: ast.expr) -> bool:
    """Arithmetic, but not the sizes inside a slice."""
    if isinstance(value, ast.IfExp):
        return _adds(value.body) or _adds(value.orelse)
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
        return value.func.attr in ("add", "masked_fill", "mul") or _adds(value.func.value)
    return isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add | ast.Sub | ast.Mult)


def _source_form(kind: type, path: str, module: nn.Module, tree: ast.FunctionDef, call: ast.Call) -> Iterator[Finding]:
    """What vLLM reads off the call and the module."""
    owner = kind.__name__
    if isinstance(call.func, ast.Subscript):
        yield be408.called_where_looked_up(owner, _place(kind, path, call))
    if getattr(module, "config", None) is None:
        yield be408.no_config(owner, _place(kind, path, tree))
    if not isinstance(getattr(module, "layer_idx", None), int):
        yield be408.no_layer_index(owner, _place(kind, path, tree))
    if (used := _shape_used(tree, call)) is not None:
        yield be408.output_shape_used(owner, _place(kind, path, used), ast.unparse(used))
    scaling = next((k.value for k in call.keywords if k.arg == "scaling"), None)
    plain = isinstance(scaling, ast.Attribute) and isinstance(scaling.value, ast.Name) and scaling.value.id == "self"
    if scaling is not None and not plain and not isinstance(scaling, ast.Constant):
        yield be408.scaling_not_readable(owner, _place(kind, path, call), ast.unparse(scaling))


def _shape_used(tree: ast.FunctionDef, call: ast.Call) -> ast.expr | None:
    """Where the shape of the first result of the interface is asked for."""
    name = next(iter(_results(tree, call)), "")
    for node in ast.walk(tree) if name else ():
        asked = isinstance(node, ast.Attribute) and node.attr in ("shape", "size") and _is(node.value, name)
        like = (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("view_as", "reshape_as", "expand_as")
            and any(_is(argument, name) for argument in node.args)
        )
        if asked or like:
            return node  # type: ignore[return-value]  # an Attribute or a Call
    return None


def _is(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _results(tree: ast.FunctionDef, call: ast.Call) -> list[str]:
    """The names that the results of a call are given, in order; `_` for one that has none."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and node.value is call and isinstance(node.targets[0], ast.Tuple):
            return [target.id if isinstance(target, ast.Name) else "_" for target in node.targets[0].elts]
    return []


def _options(
    model: nn.Module, kind: type, path: str, module: nn.Module, call: ast.Call, contract: ContractFacts
) -> Iterator[Finding]:
    """Windows, soft-caps and causality that the model has and the call does not pass, or the client does not have."""
    config = getattr(model, "config", None)
    text = config.get_text_config() if config is not None else None
    passed = {k.arg: k.value for k in call.keywords if k.arg is not None}
    owner, place = kind.__name__, _place(kind, path, call)
    if getattr(module, "sliding_window", None) and "sliding_window" not in passed:
        yield be407.window_not_passed(owner, place)
    cap = next((name for name in _fields(text) if _caps_scores(name) and getattr(text, name)), None)
    if cap is not None and "softcap" not in passed:
        yield be407.softcap_not_passed(owner, place, cap)
    yield from _causality(owner, place, module, passed)
    if contract.attention_from_config:
        yield from _config_options(text, owner, place, module, passed)
    for keyword, name in contract.attention_lacks.items():
        value = next((k.value for k in call.keywords if k.arg == keyword), None)
        has = value is not None and not (isinstance(value, ast.Attribute) and getattr(module, value.attr, None) is None)
        if has:
            yield be407.option_not_supported(owner, place, name, contract.client)


def _fields(text: object) -> list[str]:
    return sorted(vars(text)) if text is not None else []


def _caps_scores(name: str) -> bool:
    """Whether a config field is a soft-cap of attention scores, by its words; one of the logits is the head's."""
    words = name.lower()
    caps = "softcap" in words or "soft_cap" in words or "logit_cap" in words
    return caps and "attn" in words.replace("attention", "attn")


def _causality(owner: str, place: Place, module: nn.Module, passed: Mapping[str, ast.expr]) -> Iterator[Finding]:
    """`is_causal`, on the module or in the call (`integrations/flash_attention.py`, `sdpa_attention.py`, 5.23.0)."""
    given = passed.get("is_causal")
    if given is None and not isinstance(getattr(module, "is_causal", None), bool):
        yield be407.causality_not_said(owner, place)
    constant = isinstance(given, ast.Constant) and given.value is False
    if constant or (given is None and getattr(module, "is_causal", True) is False):
        yield be407.not_causal(owner, place)


def _config_options(
    text: object, owner: str, place: Place, module: nn.Module, passed: Mapping[str, ast.expr]
) -> Iterator[Finding]:
    """Options that vLLM reads from the config alone (`_create_attention_instances`, 0.32.0), against what the call passes."""
    window, cap = _value(passed.get("sliding_window"), module), _value(passed.get("softcap"), module)
    if isinstance(cap, float | int) and cap and not getattr(text, SOFTCAP, None):
        yield be407.softcap_not_in_config(owner, place, SOFTCAP)
    if not isinstance(window, int) or isinstance(window, bool) or not window:
        return
    layer, kinds = getattr(module, "layer_idx", None), getattr(text, "layer_types", None)
    whole = kinds is not None and isinstance(layer, int) and layer < len(kinds) and "sliding" not in kinds[layer]
    if getattr(text, "sliding_window", None) != window or whole:
        yield be407.window_not_in_config(owner, place)


def _value(expression: ast.expr | None, module: nn.Module) -> object:
    """What `self.<name>` or a constant is on the module; None for anything else."""
    if isinstance(expression, ast.Constant):
        return expression.value
    own = isinstance(expression, ast.Attribute) and isinstance(expression.value, ast.Name)
    return getattr(module, expression.attr, None) if own and expression.value.id == "self" else None  # type: ignore[union-attr]


def _inline(model: nn.Module, graph: Graph, paths: list[str], client: str) -> Iterator[Finding]:
    """Attention computed outside the interface: a fused attention, or a softmax over four dims."""
    known = set(paths)
    for op in graph.ops:
        scores = op.target.endswith("softmax") and op.outputs and len(graph.values[op.outputs[0]].shape) == 4
        if (op.target == "attention" or scores) and op.module not in known and not _below(op.module, known):
            module = model.get_submodule(op.module)
            place = Place(module=op.module, source=op.source)
            yield be402.attention_written_out(type(module).__name__, op.target, place, client)


def _below(path: str, known: set[str]) -> bool:
    return any(path.startswith(f"{other}.") for other in known)


def _claims(model: nn.Module, paths: list[str], contract: ContractFacts) -> Iterator[Finding]:
    """`_supports_attention_backend`, missing or claimed falsely."""
    kind, client = type(model), contract.client
    claims = bool(getattr(kind, "_supports_attention_backend", False))
    # vLLM's second question (`_try_resolve_transformers`, 0.32.0): does the file use the interface?
    usable = isinstance(model, PreTrainedModel) and model._can_set_attn_implementation()
    severity = Severity.WARNING if usable and paths and contract.takes_interface_users else Severity.ERROR
    place = Place(source=source_of(kind))
    if claims and not paths:
        yield be406.claimed_without_attention(kind.__name__, place, client, severity)
    elif not claims:
        yield be406.not_claimed(kind.__name__, place, client, severity)


def _place(kind: type, path: str, node: ast.AST) -> Place:
    return Place(module=path, source=source_of(kind, node))
