"""The engine's benchmark runs, on a model that is solved in a moment, and its sums are right."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from benchmarks import (
    engine,
    engine_call,
    engine_plots,
    engine_profile,
    engine_speed,
    engine_tables,
    engine_targets,
    models,
)
from benchmarks.engine_bench import QUICK, changes, in_turns, load_map, places, spread
from benchmarks.shapes import random_weights, tokenizer
from deq_model.checkpoint import load_checkpoint, save_checkpoint
from server.engine.admission import Places
from tests.benchmarks.small import SMALL


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published shapes in small."""
    folder = tmp_path_factory.mktemp("tiny")
    save_checkpoint(folder, random_weights(SMALL, seed=0), tokenizer(400))
    return folder


def run(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], *flags: str
) -> tuple[dict[str, dict], str]:
    out = tmp_path / "engine.json"
    common = ["--quick", "--threads=1", f"--model={tiny}", f"--cache={tmp_path}", f"--out={out}"]
    engine.main([*common, *flags])
    return json.loads(out.read_text(encoding="utf-8"))["sections"], capsys.readouterr().out


def test_generation_and_scoring(tiny: Path, tmp_path: Path, capsys) -> None:
    wanted = "--only=generate,score-150"
    found, printed = run(tiny, tmp_path, capsys, wanted, "--settings=float32")
    assert list(found) == ["generate-1", "generate-3", "score-150-1", "score-150-3"]
    for section in found.values():
        for competitor in ("baseline", "float32"):
            one = section["competitors"][competitor]
            assert one["tokens_per_s"]["min"] > 0
            assert 2 < one["nfe_mean"] < 35
            assert one["unconverged"] == 0
        assert f"seed {section['run']['seed']}" in printed
    alone = found["score-150-1"]["competitors"]
    for competitor in ("baseline", "float32"):
        assert alone[competitor]["change_mean"] < 5e-3  # both are solved to 1e-3
    assert len(found["generate-1"]["competitors"]["float32"]["nfe"]) == 2 * (QUICK.drawn - 1)
    assert "### score-150-3" in printed


def test_calls_and_sharing(tiny: Path, tmp_path: Path, capsys) -> None:
    wanted = "--only=call,wait,gap,growth"
    found, printed = run(tiny, tmp_path, capsys, wanted, "--settings=float32")
    assert found["call"]["bandwidth"]["bytes_per_s"] == max(
        found["call"]["bandwidth"]["readers"].values()
    )
    one = found["call"]["engine"]["float32"]
    assert one["nbytes"] == 4 * (4 * 32 * 32 + 2 * 32 * 64)
    assert one["over_reading"] > one["over_reading_best"] > 1
    assert found["wait"]["float32"]["calls"]["max"] <= 1
    assert set(found["growth"]["float32"]) == {"1", "5", "10"}
    assert found["gap"]["float32"]["beside"]["min"] > 0
    assert printed.count("### ") == 4


def test_a_profile_adds_up(tiny: Path, tmp_path: Path, capsys) -> None:
    found, printed = run(tiny, tmp_path, capsys, "--only=profile", "--settings=served")
    for work in ("generation, 3 stream(s)", "scoring, 1 stream(s)"):
        one = found["profile"]["served"][work]
        assert all(spent >= 0 for spent in one["ms_per_token"].values())
        for part in ("feed-forward", "attention", "solver", "softmax", "the rest"):
            assert one["ms_per_token"][part] > 0, part
    assert f" | {sum(one['ms_per_token'].values()):.2f}" in printed.split("| all |")[1]


