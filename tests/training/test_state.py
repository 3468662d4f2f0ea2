"""States on disk: whole or not at all, the newest kept, others than this run's refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deq_model.memory import Memory
from training.errors import ResumeError
from training.state import (
    Point,
    Progress,
    RunState,
    check_options,
    check_vocabulary,
    load_state,
    newest_state,
    save_state,
)

from .runs import tiny

CPU = torch.device("cpu")


def state(step: int, tmp_path: Path) -> RunState:
    return RunState(
        point=Point(
            progress=Progress(step=step, position=3, epoch=1, seconds=2.5),
            memory=Memory(torch.rand(2, 3, 4), torch.rand(2, 3, 12)),
            schedule={"best": 1.0},
            guard={"mean": 2.0},
            generator=torch.Generator().get_state(),
            reports=({"loss": 1.5, "jac_loss": None},),
            best_nll=float("inf"),
        ),
        model={"weight": torch.rand(20, 50)},
        optimiser={"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]},
        options=tiny(tmp_path).to_dict(),
        vocabulary="0123456789abcdef",
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    saved = state(7, tmp_path)
    loaded = load_state(save_state(tmp_path, saved, keep=1), device=CPU)
    assert loaded.point.progress == saved.point.progress
    assert torch.equal(loaded.point.memory.u_hist, saved.point.memory.u_hist)
    assert torch.equal(loaded.model["weight"], saved.model["weight"])
    assert loaded.point.reports == saved.point.reports
    assert (loaded.options, loaded.vocabulary) == (saved.options, saved.vocabulary)


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (2, 10, 100_000_000, 9):
        save_state(tmp_path, state(step, tmp_path), keep=2)
        newest = newest_state(tmp_path)
        assert newest is not None
        assert newest.name == f"step-{step:08d}.pt"
    assert names(tmp_path) == ["step-00000009.pt"]  # those of later steps are undone


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".step-00000001.pt.123.tmp").write_bytes(b"half")
    assert newest_state(tmp_path) is None
    save_state(tmp_path, state(2, tmp_path), keep=2)
    assert names(tmp_path) == ["step-00000002.pt"]


def test_a_state_that_cannot_be_written_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = save_state(tmp_path, state(1, tmp_path), keep=1)
    before = kept.read_bytes()
    with pytest.raises(OSError, match="No space left on device"):
        _save_to_full_disk(tmp_path, monkeypatch)
    assert names(tmp_path) == [kept.name]
    assert kept.read_bytes() == before


def _save_to_full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Path.open

    def full(self: Path, *arguments: object, **more: object) -> object:
        writes = self.name.endswith(".tmp") and "wb" in arguments
        return plain(Path("/dev/full") if writes else self, *arguments, **more)  # type: ignore[call-overload]

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full)
        save_state(folder, state(2, folder), keep=1)


def test_damage_is_told(tmp_path: Path) -> None:
    path = save_state(tmp_path, state(1, tmp_path), keep=1)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(ResumeError, match=r"step-00000001.pt, which is damaged: .*delete it"):
        load_state(path, device=CPU)


@pytest.mark.parametrize("found", [None, 1, 3])
def test_another_version_is_refused(tmp_path: Path, found: int | None) -> None:
    path = save_state(tmp_path, state(1, tmp_path), keep=1)
    values = torch.load(path, weights_only=True)
    values["format"] = found
    if found is None:
        del values["format"]
    torch.save(values, path)
    with pytest.raises(ResumeError, match=f"format must be 2, got {found or 1}; use the version"):
        load_state(path, device=CPU)


def test_a_field_that_is_missing(tmp_path: Path) -> None:
    path = save_state(tmp_path, state(1, tmp_path), keep=1)
    values = torch.load(path, weights_only=True)
    del values["point"]["guard"]
    torch.save(values, path)
    with pytest.raises(ResumeError, match="damaged"):
        load_state(path, device=CPU)


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    saved = state(1, tmp_path)
    check_vocabulary(saved, saved.vocabulary)
    with pytest.raises(ResumeError, match=r"was 0123456789abcdef .*, got f00d; give it the tok"):
        check_vocabulary(saved, "f00d")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimiser": {"lr": 0.5}}, r"optimiser\.lr was 0\.01 in the run to resume, got 0\.5"),
        ({"model": {"d_model": 32}}, r"model\.d_model was 16 .*, got 32; .*another folder"),
        ({"data": {"batch_size": 2}}, r"data\.batch_size was 4"),
        ({"run": {"seed": 2}}, r"run\.seed was 0 .*, got 2"),
        ({"forward": {"tol": 0.5}}, r"forward\.tol was 0\.001"),
        ({"equilibrium": {"jac_loss_freq": 0.9}}, r"equilibrium\.jac_loss_freq was 0\.5"),
    ],
)
def test_options_that_may_not_change(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(ResumeError, match=message):
        check_options(state(1, tmp_path), tiny(tmp_path, **change))


def test_options_that_may_change(tmp_path: Path) -> None:
    change = {
        "run": {"resume": True, "keep": 7, "save_every": 3},
        "guard": {"max_skipped": 3},
        "optimiser": {"max_steps": 99, "batch_chunks": 2},
    }
    check_options(state(1, tmp_path), tiny(tmp_path, **change))
    older = replace(state(1, tmp_path), options={})
    with pytest.raises(ResumeError, match="was None"):
        check_options(older, tiny(tmp_path))
