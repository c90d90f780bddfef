"""The inputs: files that somebody else wrote, and arguments that somebody typed. Made from a seed, without a list of answers.

Every piece of code that an input holds touches the file of the environment variable `CANARY`: nobody has said that it is trusted.
"""

import json
import os
import pickle
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CANARY = "SHARDPROOF_CANARY"
"""The environment variable with the file that untrusted code makes when it runs."""
_TOUCH = f"import os; open(os.environ[{CANARY!r}], 'w').close()"
_FIELDS = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 128,
}
_PLAN = {"layers.*.mlp.up_proj": "colwise", "layers.*.mlp.down_proj": "rowwise"}
_READERS = (
    ("suggest",),
    ("verify", "--level", "proof"),
    ("check",),
    ("layout", "--devices", "2", "--memory", "80GiB"),
)
"""The commands that read a model."""


def _no_files(_: Path) -> None:
    """Of an input that is all on the command line."""


@dataclass(frozen=True, slots=True)
class Input:
    """One call of the command.

    `right` are the exit codes that the input may have; `make` writes the files that it needs into the folder that the command
    runs in.
    """

    kind: str
    arguments: tuple[str, ...]
    make: Callable[[Path], None] = _no_files
    right: frozenset[int] = frozenset({2})
    environment: dict[str, str] = field(default_factory=dict)


