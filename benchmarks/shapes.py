"""A model of the published shapes, 98M parameters, with random weights and a text for it.

``python -m benchmarks.shapes`` writes it once to ``benchmarks/.cache/`` (400 MB) and measures what
the plain baseline makes of it; ``--memory 480`` does so with the longer memory. No trained weights
of this size can be had here. What speed depends on is how many calls of f a solve needs, and
that is set by ``Scales``, found by measurement.
"""

import argparse
import dataclasses
import hashlib
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from benchmarks.baseline import Baseline, Scores
from deq_model.checkpoint import LoadedCheckpoint, build_model, load_checkpoint, save_checkpoint
from deq_model.config import PRESETS, ModelConfig
from deq_model.model import DEQLanguageModel
from deq_model.tokenizers.word import WordTokenizer

CACHE = Path(__file__).resolve().parent / ".cache"
NAME = "random-98m"
ZIPF_EXPONENT, ZIPF_SHIFT = 1.15, 2.7
"""Of the frequency of the word of rank r, ``(r + shift)^−exponent``: a tenth are in the tails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scales:
    """Sizes of random weights.

    A matrix with the scale s has entries N(0, s² / inputs): it takes channels of variance 1 to
    channels of variance s². With these the baseline takes 17 to 18 calls for a block of 150 with
    memory 150, and 7 to 14 for one token (9.9 on average). The next word's distribution has an
    entropy of 6.3 nats, is 1.3 nats from the mean one and puts 12 % into the tails.

    Around that point: ``qkv`` ties the tokens of a block together, ``focus`` parts them. With 0.85
    blocks take 22 calls; with 1.0 and a focus of 30 some spend the budget of 35, and single tokens
    take 12. With 22 for ``focus`` and 0.78, 18 and 10.

    Attributes:
        qkv: of the product of the state; it is what ties the tokens of a block together.
        positions: of the table of relative positions.
        attention_out: of the product after attention.
        inner: of the feed-forward's first product, whose biases are zero.
        outer: of its second.
        injection: of the injection's product, of embeddings that have variance 1: what it adds to
            values.
        query_key: of what it adds to queries and keys, relative to that.
        focus: how much higher a token scores itself than a token far before it.
        logits: standard deviation of the head's logits, beside the words' frequencies; the
            tails', whose projections are the embedding's, have 1.
    """

    qkv: float = 0.8
    positions: float = 1.0
    attention_out: float = 1.5
    inner: float = 1.0
    outer: float = 1.0
    injection: float = 3.5
    query_key: float = 0.3
    focus: float = 28.0
    logits: float = 2.0


def frequencies(n_token: int) -> Tensor:
    """Zipf's law: ``(n_token,)`` probabilities by id, float64."""
    rank = torch.arange(n_token, dtype=torch.float64)
    weight = (rank + ZIPF_SHIFT) ** -ZIPF_EXPONENT
    return weight / weight.sum()


def zipf_text(n_token: int, *shape: int, seed: int) -> Tensor:
    """Words drawn by their frequencies: int64 ids."""
    generator = torch.Generator().manual_seed(seed)
    count = math.prod(shape)
    drawn = torch.multinomial(frequencies(n_token), count, replacement=True, generator=generator)
    return drawn.view(shape)


def random_weights(
    config: ModelConfig, *, seed: int, scales: Scales | None = None
) -> DEQLanguageModel:
    """A model with random weights; biases of the softmax follow the words' frequencies."""
    scales = Scales() if scales is None else scales
    generator = torch.Generator().manual_seed(seed)
    model = DEQLanguageModel(config).eval().requires_grad_(False)

    def draw(parameter: Tensor, scale: float, inputs: int) -> None:
        parameter.normal_(0.0, scale / math.sqrt(inputs), generator=generator)

    for parameter in model.parameters():
        parameter.zero_()
    for module, scale in (
        (model.f.qkv_net, scales.qkv),
        (model.f.r_net, scales.positions),
        (model.f.o_net, scales.attention_out),
        (model.f.ff1_net, scales.inner),
        (model.f.ff2_net, scales.outer),
    ):
        draw(module.weight_v, scale, module.weight_v.shape[1])
        module.match_length()
    # √d_model times table times projection: embeddings of variance 1.
    for table in model.embedding.tables:
        draw(table, 1.0, table.shape[1])
    for projection in model.embedding.projections:
        draw(projection, 1.0, config.d_model)
    draw(model.injection.weight, scales.injection, config.d_model)
    model.injection.weight[: 2 * config.d_model] *= scales.query_key
    _focus(model, scales.focus)
    _randomise_softmax(model, scales.logits, generator)
    return model


def _focus(model: DEQLanguageModel, focus: float) -> None:
    """Sets the biases of queries so that a token's score of itself is higher by ``focus``."""
    f, d_head = model.f, model.config.d_head
    itself = f.fold().position_table(1, torch.float32)[0]
    length = itself.square().sum(-1, keepdim=True)
    f.r_r_bias.copy_(focus * math.sqrt(d_head) * itself / length)