def test_nested_parts_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    instants = iter([0.0, 1.0, 3.0, 10.0])  # the outer one begins, the inner one, both end
    monkeypatch.setattr(engine_profile.time, "perf_counter", lambda: next(instants))
    clock = engine_profile.Clock()
    clock.timed("the rest", clock.timed("solver", lambda: None))()
    assert (clock.seconds["solver"], clock.seconds["the rest"]) == (2.0, 8.0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_server_and_trained_models(tiny: Path, tmp_path: Path, capsys) -> None:
    found, printed = run(tiny, tmp_path, capsys, "--only=grpc,trained", "--settings=float32")
    rates = found["grpc"]["float32"]["tokens_per_s"]
    assert rates["gRPC"]["min"] > 0 and rates["in process"]["min"] > 0
    both = found["trained"]["bundled, regularised"]
    for kind in ("generation", "scoring"):
        for competitor in ("baseline", "float32"):
            assert both[kind][competitor]["change_mean"] < 5e-3
            assert abs(both[kind][competitor]["perplexity_change"]) < 5e-3
    assert "calls of f per generated token" in printed


def test_sections_that_are_not_measured_are_kept(tiny: Path, tmp_path: Path, capsys) -> None:
    run(tiny, tmp_path, capsys, "--only=wait", "--settings=float32")
    found, _ = run(tiny, tmp_path, capsys, "--only=gap", "--settings=float32")
    assert set(found) == {"wait", "gap"}
    _, printed = run(tiny, tmp_path, capsys, "--tables")
    assert "### wait" in printed and "### gap" in printed
    with pytest.raises(SystemExit, match="--only must name sections of call, generate-1"):
        run(tiny, tmp_path, capsys, "--only=nothing")


def test_turns_alternate() -> None:
    order: list[str] = []

    def competitor(name: str):
        def turn(rep: int) -> dict[str, int]:
            order.append(f"{name}{rep}")
            return {"rep": rep}

        return turn

    found = in_turns({"a": competitor("a"), "b": competitor("b")}, 3, lambda line: None)
    assert order == ["a0", "b0", "b1", "a1", "a2", "b2"]
    assert found["b"] == [{"rep": 0}, {"rep": 1}, {"rep": 2}]


def test_a_rate_counts_while_all_streams_draw() -> None:
    # Both draw from 2 to 5: at 3, 4, 5 and at 3.5, 5.
    assert engine_speed.rate([[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 3.5, 5.0, 6.5]]) == 5 / 3
    assert engine_speed.rate([[1.0, 2.0, 3.0]]) == 1.0


def test_changes_of_log_probabilities() -> None:
    exact = torch.tensor([-1.0, -2.0, -3.0])
    found = changes(exact + torch.tensor([0.0, 0.01, -0.1]), exact)
    assert found["change_mean"] == pytest.approx(0.11 / 3)
    assert found["change_median"] == pytest.approx(0.01)
    assert found["off"] == pytest.approx(1 / 3)
    assert found["perplexity_change"] == pytest.approx(0.03, rel=0.02)


def test_bandwidth_is_of_the_best_reader() -> None:
    read = engine_call.Bandwidth(4, torch.device("cpu"))
    first = read.measure()
    assert first == max(read.readers.values()) > 1e8
    assert read.measure() >= first
    assert len(engine_call.seconds_each(lambda: None, torch.device("cpu"))) >= 3


def test_pictures(tiny: Path, tmp_path: Path, capsys) -> None:
    run(tiny, tmp_path, capsys, "--only=call,generate-1", "--settings=float32")
    engine_plots.main(["--results", str(tmp_path / "engine.json"), "--out", str(tmp_path)])
    for name in ("engine-call.png", "engine-calls-per-token.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_places_are_enough_for_one_owner() -> None:
    for jobs in range(1, 40):
        room = Places(places(jobs))
        assert room.total - room.kept >= jobs


def test_spreads_and_tables() -> None:
    found = spread([3.0, 1.0, 2.0])
    assert found == {"median": 2.0, "min": 1.0, "max": 3.0, "all": [3.0, 1.0, 2.0]}
    assert engine_tables.spread(found, 10, 1) == "20.0 (10.0 – 30.0)"


def test_trained_models_are_in_the_cache(tmp_path: Path) -> None:
    found = models.trained_models(tmp_path)
    assert [model.folder.name for model in found] == [
        "shakespeare-ift-jr",
        "shakespeare-ift",
        "peer-jr",
        "peer-ift",
    ]
    for model in found:
        assert len(model.tokens(50)) == 50
    # A map that was put beside a copy stays there.
    (found[0].folder / "warm_start.json").write_text("{}")
    again = models.trained_models(tmp_path, more=[found[2].folder])
    assert (again[0].folder / "warm_start.json").exists()
    assert again[-1].text == models.PEERS / "test.txt.xz"


def test_tables_are_put_between_the_marks() -> None:
    document = "before\n<!-- results -->\nold\n<!-- /results -->\nafter\n"
    found = engine_tables.into(document, "new")
    assert found == "before\n<!-- results -->\nnew\n<!-- /results -->\nafter\n"
    with pytest.raises(ValueError, match="must have <!-- results --> and <!-- /results -->"):
        engine_tables.into("nothing", "new")


def test_targets_are_told_where_they_were_measured() -> None:
    rate = {
        name: {"tokens_per_s": spread([value])} for name, value in (("baseline", 2.0), ("a", 50))
    }
    sections = {
        "generate-1": {"competitors": rate},
        "wait": {"a": {"calls": spread([0.0, 1.0])}, "run": {}},
        "growth": {"a": {"1": spread([1.0]), "100": spread([1.04]), "1000": spread([1.02])}},
    }
    rows = engine_targets.rows(sections, ["a", "b"])
    assert [(row[1], *row[2:]) for row in rows] == [
        ("≥ 20", "25.0 (50.0/s)", ""),
        ("≤ 1", "1 at most", ""),
        ("≤ +5%", "+4.0%", ""),
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_map_is_fitted_once(tmp_path: Path) -> None:
    """On a trained model: what a random one becomes is hard to foretell, and a map is not kept."""
    folder = tmp_path / "copy"
    shutil.copytree(models.ROOT / "models" / "shakespeare-ift-jr", folder)
    for name in ("warm_start.json", "warm_start.safetensors"):
        (folder / name).unlink()
    text = models.CORPUS / "train.txt.xz"
    assert "calls of f per token" in models._fit(folder, text, tokens=6000)
    assert models._fit(folder, text, tokens=6000) == "copy: has a map"
    assert load_map(folder, load_checkpoint(folder, device="cpu")) is not None
