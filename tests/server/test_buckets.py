"""Bounds of buckets are as they are asked for, or the server says what it was asked."""

import pytest
from prometheus_client import CollectorRegistry

from server.config import ServerConfig, ServerConfigError
from server.metrics.buckets import BUCKETS, MOST_BUCKETS, read_buckets
from server.metrics.counts import Metrics
from server.options import parse_config


def bounds_of(registry: CollectorRegistry, name: str) -> list[str]:
    family = next(family for family in registry.collect() if family.name == name)
    bounds = [s.labels["le"] for s in family.samples if s.name.endswith("_bucket")]
    return list(dict.fromkeys(bounds))


def test_all_histograms_have_bounds_here_and_nothing_else_has() -> None:
    families = Metrics().registry.collect()
    histograms = {f.name.removeprefix("deqlm_") for f in families if f.type == "histogram"}
    assert histograms == set(BUCKETS)


def test_the_named_ones_change_and_the_others_stay() -> None:
    arguments = ["--metrics-buckets", "deqlm_nfe_per_token=4:8:16.5"]
    arguments += ["--metrics-buckets=store_seconds=1e-3:1"]
    config = parse_config(arguments, "deqlm serve")
    metrics = Metrics(config.bucket_bounds)
    metrics.observer("m").began([0.3])
    metrics.observer("m").solved([])
    metrics.store.store_called("read", 0.1, failed=False)
    shown = bounds_of(metrics.registry, "deqlm_nfe_per_token")
    assert shown == ["4.0", "8.0", "16.5", "+Inf"]
    assert bounds_of(metrics.registry, "deqlm_store_seconds") == ["0.001", "1.0", "+Inf"]
    first = [str(bound) for bound in BUCKETS["first_residual"]]
    assert bounds_of(metrics.registry, "deqlm_first_residual") == [*first, "+Inf"]
    assert config.bucket_bounds.keys() == BUCKETS.keys()


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        (("nfe=1",), r"metrics_buckets must name a histogram, one of .*, got 'nfe=1'"),
        (("nfe_per_token",), "must give nfe_per_token 1 to 64 finite bounds that rise, got "),
        (("nfe_per_token=",), "finite bounds that rise, got 'nfe_per_token='"),
        (("nfe_per_token=2:1",), "finite bounds that rise"),
        (("nfe_per_token=1:1",), "finite bounds that rise"),
        (("nfe_per_token=1:nan",), "finite bounds that rise"),
        (("nfe_per_token=1:inf",), "finite bounds that rise"),
        (("nfe_per_token=1:x",), "finite bounds that rise"),
        (("nfe_per_token=1", "deqlm_nfe_per_token=2"), "must name nfe_per_token once, got '"),
    ],
)
def test_what_cannot_be_is_told(entries: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ServerConfigError, match=problem):
        ServerConfig(metrics_buckets=entries)


def test_a_histogram_has_a_bounded_number_of_buckets() -> None:
    many = ":".join(map(str, range(MOST_BUCKETS)))
    assert len(read_buckets([f"nfe_per_token={many}"])["nfe_per_token"]) == MOST_BUCKETS
    with pytest.raises(ValueError, match="1 to 64 finite bounds"):
        read_buckets([f"nfe_per_token={many}:{MOST_BUCKETS}"])