def _randomise_softmax(model: DEQLanguageModel, scale: float, generator: torch.Generator) -> None:
    softmax, edges = model.softmax, model.config.cluster_edges
    for projection in softmax.projections.values():
        projection.normal_(0.0, scale * model.config.d_model**-0.5, generator=generator)
    frequency = frequencies(model.config.n_token)
    for i, bias in enumerate(softmax.biases):
        bias.copy_(frequency[edges[i] : edges[i + 1]].log())
    clusters = [frequency[low:high].sum() for low, high in itertools.pairwise(edges[1:])]
    # The head's logits vary and the clusters' do not: without this factor, the mean of exp of the
    # former, the tails would be rarer than in the text.
    mean_exp = math.exp(scale**2 / 2)
    # Cluster 1 owns the last of the head's columns.
    softmax.cluster_bias.copy_((torch.stack(clusters) * mean_exp).log().flip(0))


def tokenizer(n_token: int) -> WordTokenizer:
    """Made-up words."""
    return WordTokenizer(["<eos>", "<unk>", *(f"w{i}" for i in range(2, n_token))])


def checkpoint_folder(cache: Path = CACHE, *, seed: int = 0) -> Path:
    """The folder of the random model, written if it is not there."""
    scales = hashlib.sha256(repr(Scales()).encode()).hexdigest()[:6]
    folder = cache / f"{NAME}-{seed}-{scales}"
    if not (folder / "README.md").exists():
        config = dataclasses.replace(PRESETS["model-ift"], recipe=f"random weights, seed {seed}")
        card = f"Random weights of the published shapes, seed {seed}: {Scales()}\n"
        model = random_weights(config, seed=seed)
        save_checkpoint(folder, model, tokenizer(config.n_token), card)
    return folder


def load(folder: Path, *, mem_len: int | None = None) -> LoadedCheckpoint:
    """A checkpoint, with another length of memory where one is given."""
    loaded = load_checkpoint(folder, device="cpu")
    if mem_len is None or mem_len == loaded.config.mem_len:
        return loaded
    config = dataclasses.replace(loaded.config, mem_len=mem_len)
    model = build_model(config, loaded.model.state_dict()).eval()
    return dataclasses.replace(loaded, model=model, config=config)


def describe(model: DEQLanguageModel, *, seed: int = 1, singles: int = 12) -> str:
    """What the baseline makes of the model: calls of f, and what its distributions look like."""
    config = model.config
    full = config.mem_len + 2 * config.tgt_len
    text = zipf_text(config.n_token, 1, full + singles + 1, seed=seed)
    baseline = Baseline(model)
    blocks = baseline.score(text[:, :full], text[:, 1 : full + 1])
    tokens = baseline.score(text[:, full:-1], text[:, full + 1 :], stand=blocks.stand, tgt_len=1)
    return f"{_calls('blocks', blocks)}\n{_calls('single tokens', tokens)}\n" + _spread(
        model, blocks
    )


def _calls(what: str, scores: Scores) -> str:
    calls = " ".join(map(str, scores.nfe))
    return f"{what}: {calls} calls of f, mean {fmean(scores.nfe):.1f}"


@torch.no_grad()
def _spread(model: DEQLanguageModel, blocks: Scores) -> str:
    """Of the next word's distribution at the last tokens of the memory."""
    hidden = blocks.stand.memory.z_hist[0, -64:]
    logprob = model.softmax.log_prob(hidden)
    entropy = -(logprob.exp() * logprob).sum(1).mean()
    mean = logprob.exp().mean(0).log()
    apart = (logprob.exp() * (logprob - mean)).sum(1).mean()
    tail = logprob[:, model.config.cluster_edges[1] :].exp().sum(1).mean()
    perplexity = float((-blocks.logprob).mean().exp())
    return (
        f"next word: entropy {entropy:.2f} nats, {apart:.2f} nats from the mean distribution, "
        f"{tail:.1%} in the tails; perplexity of the text {perplexity:,.0f}"
    )


def main(arguments: list[str] | None = None) -> None:
    """Writes the checkpoint and says what it is like."""
    flags = argparse.ArgumentParser(description="The published shapes, with random weights.")
    flags.add_argument("--memory", type=int, default=150, help="tokens of memory to measure with")
    flags.add_argument("--seed", type=int, default=0, help="of the weights")
    flags.add_argument("--cache", type=Path, default=CACHE, help="folder to write to")
    options = flags.parse_args(arguments)
    folder = checkpoint_folder(options.cache, seed=options.seed)
    print(f"{folder}\n{describe(load(folder, mem_len=options.memory).model)}")


if __name__ == "__main__":
    main()
