"""The published configs of examples/configs: they load, have the published size, and their plans are proved from them alone."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from shardproof.planner.inference.suggest import suggest
from shardproof.planner.ir.findings import Verdict
from shardproof.planner.loading.build import build
from shardproof.planner.loading.load import load
from shardproof.verify.proof.prove import prove

CONFIGS = Path(__file__).resolve().parents[2] / "examples" / "configs"

PUBLISHED = {
    "llama-3.1-405b": (405_853_388_800, 405.9e9),
    "deepseek-v3-671b": (671_026_404_352, 671e9),
    "qwen3-235b-a22b": (235_093_634_560, 235e9),
    "mixtral-8x22b": (140_620_634_112, 141e9),
    "gemma-3-27b": (27_009_346_304, 27e9),
    "gpt-oss-120b": (116_829_156_672, 116.83e9),
    "command-r-plus": (103_810_674_688, 104e9),
    "falcon-180b": (179_522_565_120, 180e9),
    "opt-175b": (174_604_468_224, 175e9),
}
"""Parameters as built, and as published (rounded)."""

QUICK = {"llama-3.1-405b": (8, 0.99), "falcon-180b": (8, 0.6)}
"""Proved here, with the degree and the least share of bytes that is sharded; all in `python -m benchmarks configs`. Falcon adds
in place to the output of its feed-forward layer, which autograd refuses on a rank, so that stays whole.
"""


def counted(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def of(name: str) -> nn.Module:
    return build(load(str(CONFIGS / f"{name}.json")))


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters(name: str) -> None:
    built, published = PUBLISHED[name]
    assert counted(of(name)) == built
    assert abs(built - published) / published < 0.004


def test_parameters_as_glm_counts_them() -> None:
    """Published with one more layer for multi-token prediction (its own norms and a projection of two inputs), and without
    embedding and head.
    """
    model = of("glm-4.5")
    layers = model.get_submodule("model.layers")
    assert isinstance(layers, nn.ModuleList)
    width = model.get_submodule("model.norm").get_parameter("weight").numel()
    outside = model.get_submodule("model.embed_tokens").get_parameter("weight").numel()
    predicting = counted(layers[-1]) + 2 * width * width + 3 * width
    assert counted(model) == 352_797_814_784
    assert round((counted(model) - 2 * outside + predicting) / 1e9) == 355


def files() -> Iterator[str]:
    yield from sorted(path.stem for path in CONFIGS.glob("*.json"))


def test_every_config_is_counted_and_has_its_source() -> None:
    assert sorted(files()) == sorted([*PUBLISHED, "glm-4.5"])
    sources = (CONFIGS / "README.md").read_text()
    assert all(f"| {name} |" in sources for name in files())


@pytest.mark.parametrize("name", QUICK)
def test_is_proved_from_its_config(name: str) -> None:
    loaded = load(str(CONFIGS / f"{name}.json"))
    suggestion = suggest(loaded)
    degree, share = QUICK[name]
    assert degree in suggestion.degrees
    assert suggestion.sharded_fraction > share
    assert prove(loaded, suggestion.plan, tp=degree).verdict is Verdict.PROVED