class _Bomb:
    """Unpickled, it runs code."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, (_TOUCH,)


WORDS = (
    "'; " + _TOUCH + "; '",
    '"; ' + _TOUCH + '; "',
    "'''\n" + _TOUCH + "\n'''",
    "__import__('os').system('touch $" + CANARY + "')",
    "$(touch $" + CANARY + ")",
    "`touch $" + CANARY + "`",
    "a; touch $" + CANARY,
    "{{ 7 * 7 }}",
    "%s%n%d",
    "<script>alert(1)</script>",
    "\x1b[2J\x1b]0;owned\x07",
    "a\u202eb\u2066c",
    "a\nb: c",
    "\ud800",
    "a" * 5000,
    "../" * 40 + "etc/passwd",
    "-rf",
    "--help",
    "",
    " ",
    "\u0000x",
    "na\u00efve\u2013\uff57ide",
)
"""Texts that mean something to a shell, a template, a terminal, a page, a path or Python."""
VALUES: tuple[object, ...] = (
    -1, 0, -(10**6), 10**30, 0.5, float("nan"), float("inf"), True, None, "", "4", [], [1, 2], {}, {"a": 1}, [[]], [None]
)  # fmt: skip
"""What a field of a config may hold and should not."""
_ANY = frozenset({0, 1, 2, 3})


def inputs(seed: int, count: int) -> Iterator[Input]:
    """At least `count` inputs, every kind in turn."""
    chance = random.Random(seed)
    makers = (_reference, _config, _config_text, _names, _plan, _plan_text, _code, _weights, _job, _option, _module)
    made = 0
    while made < count:
        for maker in makers:
            yield maker(chance)
            made += 1


def _reader(chance: random.Random) -> tuple[str, ...]:
    return chance.choice(_READERS)


def _argument(text: str) -> str:
    """What can stand on a command line at all: no NUL, no lone surrogate."""
    return text.replace("\0", "").encode(errors="ignore").decode()


def _written(name: str, data: bytes) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    return make


def _model(**fields: object) -> Callable[[Path], None]:
    return _written("model/config.json", json.dumps(_FIELDS | fields).encode())


def _reference(chance: random.Random) -> Input:
    """A model that is none."""
    kinds = ("{0}", "{0}.py:Model", "model.py:{0}", "{0}:{0}", "./{0}/", "/dev/{0}", "~{0}", "os:{0}", "builtins:{0}")
    word = _argument(chance.choice(WORDS)) or "x"
    text = chance.choice(kinds).format(word)
    name, *options = _reader(chance)
    return Input("reference", (name, *options, "--", text))


def _config(chance: random.Random) -> Input:
    """One field of a right config with another value: some are models all the same."""
    name = chance.choice(
        [*_FIELDS, "rope_parameters", "quantization_config", "torch_dtype", "tie_word_embeddings", "layer_types"]
    )
    return Input("config field", (*_reader(chance), "model"), _model(**{name: chance.choice(VALUES)}), _ANY)


def _config_text(chance: random.Random) -> Input:
    """A config.json that is cut, doubled, nested or no JSON."""
    right = json.dumps(_FIELDS).encode()
    broken = (
        right[: chance.randrange(len(right))],
        b"",
        b"\0" * 64,
        b"\xff\xfe" + right,
        right[:-1] + b', "hidden_size": 32}',
        b"[" * 100_000 + b"]" * 100_000,
        b'{"model_type": ' + b"1" * 6000 + b"}",
        b"[1, 2]",
        b'"text"',
        b"null",
        right.replace(b'"llama"', b'"' + b"l" * 10_000 + b'"'),
    )
    return Input("config text", (*_reader(chance), "model"), _written("model/config.json", chance.choice(broken)))


def _names(chance: random.Random) -> Input:
    """Keys of a plan in a config that mean something elsewhere: the entries name no module, or cannot be read."""
    plan = {chance.choice(WORDS): "colwise", **_PLAN}
    form = chance.choice(("text", "json", "html", "sarif"))
    name, *options = chance.choice(_READERS[:2])
    asked = (name, *options, "model", "--format", form)
    return Input("names in a config", asked, _model(base_model_tp_plan=plan), frozenset({0, 1, 2}))


def _plan(chance: random.Random) -> Input:
    """A plan file with names and styles that are none."""
    plan: object = chance.choice(
        (
            {chance.choice(WORDS): "colwise"},
            {"layers.*.mlp.up_proj": chance.choice(WORDS)},
            {"layers.*.mlp.up_proj": chance.choice(VALUES)},
            {"base_model_tp_plan": chance.choice(VALUES)},
            {"base_model_pp_plan": {"layers": chance.choice(VALUES)}},
            {"base_model_pp_plan": {chance.choice(WORDS): [["x"], ["x"]]}},
            chance.choice(VALUES),
        )
    )
    asked = ("verify", "llama", "--set", "num_hidden_layers=1", "--level", "proof", "--plan", "plan.json")
    return Input("plan", asked, _written("plan.json", json.dumps(plan).encode()), frozenset({1, 2}))


def _plan_text(chance: random.Random) -> Input:
    """A plan file that is no JSON, or is another kind of file."""
    right = json.dumps({"base_model_tp_plan": _PLAN}).encode()
    broken = (
        right[: chance.randrange(len(right))],
        b"\0" * 64,
        b"[" * 100_000,
        _TOUCH.encode(),
        pickle.dumps(_Bomb()),
        b'{"a": "colwise", "a": "rowwise"}',
        b'{"base_model_tp_plan": {"\\ud800": "colwise"}}',
        right.replace(b"colwise", b"col\\u0000wise"),
    )
    asked = ("verify", "llama", "--set", "num_hidden_layers=1", "--level", "proof", "--plan", "plan.json")
    return Input("plan text", asked, _written("plan.json", chance.choice(broken)), frozenset({1, 2}))


def _code(chance: random.Random) -> Input:
    """A folder whose config names code of its own: it may run only where the caller says so."""
    places = (
        "modeling_mine.Mine",
        "mine.modeling.Mine",
        "other/repository--modeling_mine.Mine",
        "../modeling_mine.Mine",
    )
    place = chance.choice(places)
    maps: object = chance.choice(
        (
            {"AutoConfig": place, "AutoModelForCausalLM": place},
            {"AutoModelForCausalLM": place},
            {"AutoModel": [place, None]},
            {"AutoConfig": chance.choice(VALUES)},
            chance.choice(VALUES),
        )
    )
    kind = chance.choice(("mine", "llama"))

    def make(folder: Path) -> None:
        _model(model_type=kind, auto_map=maps)(folder)
        for path in ("model/modeling_mine.py", "model/mine/modeling.py", "modeling_mine.py", "model/__init__.py"):
            _written(path, _TOUCH.encode())(folder)

    return Input("code of a checkpoint", (*_reader(chance), "model"), make, _ANY if kind == "llama" else frozenset({2}))


def _weights(chance: random.Random) -> Input:
    """Weights that run code when they are unpickled, or are cut."""
    header = struct.pack("<Q", 2**40) + b"{}"
    name, data = chance.choice(
        (
            ("model/pytorch_model.bin", pickle.dumps(_Bomb())),
            ("model/model.safetensors", header),
            ("model/model.safetensors", b""),
            ("model/model.safetensors", struct.pack("<Q", 8) + b"not json"),
            ("model/model.safetensors.index.json", b'{"weight_map": {"a": "../../../../etc/passwd"}}'),
        )
    )

    def make(folder: Path) -> None:
        _model()(folder)
        _written(name, data)(folder)

    return Input("weights", ("verify", "model", "--weights", "--tp", "2", "--level", "run"), make, frozenset({1, 2, 3}))


def _job(chance: random.Random) -> Input:
    """Variables of a job that is none."""
    values = ("abc", "", "-1", "0", "1", "2", "1e9", "9" * 30, " 1", "0x1", "\u0661")
    names = (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "SLURM_PROCID",
        "SLURM_STEP_NUM_TASKS",
        "MASTER_PORT",
    )
    given = {name: chance.choice(values) for name in chance.sample(names, chance.randint(1, 4))}
    asked = ("verify", "llama", "--set", "num_hidden_layers=1", "--level", "proof", "--timeout", "5")
    return Input("job", asked, environment=given, right=_ANY)


def _option(chance: random.Random) -> Input:
    """Options with values that nobody means."""
    options = (
        "--tp",
        "--pp",
        "--ep",
        "--set",
        "--format",
        "--timeout",
        "--plan",
        "--output",
        "--adapter",
        "--level",
        "--nodes",
    )
    values = (
        "-1",
        "0",
        "1e9",
        "9" * 30,
        "abc",
        "",
        "nan",
        "/dev/full",
        "/proc/1/mem",
        "x=y",
        "hidden_size=-1",
        "=",
        "a" * 3000,
    )
    asked = ("verify", "llama", "--level", "proof", chance.choice(options), chance.choice(values))
    return Input("option", asked, right=frozenset({0, 1, 2, 3}))


def _module(chance: random.Random) -> Input:
    """A file of the caller's own, which is theirs to run, that is no model."""
    sources = (
        "raise SystemExit(0)",
        "import sys; sys.exit('gone')",
        "raise KeyError('x')",
        "def Model(:",
        "Model = 5",
        "class Model: pass",
        "import torch\nclass Model(torch.nn.Module):\n    def __init__(self): raise ValueError('no')",
        "import torch\nclass Model(torch.nn.Module):\n    def forward(self): return None",
        "import torch\nclass Model(torch.nn.Module):\n    def forward(self, x): return x[0]['a']",
        "while True:\n    raise RecursionError",
        "\0",
        "import no_such_package",
    )
    text = chance.choice(sources)
    asked = (*_reader(chance), "mine.py:Model", *(("--input", "x: float[2, 4]") if chance.random() < 0.5 else ()))
    return Input("module", asked, _written("mine.py", text.encode()), frozenset({1, 2, 3}))


def canary(folder: Path) -> dict[str, str]:
    """The variable that tells untrusted code what to touch."""
    return {CANARY: os.fspath(folder / "canary")}
