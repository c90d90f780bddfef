"""Shell completion: what a shell is told at a press of the key, and that it is told at once."""

import subprocess
import sys

import pytest


def completed(words: str) -> list[str]:
    """As bash asks: the words so far, of which the last is incomplete. Torch and Transformers are not loaded meanwhile."""
    code = (
        "import sys; from shardproof.launch.cli import app\n"
        "try:\n    app(prog_name='plan')\n"
        "finally:\n    assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    asked = {"_PLAN_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=asked, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("plan su", ["suggest"]),
        ("plan suggest smoll", ["smollm3"]),
        ("plan verify llama --for vl", ["vllm"]),
        ("plan verify llama --for vllm@0.2", ["vllm@0.24", "vllm@0.25"]),
        ("plan check llama --backend vllm,sg", ["vllm,sglang"]),
        ("plan explain TP20", [f"TP20{digit}" for digit in range(1, 10)]),
        ("plan verify llama --format s", ["sarif"]),
        ("plan verify /dev/nul", ["/dev/null"]),
        ("plan verify [*", []),
        ("plan verify ~nobody-is-called-so/", []),
    ],
)
def test_what_a_shell_is_told(words: str, found: list[str]) -> None:
    assert completed(words) == found
