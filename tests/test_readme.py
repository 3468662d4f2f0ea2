"""The README's Python example, run as it stands against a real server on the bundled model."""

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_runs(make_server) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    server = make_server(model=())
    source = example.replace("127.0.0.1:50051", server.address)
    assert source != example
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(source, "README.md", "exec"), {})
    scored, candidates, generated = printed.getvalue().split("\n", 2)
    perplexity = float(re.findall(r"perplexity ([\d.]+)", scored)[0])
    assert 1 < perplexity < 1000
    assert len(re.findall(r"-\d+\.\d", candidates)) == 3
    assert len(generated) > 10


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:docs|examples)/[\w./-]+)`", README))))
def test_what_it_names_exists(path: str) -> None:
    assert (ROOT / path).exists()
