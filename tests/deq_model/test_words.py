"""Embedding and softmax over the clusters of the vocabulary, through their published names."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deq_model.config import ModelConfig
from deq_model.published import from_published, layout, to_published
from tests.deq_model.problems import CONFIG as SMALL
from tests.deq_model.problems import configs, generator, random_model

CONFIG = dataclasses.replace(SMALL, tie_weights=True)


@given(seed=st.integers(0, 10_000), config=configs(published=True))
def test_the_softmax_is_the_published_one(seed: int, config: ModelConfig) -> None:
    model = random_model(config, seed, std=1.0)
    names = to_published(model.state_dict(), config)
    hidden = torch.randn(4, config.d_model, generator=generator(seed), dtype=torch.float64)
    edges, k = config.cluster_edges, len(config.cutoffs)

    def logits(i: int) -> Tensor:
        table = 0 if config.div_val == 1 else i
        weight = names[f"crit.out_layers.{table}.weight"]
        bias = names[f"crit.out_layers.{table}.bias"]
        if config.div_val == 1:
            weight, bias = weight[edges[i] : edges[i + 1]], bias[edges[i] : edges[i + 1]]
        if i == 0 and k:
            weight = torch.cat([weight, names["crit.cluster_weight"]])
            bias = torch.cat([bias, names["crit.cluster_bias"]])
        projection = names.get(f"crit.out_projs.{i}.weight", torch.eye(config.d_model).double())
        return hidden @ projection @ weight.T + bias

    head = logits(0).log_softmax(1)
    parts = [head[:, : edges[1]]]
    parts += [head[:, -i, None] + logits(i).log_softmax(1) for i in range(1, k + 1)]
    expected = torch.cat(parts, dim=1)
    with torch.no_grad():
        logprob = model.softmax.log_prob(hidden)
        torch.testing.assert_close(logprob, expected, rtol=1e-10, atol=1e-10)
        total = logprob.logsumexp(1)
        torch.testing.assert_close(total, torch.zeros(4).double(), rtol=0, atol=1e-12)
        for token in range(config.n_token):
            target = torch.full((4,), token)
            got = model.softmax.target_logprob(hidden, target)
            torch.testing.assert_close(got, expected[:, token], rtol=1e-10, atol=1e-10)
        mixed = torch.randint(config.n_token, (4,), generator=generator(seed))
        got = model.softmax.target_logprob(hidden, mixed)
        wanted = expected.gather(1, mixed[:, None])[:, 0]
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@given(seed=st.integers(0, 10_000), config=configs(published=True))
def test_the_embedding_is_the_published_one(seed: int, config: ModelConfig) -> None:
    model = random_model(config, seed)
    names = to_published(model.state_dict(), config)
    edges = config.cluster_edges if config.div_val > 1 else (0, config.n_token)
    tokens = torch.arange(config.n_token)
    embedded = model.embedding(tokens.view(-1, 1)).squeeze(1)
    for token in tokens.tolist():
        i = max(i for i, edge in enumerate(edges[:-1]) if edge <= token)
        vector = names[f"word_emb.emb_layers.{i}.weight"][token - edges[i]]
        if config.has_projections:
            vector = names[f"word_emb.emb_projs.{i}.weight"] @ vector
        expected = math.sqrt(config.d_model) * vector
        torch.testing.assert_close(embedded[token], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("token", [-1, 23])
@pytest.mark.parametrize("change", [{}, {"div_val": 1}, {"cutoffs": (), "tie_projs": ()}])
def test_ids_outside_the_vocabulary_are_refused(token: int, change: dict) -> None:
    model = random_model(dataclasses.replace(CONFIG, **change), 0)
    tokens = torch.tensor([0, token, 3])
    with pytest.raises(IndexError):
        model.embedding(tokens)
    with pytest.raises((IndexError, RuntimeError), match=r"out of|bounds"):
        model.softmax.target_logprob(torch.ones(3, 8, dtype=torch.float64), tokens)


@given(seed=st.integers(0, 10_000), config=configs(published=True))
def test_published_names_round_trip(seed: int, config: ModelConfig) -> None:
    state = random_model(config, seed).state_dict()
    published = to_published(state, config)
    again = from_published(published, config)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
    assert len({entry.published for entry in layout(config)}) == len(layout(config))
    assert published["inject_conv.weight"].dim() == 3
