"""The models that the engine's benchmarks measure, in a cache that is filled once.

The bundled checkpoints are copied there, the two trained with the published code unpacked, the
random one of the published shapes drawn. So maps to first states (``deqlm calibrate``) can be put
beside them: ``python -m benchmarks.models`` makes what is missing, maps included.
"""

import argparse
import lzma
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.shapes import CACHE, checkpoint_folder, zipf_text
from deq_model.checkpoint import load_config
from deq_model.tokenizers.load import load_tokenizer
from deq_model.warm_start import WARM_START_FILE
from training.calibration.run import calibrate
from training.options.calibration import CalibrateRun

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "tests" / "data" / "peer"
CORPUS = ROOT / "data" / "corpus"
BUNDLED = {"bundled, regularised": "shakespeare-ift-jr", "bundled": "shakespeare-ift"}
PUBLISHED_CODE = {"peer, regularised": "jr", "peer, stiff": "ift"}
FIT_TOKENS = 50_000
_PUNCTUATION = re.compile(r"([^\w\s'])")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedModel:
    """A trained model and held-out text.

    Attributes:
        name: for tables.
        folder: its checkpoint.
        text: UTF-8, plain or .xz.
    """

    name: str
    folder: Path
    text: Path

    def tokens(self, count: int) -> tuple[int, ...]:
        """The first ids of the text."""
        return load_tokenizer(self.folder).encode(read(self.text)[: 20 * count]).ids[:count]


def read(path: Path) -> str:
    """A text, unpacked."""
    data = path.read_bytes()
    return (lzma.decompress(data) if path.suffix == ".xz" else data).decode("utf-8")


def trained_models(cache: Path = CACHE, *, more: Sequence[Path] = ()) -> list[TrainedModel]:
    """The bundled ones, those trained with the published code, and ``more`` folders.

    A folder's text is its ``test.txt``, or the one of the second kind.
    """
    models = [
        TrainedModel(name=name, folder=_copied(cache, folder), text=CORPUS / "test.txt.xz")
        for name, folder in BUNDLED.items()
    ]
    models += [
        TrainedModel(name=name, folder=_unpacked(cache, peer), text=PEERS / "test.txt.xz")
        for name, peer in PUBLISHED_CODE.items()
    ]
    for folder in more:
        own = folder / "test.txt"
        text = own if own.exists() else PEERS / "test.txt.xz"
        models.append(TrainedModel(name=folder.name, folder=folder, text=text))
    return models


def _copied(cache: Path, name: str) -> Path:
    """A copy of a bundled checkpoint: what is put beside it stays out of the repository."""
    target = cache / name
    target.mkdir(parents=True, exist_ok=True)
    for source in (ROOT / "models" / name).iterdir():
        # A map that was fitted here is kept unless the bundled model has one of its own.
        shutil.copy2(source, target / source.name)
    return target


def _unpacked(cache: Path, name: str) -> Path:
    target = cache / f"peer-{name}"
    target.mkdir(parents=True, exist_ok=True)
    for source in (PEERS / name / "config.json", PEERS / name / "model.safetensors.xz"):
        _write(target / source.name.removesuffix(".xz"), source)
    _write(target / "vocab.txt", PEERS / "vocab.txt.xz")
    return target


def _write(target: Path, source: Path) -> None:
    if not target.exists():
        data = source.read_bytes()
        target.write_bytes(lzma.decompress(data) if source.suffix == ".xz" else data)


def fit_maps(cache: Path = CACHE, *, random_tokens: int = 12_000) -> list[str]:
    """Fits a map for every model that has none; says what came of it.

    The peers' training text is not here: their maps are fitted on the corpus, with its punctuation
    split from the words as theirs was.
    """
    split = cache / "corpus-split.txt"
    if not split.exists():
        cache.mkdir(parents=True, exist_ok=True)
        split.write_text(_PUNCTUATION.sub(r" \1 ", read(CORPUS / "train.txt.xz")), "utf-8")
    told = []
    for model in trained_models(cache):
        text = split if model.folder.name.startswith("peer") else CORPUS / "train.txt.xz"
        told.append(_fit(model.folder, text, tokens=FIT_TOKENS))
    big = checkpoint_folder(cache)
    told.append(_fit(big, _zipf_file(cache, big, 2 * random_tokens), tokens=random_tokens))
    return told


def _fit(folder: Path, text: Path, *, tokens: int) -> str:
    if (folder / WARM_START_FILE).exists():
        return f"{folder.name}: has a map"
    run = CalibrateRun(model=folder, data=text, tokens=tokens, valid_tokens=min(4000, tokens // 10))
    return f"{folder.name}\n{calibrate(run).text()}"


def _zipf_file(cache: Path, folder: Path, count: int) -> Path:
    path = cache / f"zipf-{count}.txt"
    if not path.exists():
        ids = zipf_text(load_config(folder).n_token, count, seed=3)
        path.write_text(load_tokenizer(folder).decode(ids.tolist()), "utf-8")
    return path


def main(arguments: list[str] | None = None) -> None:
    """Fills the cache."""
    flags = argparse.ArgumentParser(description="Prepares the models of the engine's benchmarks.")
    flags.add_argument("--threads", type=int, default=torch.get_num_threads())
    flags.add_argument("--random-tokens", type=int, default=12_000, help="to fit the 98M map on")
    options = flags.parse_args(arguments)
    torch.set_num_threads(options.threads)
    for line in fit_maps(random_tokens=options.random_tokens):
        print(line, flush=True)


if __name__ == "__main__":
    main()
