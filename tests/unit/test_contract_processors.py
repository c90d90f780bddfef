"""Processors by use: one right one, and faults of its counts, its types and its calls, each an edit of its source."""

import json
import shutil
from pathlib import Path

import pytest

from shardproof.planner.ir.findings import Finding, Severity
from shardproof.planner.loading.load import load
from shardproof.verify.clients.contract.processor import ProcessorCheck, check_processors

ZOO = Path(__file__).parents[1] / "zoo"
COUNT = "        return rows * (columns + 1)\n"
TYPES = "[[int(token in self.image_token_ids) for token in ids]]"
FAULTS = {
    "one too many": ("BE442", COUNT, COUNT.replace("\n", " + 1\n")),
    "rounded down": (
        "BE442",
        "[self.count(*grid(height, width))",
        "[self.count(height // PATCH or 1, width // PATCH or 1)",
    ),
    "height and width swapped": ("BE442", "[self.count(*grid(height, width))", "[self.count(*grid(width, height))"),
    "right for squares alone": ("BE442", COUNT, "        return max(rows, columns) * (max(rows, columns) + 1)\n"),
    "wrong for small images": ("BE442", COUNT, COUNT.replace("rows *", "max(rows, 2) *")),
    "the first of several images": (
        "BE442",
        "for height, width in image_sizes]",
        "for height, width in image_sizes[:1] * len(image_sizes)]",
    ),
    "one count for several images": (
        "BE441",
        "        return MultiModalData(num_image_tokens=counts",
        "        counts = [sum(counts)]\n        return MultiModalData(num_image_tokens=counts",
    ),
    "a plain dict of counts": (
        "BE441",
        "        return MultiModalData(num_image_tokens=counts",
        "        return dict(num_image_tokens=counts",
    ),
    "types left out": ("BE443", "        if return_mm_token_type_ids:\n", "        if kwargs.get('types'):\n"),
    "all tokens typed": ("BE443", TYPES, "[[1 for token in ids]]"),
    "no token typed": ("BE442 BE443", TYPES, "[[0 for token in ids]]"),
    "row ends typed as text": ("BE442 BE443", TYPES, "[[int(token == self.image_token_ids[0]) for token in ids]]"),
    "types of another length": ("BE443", TYPES, "[[int(token in self.image_token_ids) for token in ids][1:]]"),
    "a type of its own": ("BE443", TYPES, "[[4 * int(token in self.image_token_ids) for token in ids]]"),
    "no image_token_ids": ("BE441 BE442", "        self.image_token_ids = [", "        self.picture_ids = ["),
    "the constructor raises": (
        "BE441",
        '        self.image_token, self.end_token = "<image>", "<end>"\n',
        '        self.image_token, self.end_token = tokenizer.image_token, "<end>"\n',
    ),
    "the constructor needs more": (
        "BE441",
        "image_processor=None, tokenizer=None, **kwargs):",
        "image_processor=None, tokenizer=None, *, merge, **kwargs):",
    ),
    "text alone raises": (
        "BE441",
        'if images is not None else {"grids": []}',
        'if len(images) else {"grids": []}',
    ),
    "the call raises for wide images": (
        "BE441",
        "        grids = iter(made",
        "        assert all(columns < 20 for _, columns in made['grids'])\n        grids = iter(made",
    ),
    "the count raises": (
        "BE441",
        "        if image_sizes is None:\n",
        "        image_sizes = image_sizes.items()\n        if image_sizes is None:\n",
    ),
    "text not kept": ("BE443 BE442", "else [word]", "else [self.image_token]"),
}


def checked(folder: Path, old: str = "", new: str = "") -> ProcessorCheck:
    """The findings of the processor after one edit."""
    tokenizers = pytest.importorskip("tokenizers")
    place = folder / "finch"
    shutil.copytree(ZOO / "finch", place)
    shutil.copytree(ZOO / "finch_images", place, dirs_exist_ok=True)
    source = (place / "processing_finch.py").read_text()
    assert source.count(old) == 1 or not old
    (place / "processing_finch.py").write_text(source.replace(old, new) if old else source)
    words = "<unk> <pad> <image> <end> look at and say one two three the same twice what differs ? words alone".split()
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: at for at, word in enumerate(words)}, "<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.save(str(place / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "pad_token": "<pad>"}
    (place / "tokenizer_config.json").write_text(json.dumps(settings))
    return check_processors(load(str(place), trust_remote_code=True))


def codes(findings: tuple[Finding, ...]) -> set[str]:
    return {finding.code for finding in findings}


def test_a_right_processor_is_not_accused(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    made = checked(tmp_path)
    assert not made.found
    assert [finding.severity for finding in made.of_offsets] == [Severity.WARNING]  # it overrides __call__


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_a_processor_is_found(name: str, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    wanted, old, new = FAULTS[name]
    found = checked(tmp_path, old, new).found
    assert codes(found) & set(wanted.split()), found
    assert len(found) <= 2


def test_without_pillow_nothing_is_claimed(tmp_path: Path) -> None:
    try:
        import PIL  # type: ignore[import-not-found,unused-ignore]  # noqa: F401  # Pillow is optional
    except ImportError:
        found = checked(tmp_path).found
        assert [(finding.code, finding.severity) for finding in found] == [("BE424", Severity.UNDECIDED)]
    else:
        pytest.skip("Pillow is installed")
