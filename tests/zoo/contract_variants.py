# ruff: noqa: E501  # edits are one line each
"""Variants of a small right model (`tests/zoo/finch`), each with one fault of the backend contract, or right in an unusual form.

A variant is a list of edits of `modeling_finch.py`; the line of its fault is marked `# FAULT`.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent / "finch"
MODELING = "modeling_finch.py"

CALL = "output, weights = attend(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)\n"
LOOKUP = "attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, own_attention)\n"
LOOP = "        for block in self.blocks:\n            hidden_states = block(hidden_states, angles, attention_mask=mask, past_key_values=past_key_values, **kwargs)\n"
IN_BLOCK = "        mixed = self.attention(normed, angles, attention_mask, past_key_values, **kwargs)\n"
NORMED = "        normed = self.first_norm(hidden_states)\n"
BLOCK_FORWARD = (
    "    def forward(self, hidden_states, angles=None, attention_mask=None, past_key_values=None, **kwargs):\n"
)
SCORES = "    scores = query @ key.transpose(-1, -2) * scaling\n"
SOFTMAX = "    weights = scores.softmax(dim=-1)\n"
ATTENDED = "    attended = weights @ value\n"
RESHAPED = "        output = output.reshape(*shape, -1).contiguous()\n"
MASK = "        mask = create_causal_mask(\n            config=self.config,\n            inputs_embeds=inputs_embeds,\n            attention_mask=attention_mask,\n            past_key_values=past_key_values,\n            position_ids=position_ids,\n        )\n"
MADE = "        hidden_states = inputs_embeds\n"
INIT = "        self.second_norm = Rms(config.hidden_size)\n"
BLOCKS = "        self.blocks = nn.ModuleList([Block(config, index) for index in range(config.num_hidden_layers)])\n"
MODEL = "class FinchModel(FinchPreTrainedModel):\n"
IMPORT = "from .configuration_finch import FinchConfig\n"


@dataclass(frozen=True, slots=True)
class Variant:
    """`codes` are those of which one has to be found, none for a right model; `config` are fields of config.json."""

    name: str
    edits: tuple[tuple[str, str], ...] = ()
    codes: frozenset[str] = frozenset()
    config: tuple[tuple[str, object], ...] = ()

    @property
    def right(self) -> bool:
        return not self.codes

    def written(self, folder: Path) -> Path:
        """The model in a folder of its own."""
        place = folder / self.name.replace(" ", "_").replace(",", "")
        shutil.copytree(ROOT, place)
        source = (place / MODELING).read_text()
        for old, new in self.edits:
            assert source.count(old) == 1, f"{self.name}: {source.count(old)} times {old!r}"
            source = source.replace(old, new)
        (place / MODELING).write_text(source)
        fields = json.loads((place / "config.json").read_text()) | dict(self.config)
        (place / "config.json").write_text(json.dumps(fields))
        return place

    def fault_lines(self, place: Path) -> set[int]:
        lines = (place / MODELING).read_text().splitlines()
        return {number for number, line in enumerate(lines, 1) if "# FAULT" in line}


def wrong(name: str, codes: str, *edits: tuple[str, str], **config: object) -> Variant:
    return Variant(name, edits, frozenset(codes.split()), tuple(config.items()))


def right(name: str, *edits: tuple[str, str], **config: object) -> Variant:
    return Variant(name, edits, frozenset(), tuple(config.items()))


def _loop(body: str) -> tuple[str, str]:
    return LOOP, body


KEYWORDS = (
    wrong(
        "keywords rebound",
        "BE401",
        (NORMED, NORMED + "        kwargs = dict(mask=None)  # FAULT\n        kwargs.pop('mask')\n"),
    ),
    wrong("keywords cleared", "BE401", (NORMED, NORMED + "        kwargs.clear()  # FAULT\n")),
    wrong(
        "keywords popped",
        "BE401",
        (
            NORMED,
            NORMED
            + "        kwargs.pop('attention_instances', None)  # FAULT\n        kwargs.pop('attention_keyword', None)\n        kwargs.pop('forward_batch', None)\n",
        ),
    ),
    wrong(
        "keywords filtered by a comprehension",
        "BE401",
        (
            NORMED,
            NORMED
            + "        known = {name: value for name, value in kwargs.items() if name in ('cache_position',)}  # FAULT\n",
        ),
        (IN_BLOCK, IN_BLOCK.replace("**kwargs", "**known")),
    ),
    wrong(
        "keywords filtered in a loop",
        "BE401",
        (
            NORMED,
            NORMED
            + "        known = {}\n        for name, value in kwargs.items():  # FAULT\n            if name == 'cache_position':\n                known[name] = value\n",
        ),
        (IN_BLOCK, IN_BLOCK.replace("**kwargs", "**known")),
    ),
    wrong(
        "keywords deleted one by one",
        "BE401",
        (NORMED, NORMED + "        for name in list(kwargs):\n            del kwargs[name]  # FAULT\n"),
    ),
    wrong(
        "layers reduced",
        "BE401",
        _loop(
            "        hidden_states = functools.reduce(\n            lambda states, block: block(states, angles, attention_mask=mask),  # FAULT\n            self.blocks,\n            hidden_states,\n        )\n"
        ),
    ),
    wrong(
        "layers in a closure",
        "BE401",
        _loop(
            "        def step(states, block):\n            return block(states, angles, attention_mask=mask)  # FAULT\n\n        for block in self.blocks:\n            hidden_states = step(hidden_states, block)\n"
        ),
    ),
    wrong(
        "layers by a property",
        "BE401",
        (
            INIT,
            INIT
            + "\n    @property\n    def run(self):\n        return lambda states, angles, mask, **unused: self(states, angles, mask)  # FAULT\n",
        ),
        _loop(
            "        for block in self.blocks:\n            hidden_states = block.run(hidden_states, angles, mask, **kwargs)\n"
        ),
    ),
    wrong(
        "layers by call",
        "BE401",
        (
            INIT,
            INIT
            + "\n    def __call__(self, hidden_states, angles=None, attention_mask=None, past_key_values=None, **unused):\n        return super().__call__(hidden_states, angles, attention_mask, past_key_values)  # FAULT\n",
        ),
    ),
    wrong(
        "an instance forward",
        "BE401",
        (
            INIT,
            INIT
            + "        inner = self.forward\n        self.forward = lambda states, angles=None, attention_mask=None, **unused: inner(states, angles, attention_mask)  # FAULT\n",
        ),
    ),
    wrong(
        "a hook",
        "BE401",
        (INIT, INIT + "        self.register_forward_pre_hook(forget, with_kwargs=True)\n"),
        (
            "class Block(nn.Module):\n",
            "def forget(module, args, kwargs):\n    names = ('attention_mask', 'past_key_values')\n    return args, {name: kwargs[name] for name in names if name in kwargs}  # FAULT\n\n\nclass Block(nn.Module):\n",
        ),
    ),
    wrong(
        "a decorator class",
        "BE401",
        (
            "class Block(nn.Module):\n",
            "class Timed:\n    def __init__(self, function):\n        self.function = function\n\n    def __get__(self, owner, kind=None):\n        return functools.partial(self.__call__, owner)\n\n    def __call__(self, owner, states, angles=None, attention_mask=None, **unused):\n        return self.function(owner, states, angles, attention_mask)  # FAULT\n\n\nclass Block(nn.Module):\n",
        ),
        (BLOCK_FORWARD, "    @Timed\n" + BLOCK_FORWARD),
    ),
    wrong(
        "no keywords in a signature",
        "BE401",
        (BLOCK_FORWARD, BLOCK_FORWARD.replace(", **kwargs", "").replace(":\n", ":  # FAULT\n")),
        (IN_BLOCK, IN_BLOCK.replace(", **kwargs", "")),
    ),
    wrong("the interface without keywords", "BE401", (CALL, CALL.replace(", **kwargs)\n", ")  # FAULT\n"))),
    wrong(
        "keywords to the first layer alone",
        "BE401",
        _loop(
            "        for number, block in enumerate(self.blocks):\n            more = kwargs if number == 0 else {}  # FAULT\n            hidden_states = block(hidden_states, angles, attention_mask=mask, **more)\n"
        ),
    ),
    wrong(
        "keywords kept in training alone",
        "BE401",
        (NORMED, NORMED + "        if not self.training:\n            kwargs = {}  # FAULT\n"),
    ),
    right(
        "partial late",
        _loop(
            "        for block in self.blocks:\n            step = functools.partial(block, angles=angles, attention_mask=mask)\n            hidden_states = step(hidden_states, past_key_values=past_key_values, **kwargs)\n"
        ),
    ),
    right(
        "partial early",
        _loop(
            "        for block in self.blocks:\n            step = functools.partial(block, angles=angles, attention_mask=mask, **kwargs)\n            hidden_states = step(hidden_states)\n"
        ),
    ),
    right(
        "a union of dicts",
        _loop(
            "        shared = {'angles': angles, 'attention_mask': mask} | kwargs\n        for block in self.blocks:\n            hidden_states = block(hidden_states, **shared)\n"
        ),
    ),
    right(
        "a chain of maps",
        _loop(
            "        shared = ChainMap({'angles': angles, 'attention_mask': mask}, kwargs)\n        for block in self.blocks:\n            hidden_states = block(hidden_states, **shared)\n"
        ),
    ),
    right(
        "a field of a dataclass",
        (
            "class Rms(nn.Module):\n",
            "@dataclass\nclass Shared:\n    angles: tuple = ()\n    extra: dict = field(default_factory=dict)\n\n\nclass Rms(nn.Module):\n",
        ),
        _loop(
            "        shared = Shared(angles, kwargs)\n        for block in self.blocks:\n            hidden_states = block(hidden_states, shared.angles, attention_mask=mask, **shared.extra)\n"
        ),
    ),
    right(
        "copied and updated",
        (NORMED, NORMED + "        more = {}\n        more.update(kwargs)\n        more = more.copy()\n"),
        (IN_BLOCK, IN_BLOCK.replace("**kwargs", "**more")),
    ),
    right(
        "copied in a loop",
        (
            NORMED,
            NORMED + "        more = {}\n        for name, value in kwargs.items():\n            more[name] = value\n",
        ),
        (IN_BLOCK, IN_BLOCK.replace("**kwargs", "**more")),
    ),
    right(
        "a helper method",
        (
            BLOCK_FORWARD,
            "    def attended(self, states, angles, mask, cache, options):\n        return self.attention(states, angles, mask, cache, **options)\n\n"
            + BLOCK_FORWARD,
        ),
        (IN_BLOCK, "        mixed = self.attended(normed, angles, attention_mask, past_key_values, kwargs)\n"),
    ),
    right("another keyword popped", (NORMED, NORMED + "        kwargs.pop('output_router_logits', None)\n")),
    right(
        "layers reduced with keywords",
        _loop(
            "        hidden_states = functools.reduce(\n            lambda states, block: block(states, angles, attention_mask=mask, **kwargs), self.blocks, hidden_states\n        )\n"
        ),
    ),
    right("a bound method", (INIT, INIT + "        self.forward = types.MethodType(type(self).forward, self)\n")),
    right(
        "keywords on the module",
        _loop(
            "        for block in self.blocks:\n            block.given = kwargs\n            hidden_states = block(hidden_states, angles, attention_mask=mask)\n"
        ),
        (IN_BLOCK, IN_BLOCK.replace("**kwargs", "**self.given")),
    ),
)
OWN_FUNCTION = (
    wrong(
        "a bias before the softmax",
        "BE404",
        (
            SCORES,
            SCORES
            + "    steps = torch.arange(key.shape[2], dtype=query.dtype)\n    scores = scores - 0.3 * (steps[None, :] - steps[:, None]).abs()[-query.shape[2] :]  # FAULT\n",
        ),
    ),
    wrong(
        "a learned bias",
        "BE404",
        (
            "        self.out = nn.Linear(width, config.hidden_size, bias=False)\n",
            "        self.out = nn.Linear(width, config.hidden_size, bias=False)\n        self.slopes = nn.Parameter(torch.linspace(0.1, 1.0, config.num_attention_heads))\n",
        ),
        (
            SCORES,
            SCORES
            + "    steps = torch.arange(key.shape[2], dtype=query.dtype)\n    scores = scores + module.slopes[:, None, None] * steps  # FAULT\n",
        ),
    ),
    wrong("a sigmoid for the softmax", "BE403", (SOFTMAX, "    weights = torch.sigmoid(scores)  # FAULT\n")),
    wrong(
        "squared weights",
        "BE403",
        (
            SOFTMAX,
            "    weights = scores.clamp_min(-100.0).relu().square()  # FAULT\n    weights = weights / weights.sum(dim=-1, keepdim=True).clamp_min(1e-6)\n",
        ),
    ),
    wrong("weights sharpened", "BE403", (SOFTMAX, SOFTMAX + "    weights = weights * weights  # FAULT\n")),
    wrong(
        "something added to the result",
        "BE403",
        (ATTENDED, ATTENDED + "    attended = attended + 0.1 * value  # FAULT\n"),
    ),
    wrong(
        "a soft-cap of its own", "BE407", (SCORES, SCORES + "    scores = 2.0 * torch.tanh(scores / 2.0)  # FAULT\n")
    ),
    wrong("a scale of its own", "BE408", (SCORES, SCORES.replace("scaling", "scaling * 0.5  # FAULT"))),
    wrong(
        "a window of its own",
        "BE405 BE407",
        (
            SOFTMAX,
            "    near = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(-3)\n    scores = scores.masked_fill(~near, -1e9)  # FAULT\n"
            + SOFTMAX,
        ),
    ),
    wrong(
        "sinks of its own",
        "BE407",
        (
            SOFTMAX,
            "    weights = torch.cat([scores, scores[..., :1] * 0], dim=-1).softmax(dim=-1)[..., :-1]  # FAULT\n",
        ),
    ),
    right(
        "a softmax written out",
        (
            SOFTMAX,
            "    powers = (scores - scores.amax(dim=-1, keepdim=True)).exp()\n    weights = powers / powers.sum(dim=-1, keepdim=True)\n",
        ),
    ),
    right("scores by einsum", (SCORES, "    scores = torch.einsum('bhqd,bhkd->bhqk', query, key) * scaling\n")),
    right(
        "grouped heads",
        (
            SCORES,
            "    groups = query.unflatten(1, (key.shape[1], -1))\n    scores = (groups @ key[:, :, None].transpose(-1, -2)).flatten(1, 2) * scaling\n",
        ),
    ),
    right("an unused branch", (SCORES, SCORES + "    if scores.shape[-1] < 0:\n        scores = scores.sigmoid()\n")),
)
DISPATCH = (
    wrong(
        "another path by a flag",
        "BE402",
        (
            CALL,
            "if self.config.fast:\n            wide = key.repeat_interleave(3, dim=1)\n            weights = (query @ wide.transpose(-1, -2) * self.scaling).tril().softmax(dim=-1)  # FAULT\n            output = (weights @ value.repeat_interleave(3, dim=1)).transpose(1, 2)\n        else:\n            "
            + CALL,
        ),
        fast=True,
    ),
    wrong("sdpa wired in", "BE402", (LOOKUP, "attend = ALL_ATTENTION_FUNCTIONS['sdpa']\n"), (CALL, CALL)),
    wrong(
        "called where looked up",
        "BE408",
        (LOOKUP, "\n"),
        (
            CALL,
            CALL.replace("attend(", "ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation](").replace(
                "kwargs)\n", "kwargs)  # FAULT\n"
            ),
        ),
    ),
    wrong(
        "a conditional lookup",
        "BE408",
        (
            LOOKUP,
            "kind = self.config._attn_implementation\n        attend = ALL_ATTENTION_FUNCTIONS[kind] if kind != 'eager' else own_attention\n",
        ),
        (CALL, CALL.replace("kwargs)\n", "kwargs)  # FAULT\n")),
    ),
    wrong(
        "scaling left out",
        "BE408",
        ("        self.scaling = config.head_dim**-0.5\n", "        self.scaling = 1.0 / config.head_dim\n"),
        (SCORES, SCORES.replace("* scaling", "* module.scaling")),
        ("attention_mask, scaling, dropout", "attention_mask, dropout"),
        (CALL, CALL.replace("scaling=self.scaling, **kwargs)\n", "**kwargs)  # FAULT\n")),
    ),
    wrong(
        "scaling in options",
        "BE408",
        ("        self.scaling = config.head_dim**-0.5\n", "        self.scaling = 1.0 / config.head_dim\n"),
        (
            CALL,
            "options = {'scaling': self.scaling, **kwargs}\n        "
            + CALL.replace("scaling=self.scaling, **kwargs)\n", "**options)  # FAULT\n"),
        ),
    ),
    wrong(
        "scaling by position",
        "BE408",
        (CALL, CALL.replace("scaling=self.scaling, **kwargs)\n", "self.scaling, **kwargs)  # FAULT\n")),
    ),
    wrong(
        "scaling computed",
        "BE408",
        (CALL, CALL.replace("scaling=self.scaling, **kwargs)\n", "scaling=self.scaling * 1.0, **kwargs)  # FAULT\n")),
    ),
    wrong("output flattened", "BE408", (RESHAPED, "        output = output.flatten(2)  # FAULT\n")),
    wrong(
        "output transposed",
        "BE408",
        (RESHAPED, "        output = output.transpose(1, 2).transpose(1, 2).reshape(*shape, -1)  # FAULT\n"),
    ),
    wrong(
        "output by its own shape",
        "BE408",
        (RESHAPED, "        output = output.reshape(output.shape[0], output.shape[1], -1)\n"),
        ("        return self.out(output)\n", "        return self.out(output)  # FAULT\n"),
    ),
    wrong("layer index wrong", "BE408", (BLOCKS, BLOCKS.replace("Block(config, index)", "Block(config, index + 1)"))),
    wrong("layer index shared", "BE408", (BLOCKS, BLOCKS.replace("Block(config, index)", "Block(config, 0)"))),
    wrong(
        "layer index a string", "BE408", (BLOCKS, BLOCKS.replace("Block(config, index)", "Block(config, str(index))"))
    ),
    wrong(
        "two calls",
        "BE402",
        (
            CALL,
            "attend(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)\n        "
            + CALL.replace("kwargs)\n", "kwargs)  # FAULT\n"),
        ),
    ),
    wrong(
        "weights used",
        "BE403",
        (
            RESHAPED,
            "        if weights is not None:\n            output = output + weights.mean()  # FAULT\n" + RESHAPED,
        ),
    ),
    wrong(
        "weights needed",
        "BE403",
        (RESHAPED, "        output = output + weights.sum() * 0.1  # FAULT\n" + RESHAPED),
        ("    _supports_sdpa = True\n", "    _supports_sdpa = False\n"),
    ),
    wrong(
        "claimed on the head alone",
        "BE406",
        ("    _supports_attention_backend = True\n", ""),
        ("    _tied_weights_keys = {}\n", "    _tied_weights_keys = {}\n    _supports_attention_backend = True\n"),
    ),
    wrong(
        "key heads repeated before",
        "BE419",
        (
            CALL,
            "key, value = key.repeat_interleave(3, dim=1), value.repeat_interleave(3, dim=1)\n        self.num_key_value_groups = 1\n        "
            + CALL,
        ),
    ),
    wrong(
        "another result behind engines",
        "BE425",
        (
            NORMED,
            NORMED
            + "        if self.attention.config._attn_implementation not in ('sdpa', 'eager'):\n            normed = normed * 1.1\n",
        ),
    ),
    wrong(
        "positions counted",
        "BE418",
        (
            "        if position_ids is None:\n            position_ids = torch.arange",
            "        if True:\n            position_ids = torch.arange",
        ),
    ),
    right(
        "weights logged",
        (
            RESHAPED,
            "        if weights is not None:\n            self.seen = float(weights.detach().mean())\n" + RESHAPED,
        ),
    ),
    right(
        "looked up in brackets",
        (
            LOOKUP,
            "attend = own_attention\n        if self.config._attn_implementation != 'eager':\n            attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]\n",
        ),
    ),
    right(
        "output viewed by the input",
        (
            RESHAPED,
            "        output = output.reshape(hidden_states.shape[0], hidden_states.shape[1], self.out.in_features)\n",
        ),
    ),
    right(
        "a gate on the output",
        (RESHAPED, RESHAPED + "        output = output * torch.sigmoid(self.query(hidden_states))\n"),
    ),
    right("sigmoid elsewhere", (NORMED, NORMED + "        normed = normed * torch.sigmoid(normed)\n")),
)
MIXING = (
    wrong(
        "a token shift",
        "BE402",
        (NORMED, NORMED + "        normed = normed + 0.5 * functional.pad(normed, (0, 0, 1, 0))[:, :-1]  # FAULT\n"),
    ),
    wrong(
        "a causal convolution",
        "BE402",
        (
            INIT,
            INIT
            + "        self.local = nn.Conv1d(config.hidden_size, config.hidden_size, 3, groups=config.hidden_size)\n",
        ),
        (
            NORMED,
            NORMED
            + "        normed = self.local(functional.pad(normed.transpose(1, 2), (2, 0))).transpose(1, 2)  # FAULT\n",
        ),
    ),
    wrong(
        "a linear recurrence",
        "BE402",
        (
            NORMED,
            NORMED
            + "        state, made = normed[:, 0], []\n        for at in range(normed.shape[1]):\n            state = 0.5 * state + normed[:, at]\n            made.append(state)\n        normed = torch.stack(made, dim=1)  # FAULT\n",
        ),
    ),
    wrong(
        "a cumulative sum",
        "BE402",
        (NORMED, NORMED + "        normed = normed + 0.1 * normed.cumsum(dim=1)  # FAULT\n"),
    ),
    wrong(
        "a second small attention",
        "BE402",
        (
            NORMED,
            NORMED
            + "        scores = (normed @ normed.transpose(1, 2) * 0.1).tril()\n        normed = normed + scores.softmax(dim=-1) @ normed  # FAULT\n",
        ),
    ),
    wrong(
        "a mean over tokens",
        "BE402",
        (MADE, "        hidden_states = inputs_embeds - inputs_embeds.mean(dim=1, keepdim=True)  # FAULT\n"),
    ),
    wrong(
        "a shift of the keys",
        "BE402",
        (
            "        query, key = rotated(query, *angles), rotated(key, *angles)\n",
            "        query, key = rotated(query, *angles), rotated(key, *angles)\n        key = key + functional.pad(key, (0, 0, 1, 0))[:, :, :-1]  # FAULT\n",
        ),
    ),
    right(
        "a convolution of width one",
        (INIT, INIT + "        self.local = nn.Conv1d(config.hidden_size, config.hidden_size, 1)\n"),
        (NORMED, NORMED + "        normed = self.local(normed.transpose(1, 2)).transpose(1, 2)\n"),
    ),
    right("a sum over channels", (NORMED, NORMED + "        normed = normed + 0.1 * normed.cumsum(dim=-1)\n")),
)
MASKS = (
    wrong(
        "a prefix that all see",
        "BE405",
        (
            MASK,
            MASK.replace(
                "        mask = create_causal_mask(\n",
                "        mask = create_causal_mask(  # FAULT\n            or_mask_function=lambda batch, head, query, key: key < 2,\n",
            ),
        ),
    ),
    wrong(
        "a mask by hand with a window",
        "BE405 BE407",
        (
            MASK,
            "        tokens = inputs_embeds.shape[1]\n        seen = torch.ones(tokens, tokens, dtype=torch.bool).tril().triu(-2)\n        mask = torch.zeros(1, 1, tokens, tokens, dtype=inputs_embeds.dtype).masked_fill(~seen, -1e9)  # FAULT\n",
        ),
    ),
    wrong(
        "a bias in the mask",
        "BE404 BE405",
        (
            MASK,
            MASK
            + "        if mask is not None and mask.is_floating_point():\n            mask = mask - 0.2 * torch.arange(mask.shape[-1], dtype=mask.dtype)  # FAULT\n",
        ),
        ("    _supports_sdpa = True\n", "    _supports_sdpa = False\n"),
    ),
    wrong(
        "a window that the config lacks",
        "BE407",
        ("import create_causal_mask\n", "import create_sliding_window_causal_mask as create_causal_mask\n"),
        sliding_window=4,
        layer_types=["full_attention"] * 3,
    ),
    wrong("a window in the config alone", "BE407", (MASK, MASK), sliding_window=4),
    right(
        "masks by an alias",
        (IMPORT, IMPORT + "from transformers import masking_utils as masks\n"),
        (MASK, MASK.replace("create_causal_mask", "masks.create_causal_mask")),
    ),
    right(
        "masks by getattr",
        (IMPORT, IMPORT + "from transformers import masking_utils as masks\n"),
        (MASK, MASK.replace("create_causal_mask", "getattr(masks, 'create_causal_mask')")),
    ),
    right(
        "a window that is told",
        ("import create_causal_mask\n", "import create_sliding_window_causal_mask as create_causal_mask\n"),
        (CALL, CALL.replace("**kwargs", "sliding_window=4, **kwargs")),
        sliding_window=4,
        layer_types=["sliding_attention"] * 3,
    ),
    right(
        "a mask sliced",
        (
            CALL,
            "if attention_mask is not None:\n            attention_mask = attention_mask[..., : key.shape[-2]]\n        "
            + CALL,
        ),
    ),
)
CLASSES = (
    wrong(
        "AutoModel names the config",
        "BE422",
        auto_map={
            "AutoConfig": "configuration_finch.FinchConfig",
            "AutoModel": "configuration_finch.FinchConfig",
            "AutoModelForCausalLM": "modeling_finch.FinchForCausalLM",
        },
    ),
    wrong(
        "AutoModel names a function",
        "BE422",
        auto_map={
            "AutoConfig": "configuration_finch.FinchConfig",
            "AutoModel": "modeling_finch.rotated",
            "AutoModelForCausalLM": "modeling_finch.FinchForCausalLM",
        },
    ),
    wrong(
        "AutoModel names a layer",
        "BE422",
        auto_map={
            "AutoConfig": "configuration_finch.FinchConfig",
            "AutoModel": "modeling_finch.Block",
            "AutoModelForCausalLM": "modeling_finch.FinchForCausalLM",
        },
    ),
    wrong(
        "AutoModel names the head",
        "BE422",
        auto_map={
            "AutoConfig": "configuration_finch.FinchConfig",
            "AutoModel": "modeling_finch.FinchForCausalLM",
            "AutoModelForCausalLM": "modeling_finch.FinchForCausalLM",
        },
    ),
    wrong(
        "AutoModel missing",
        "BE422",
        auto_map={
            "AutoConfig": "configuration_finch.FinchConfig",
            "AutoModelForCausalLM": "modeling_finch.FinchForCausalLM",
        },
    ),
    wrong(
        "no such class",
        "BE422",
        auto_map={
            "AutoConfig": "configuration_finch.FinchConfig",
            "AutoModel": "modeling_finch.Sparrow",
            "AutoModelForCausalLM": "modeling_finch.FinchForCausalLM",
        },
    ),
    right(
        "an alias of a class",
        (MODEL, "class FinchCore(FinchPreTrainedModel):\n"),
        ("class FinchForCausalLM(", "FinchModel = FinchCore\n\n\nclass FinchForCausalLM("),
    ),
    right(
        "a class in a branch",
        (MODEL, "class FinchCore(FinchPreTrainedModel):\n"),
        (
            "class FinchForCausalLM(",
            "if torch.__version__:\n\n    class FinchModel(FinchCore):\n        pass\n\n\nclass FinchForCausalLM(",
        ),
    ),
    right("as it is"),
)
MORE = (
    wrong(
        "a cache that has to be there",
        "BE418",
        (
            "import create_causal_mask\n",
            "import create_causal_mask\nfrom transformers.cache_utils import DynamicCache\n",
        ),
        (
            MADE,
            "        if past_key_values is None and use_cache is not False:\n            past_key_values = DynamicCache()\n"
            "        seen = past_key_values.get_seq_length()  # FAULT\n        hidden_states = inputs_embeds + 0 * seen\n",
        ),
    ),
    wrong(
        "a table without its keys",
        "BE418 BE425",
        (
            "        return BaseModelOutputWithPast(last_hidden_state=hidden_states, past_key_values=past_key_values)\n",
            "        return (hidden_states.mean(dim=1), hidden_states)\n",
        ),
        (
            "        logits = self.lm_head(states.last_hidden_state[:, keep, :])\n",
            "        logits = self.lm_head(states[1][:, keep, :])\n",
        ),
        ("past_key_values=states.past_key_values)\n", "past_key_values=None)\n"),
    ),
    wrong(
        "one keyword alone",
        "BE401",
        (
            IN_BLOCK,
            IN_BLOCK.replace("**kwargs", "attention_instances=kwargs.get('attention_instances')").replace(
                "\n", "  # FAULT\n"
            ),
        ),
    ),
    wrong(
        "keywords filtered by a signature",
        "BE401",
        (IMPORT, IMPORT + "import inspect\n"),
        (
            NORMED,
            NORMED
            + "        names = inspect.signature(self.attention.forward).parameters\n        known = {name: value for name, value in kwargs.items() if name in names}  # FAULT\n",
        ),
        (IN_BLOCK, IN_BLOCK.replace("**kwargs", "**known")),
    ),
    right(
        "keywords asked of a signature",
        (IMPORT, IMPORT + "import inspect\n"),
        (
            NORMED,
            NORMED
            + "        names = inspect.signature(self.attention.forward).parameters\n        known = kwargs if 'kwargs' in names else {}\n",
        ),
        (IN_BLOCK, IN_BLOCK.replace("**kwargs", "**known")),
    ),
    right("forward called itself", (IN_BLOCK, IN_BLOCK.replace("self.attention(", "self.attention.forward("))),
    right(
        "keywords in a table of the module",
        ("class Rms(nn.Module):\n", "HELD = {}\n\n\nclass Rms(nn.Module):\n"),
        (
            LOOP,
            LOOP.replace("        for block", "        HELD.update(kwargs)\n        for block").replace(
                ", **kwargs", ""
            ),
        ),
        (CALL, CALL.replace("**kwargs", "**HELD")),
    ),
    wrong(
        "a decorator function",
        "BE401",
        (
            "class Block(nn.Module):\n",
            "def timed(function):\n    @functools.wraps(function)\n    def inner(self, states, angles=None, attention_mask=None, past_key_values=None, **kwargs):\n        return function(self, states, angles, attention_mask, past_key_values)  # FAULT\n\n    return inner\n\n\nclass Block(nn.Module):\n",
        ),
        (BLOCK_FORWARD, "    @timed\n" + BLOCK_FORWARD),
    ),
    wrong(
        "layers by an iterator",
        "BE401",
        (
            LOOP,
            "        run = iter(self.blocks)\n        while (block := next(run, None)) is not None:\n            hidden_states = block(hidden_states, angles, attention_mask=mask)  # FAULT\n",
        ),
    ),
    right(
        "checkpointing",
        (
            LOOP,
            "        for block in self.blocks:\n            hidden_states = torch.utils.checkpoint.checkpoint(block, hidden_states, angles, mask, use_reentrant=False, **kwargs)\n",
        ),
        ("import torch\n", "import torch\nimport torch.utils.checkpoint\n"),
    ),
    right(
        "a runner of layers",
        (BLOCKS, BLOCKS + "        self.runner = Runner(self.blocks)\n"),
        (
            MODEL,
            "class Runner:\n    def __init__(self, blocks):\n        self.blocks = blocks\n\n    def __call__(self, states, *args, **options):\n        for block in self.blocks:\n            states = block(states, *args, **options)\n        return states\n\n\n"
            + MODEL,
        ),
        (LOOP, "        hidden_states = self.runner(hidden_states, angles, mask, **kwargs)\n"),
    ),
    wrong(
        "a runner that drops them",
        "BE401",
        (BLOCKS, BLOCKS + "        self.runner = Runner(self.blocks)\n"),
        (
            MODEL,
            "class Runner:\n    def __init__(self, blocks):\n        self.blocks = blocks\n\n    def __call__(self, states, *args, **options):\n        for block in self.blocks:\n            states = block(states, *args)  # FAULT\n        return states\n\n\n"
            + MODEL,
        ),
        (LOOP, "        hidden_states = self.runner(hidden_states, angles, mask, **kwargs)\n"),
    ),
    wrong("keywords of nothing", "BE401", (NORMED, NORMED + "        kwargs = dict.fromkeys(kwargs)  # FAULT\n")),
    wrong(
        "one layer alone drops them",
        "BE401",
        (NORMED, NORMED + "        if self.attention.layer_idx == 2:\n            kwargs = {}  # FAULT\n"),
    ),
    wrong(
        "keywords overwritten",
        "BE401",
        (NORMED, NORMED + "        for name in kwargs:\n            kwargs[name] = None  # FAULT\n"),
    ),
    right(
        "a mask by where",
        (
            "        scores = scores + attention_mask\n",
            "        scores = torch.where(attention_mask < -1, -1e9, scores)\n",
        ),
    ),
    right(
        "dropout in training",
        (SOFTMAX, "    weights = functional.dropout(scores.softmax(dim=-1), dropout, training=module.training)\n"),
    ),
    right(
        "a fused attention inside",
        (
            ATTENDED,
            "    attended = functional.scaled_dot_product_attention(query, key, value, attention_mask, scale=scaling)\n",
        ),
    ),
    wrong("values changed", "BE403", (SCORES, "    value = value * 1.5\n" + SCORES)),
    wrong("keys changed", "BE403 BE404", (SCORES, "    key = key + 0.5 * key.flip(-1)\n" + SCORES)),
    wrong("a temperature", "BE408", (SCORES, SCORES + "    scores = scores / 1.7  # FAULT\n")),
    wrong("weights cut off", "BE403 BE405", (SOFTMAX, SOFTMAX + "    weights = weights * (weights > 0.1)  # FAULT\n")),
    wrong(
        "a bias by logarithm",
        "BE404",
        (SCORES, SCORES + "    scores = scores + torch.arange(1, key.shape[2] + 1).log() * 0.5  # FAULT\n"),
    ),
    wrong(
        "a bias by content",
        "BE404",
        (SCORES, SCORES + "    scores = scores + key.norm(dim=-1)[:, :, None, :]  # FAULT\n"),
    ),
    wrong(
        "a softmax with one more",
        "BE407 BE403",
        (
            SOFTMAX,
            "    powers = scores.exp()\n    weights = powers / (1 + powers.sum(dim=-1, keepdim=True))  # FAULT\n",
        ),
    ),
    wrong(
        "a bias in the product",
        "BE404",
        (
            SCORES,
            "    steps = torch.arange(key.shape[2], dtype=query.dtype)\n    bias = (-0.3 * (steps[None, :] - steps[:, None]).abs()).expand(query.shape[1], -1, -1)\n    scores = torch.baddbmm(bias, query[0], key[0].transpose(-1, -2), alpha=scaling)[None]  # FAULT\n",
        ),
    ),
    wrong(
        "a softplus for the softmax",
        "BE403",
        (
            SOFTMAX,
            "    weights = functional.softplus(scores) * (scores > -100)  # FAULT\n    weights = weights / weights.sum(dim=-1, keepdim=True)\n",
        ),
    ),
    wrong(
        "weights smoothed",
        "BE403",
        (SOFTMAX, SOFTMAX + "    weights = 0.9 * weights + 0.1 / weights.shape[-1]  # FAULT\n"),
    ),
    wrong(
        "a lookup in a helper",
        "BE408",
        (LOOKUP, "\n"),
        (CALL, CALL.replace("attend(self", "dispatch(self")),
        (
            "class FinchAttention(nn.Module):\n",
            "def dispatch(module, *args, **kwargs):\n    attend = ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, own_attention)\n    return attend(module, *args, **kwargs)  # FAULT\n\n\nclass FinchAttention(nn.Module):\n",
        ),
    ),
    right("an annotated lookup", (LOOKUP, LOOKUP.replace("attend =", "attend: object ="))),
    wrong(
        "a lookup by an alias",
        "BE408",
        ("import ALL_ATTENTION_FUNCTIONS\n", "import ALL_ATTENTION_FUNCTIONS as TABLE\n"),
        (LOOKUP, LOOKUP.replace("ALL_ATTENTION_FUNCTIONS", "TABLE")),
        (CALL, CALL.replace("kwargs)\n", "kwargs)  # FAULT\n")),
    ),
    wrong(
        "sdpa wired into one layer",
        "BE402",
        (LOOKUP, LOOKUP + "        if self.layer_idx == 1:\n            attend = ALL_ATTENTION_FUNCTIONS['sdpa']\n"),
    ),
    wrong("its own function wired in", "BE402", (LOOKUP, "attend = own_attention\n")),
    wrong(
        "scaling in a copy of the keywords",
        "BE408",
        ("        self.scaling = config.head_dim**-0.5\n", "        self.scaling = 0.1\n"),
        (
            CALL,
            CALL.replace("scaling=self.scaling, **kwargs", "**dict(kwargs, scaling=self.scaling)").replace(
                "\n", "  # FAULT\n"
            ),
        ),
    ),
    right(
        "two masks on one line",
        (
            MASK,
            "        masks = {'full': create_causal_mask(config=self.config, inputs_embeds=inputs_embeds, attention_mask=attention_mask, past_key_values=past_key_values, position_ids=position_ids), 'other': create_causal_mask(config=self.config, inputs_embeds=inputs_embeds, attention_mask=attention_mask, past_key_values=past_key_values, position_ids=position_ids)}\n        mask = masks['full']\n",
        ),
    ),
    right("no mask at all", (MASK, "        mask = None\n")),
    wrong(
        "a bidirectional mask",
        "BE405 BE407",
        ("        self.is_causal = True\n", "        self.is_causal = False\n"),
        ("import create_causal_mask\n", "import create_bidirectional_mask as create_causal_mask\n"),
        (
            MASK,
            MASK.replace("            past_key_values=past_key_values,\n            position_ids=position_ids,\n", ""),
        ),
    ),
    wrong(
        "a mask that has to be there",
        "BE405",
        (MASK, MASK + "        mask = mask[:, :, -inputs_embeds.shape[1] :]  # FAULT\n"),
        ("    _supports_sdpa = True\n", "    _supports_sdpa = False\n"),
    ),
    wrong(
        "learned positions counted",
        "BE418",
        (
            "        self.rotation = Rotation(config)\n",
            "        self.rotation = Rotation(config)\n        self.places = nn.Embedding(128, config.hidden_size)\n",
        ),
        (MADE, "        hidden_states = inputs_embeds + self.places.weight[: inputs_embeds.shape[1]]\n"),
    ),
    right("no positions", ("        query, key = rotated(query, *angles), rotated(key, *angles)\n", "")),
    right(
        "one dtype written in",
        (
            "        return self.narrow(functional.silu(self.wide(states)))\n",
            "        return self.narrow(functional.silu(self.wide(states)).to(torch.float32))\n",
        ),
    ),
    right(
        "queries normed",
        (
            "        query, key = rotated(query, *angles), rotated(key, *angles)\n",
            "        query, key = functional.normalize(query, dim=-1), functional.normalize(key, dim=-1)\n        query, key = rotated(query, *angles), rotated(key, *angles)\n",
        ),
    ),
    wrong(
        "a convolution of the queries",
        "BE402",
        (
            "        self.out = nn.Linear(width, config.hidden_size, bias=False)\n",
            "        self.out = nn.Linear(width, config.hidden_size, bias=False)\n        self.local = nn.Conv1d(width, width, 2, groups=width)\n",
        ),
        (
            "        query = self.query(hidden_states).view(heads).transpose(1, 2)\n",
            "        query = self.local(functional.pad(self.query(hidden_states).transpose(1, 2), (1, 0))).transpose(1, 2)  # FAULT\n        query = query.reshape(heads).transpose(1, 2)\n",
        ),
    ),
    wrong(
        "a Fourier transform",
        "BE402",
        (NORMED, NORMED + "        normed = torch.fft.fft(normed, dim=1).real  # FAULT\n"),
    ),
    wrong(
        "a deviation over all tokens", "BE402", (NORMED, NORMED + "        normed = normed / normed.std()  # FAULT\n")
    ),
    wrong(
        "a roll after the layers",
        "BE402",
        (
            "        hidden_states = self.last_norm(hidden_states)\n",
            "        hidden_states = self.last_norm(hidden_states) + torch.roll(hidden_states, 1, dims=1)  # FAULT\n",
        ),
    ),
)
ROTATED = "        query, key = rotated(query, *angles), rotated(key, *angles)\n"
INLINE = "            wide = key.repeat_interleave(3, dim=1)\n            weights = (query @ wide.transpose(-1, -2) * self.scaling).softmax(dim=-1)  # FAULT\n            output = (weights @ value.repeat_interleave(3, dim=1)).transpose(1, 2)\n        else:\n            "
AUTO_MAP = {
    "AutoConfig": "configuration_finch.FinchConfig",
    "AutoModel": "modeling_finch.FinchModel",
    "AutoModelForCausalLM": "modeling_finch.FinchForCausalLM",
}
STEPS = (
    wrong("another path for one token", "BE402", (CALL, "if query.shape[2] == 1:\n" + INLINE + CALL)),
    wrong(
        "a cache of its own",
        "BE402",
        (
            ROTATED,
            ROTATED
            + "        if key.shape[2] == 1 and hasattr(self, 'held'):\n            key, value = torch.cat([self.held[0], key], 2), torch.cat([self.held[1], value], 2)  # FAULT\n        self.held = key, value\n",
        ),
    ),
    wrong(
        "positions from the last one back",
        "BE418",
        (MADE, MADE + "        position_ids = position_ids.amax() - position_ids  # FAULT\n"),
    ),
    wrong(
        "positions on from the first",
        "BE418",
        (
            MADE,
            MADE
            + "        position_ids = position_ids[:, :1] + torch.arange(position_ids.shape[1], device=position_ids.device)  # FAULT\n",
        ),
    ),
    wrong(
        "a wide window of a copy of the config",
        "BE407",
        (
            MASK,
            "        import copy\n        narrow = copy.copy(self.config)\n        narrow.sliding_window = 1000\n"
            + MASK.replace("create_causal_mask", "create_sliding_window_causal_mask").replace(
                "config=self.config", "config=narrow"
            ),
        ),
        (IMPORT, IMPORT + "from transformers.masking_utils import create_sliding_window_causal_mask\n"),
    ),
    wrong(
        "a cache that is always there",
        "BE418",
        (
            "        if past_key_values is not None:\n            key, value = past_key_values.update(key, value, self.layer_idx)\n",
            "        key, value = past_key_values.update(key, value, self.layer_idx)  # FAULT\n",
        ),
    ),
    wrong(
        "the first token added",
        "BE402",
        (MADE, "        hidden_states = inputs_embeds + 0.3 * inputs_embeds[:, :1]  # FAULT\n"),
    ),
    wrong(
        "scores between wide bounds", "BE407", (SCORES, SCORES + "    scores = scores.clamp(-20.0, 20.0)  # FAULT\n")
    ),
    wrong(
        "a bias on long rows",
        "BE404",
        (
            SCORES,
            SCORES
            + "    if key.shape[2] > 40:\n        scores = scores + 0.01 * torch.arange(key.shape[2])  # FAULT\n",
        ),
    ),
    wrong(
        "another softmax subtracted",
        "BE403",
        (ATTENDED, "    attended = (weights - 0.3 * (0.5 * scores).softmax(dim=-1)) @ value  # FAULT\n"),
    ),
    wrong(
        "values of the token before",
        "BE403",
        (SCORES, SCORES + "    value = torch.cat([value[:, :, :1], value[:, :, :-1]], 2)  # FAULT\n"),
    ),
    wrong(
        "a mask written into",
        "BE405",
        (MASK, MASK + "        if mask is not None:\n            mask[..., :2] = 0  # FAULT\n"),
        ("    _supports_sdpa = True\n", "    _supports_sdpa = False\n"),
    ),
    wrong(
        "looked up in the constructor",
        "BE408",
        (
            "        self.is_causal = True\n",
            "        self.is_causal = True\n        self.attend = ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, own_attention)\n",
        ),
        (LOOKUP, "\n"),
        (CALL, CALL.replace("attend(self", "self.attend(self").replace("\n", "  # FAULT\n")),
    ),
    wrong(
        "layers in a thread",
        "BE401",
        (IMPORT, IMPORT + "from concurrent.futures import ThreadPoolExecutor\n"),
        _loop(
            "        with ThreadPoolExecutor(1) as pool:\n            for block in self.blocks:\n                hidden_states = pool.submit(block, hidden_states, angles, mask).result()\n"
        ),
    ),
    wrong(
        "keywords to the first of two blocks",
        "BE401",
        _loop("        hidden_states = self.pair(hidden_states, angles, mask, **kwargs)\n"),
        (
            "        self.post_init()\n\n    def get_input_embeddings",
            "        self.post_init()\n\n    def pair(self, states, angles, mask, **kwargs):\n        states = self.blocks[0](states, angles, attention_mask=mask, **kwargs)\n        for block in self.blocks[1:]:\n            states = block(states, angles, attention_mask=mask)  # FAULT\n        return states\n\n    def get_input_embeddings",
        ),
    ),
    wrong(
        "AutoModel names an abstract class",
        "BE422",
        auto_map=AUTO_MAP | {"AutoModel": "modeling_finch.FinchPreTrainedModel"},
    ),
    wrong(
        "a plan on the base model", "BE423", (MODEL, MODEL + "    base_model_tp_plan = {'blocks.*.out': 'rowwise'}\n\n")
    ),
)
VARIANTS = (*KEYWORDS, *OWN_FUNCTION, *DISPATCH, *MIXING, *MASKS, *CLASSES, *MORE, *STEPS)
