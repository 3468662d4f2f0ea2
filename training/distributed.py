"""The processes of a run: one by itself, or those that torchrun has started.

Every rank holds the whole model and a share of the streams. Gradients are added up by
DistributedDataParallel; all decisions are made from numbers that every rank has got from all.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from deq_model.devices import find_device
from training.errors import OptionsError, RankError, TrainingError
from training.options.run import RunOptions

Result = TypeVar("Result")

_PREPARATION = timedelta(days=1)  # how long ranks wait for the first one's reading of the data
_ANSWER_S = 5.0  # how long a rank that is alive may take to say so
_TRANSPORT = ("gloo", "nccl", "connection", "timed out", "peer", "store", "socket")
_REASON = "reason/{}"
_END = "end"


class Ranks:
    """This process among those of the run.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
    """

    def __init__(
        self, *, rank: int = 0, size: int = 1, store: Store | None = None, timeout_s: float = 0
    ) -> None:
        self.rank, self.size = rank, size
        self._store = store
        self._turns = 0
        self._answer = timedelta(seconds=min(_ANSWER_S, timeout_s or _ANSWER_S))

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def share(self, streams: int) -> slice:
        """Which of so many streams are this rank's; shares differ by one stream at most."""
        bounds = [streams * rank // self.size for rank in (self.rank, self.rank + 1)]
        return slice(*bounds)

    def exchange(self, values: Sequence[float]) -> list[list[float]]:
        """The numbers of every rank, in order of rank; as many from each."""
        if self.size == 1:
            return [list(values)]
        mine = torch.tensor(values, dtype=torch.float64)
        everyones = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(everyones, mine)
        return [theirs.tolist() for theirs in everyones]

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, on the CPU, in order of rank; elsewhere than on rank 0, one's own.

        Args:
            rows: ``(n, …)``, of the same shape on every rank.
        """
        rows = rows.detach().cpu().contiguous()
        if self.size == 1:
            return rows
        if rows.numel() == 0:
            return torch.cat([rows] * self.size)
        parts = [torch.empty_like(rows) for _ in range(self.size)] if self.is_first else None
        dist.gather(rows, parts)
        return rows if parts is None else torch.cat(parts)

    def wrap(self, module: nn.Module, *, unused: bool) -> nn.Module:
        """The module, its gradients averaged over the ranks by every backward pass.

        Args:
            module: whose outputs have the loss in them.
            unused: whether a pass may leave parameters out on one rank and not on another.
        """
        if self.size == 1:
            return module
        return DistributedDataParallel(module, find_unused_parameters=unused)

    def leave(self) -> None:
        """At the end: waits, but not for long, until rank 0 has come here, too."""
        if self._store is None:
            return
        # Rank 0 may take longer, or be gone: what has happened to it, it says itself.
        with suppress(dist.DistError, RuntimeError):
            if self.is_first:
                self._store.set(_END, "")
            else:
                self._store.wait([_END], self._answer)

    def first_then_rest(self, work: Callable[[], Result]) -> Result:
        """Does the work on rank 0, and when it is done on the others, which find its files.

        Raises:
            RankError: on the others, and with no message, when it has failed on rank 0.
        """
        if self._store is None:
            return work()
        self._turns += 1
        key = f"turn/{self._turns}"
        if not self.is_first:
            self._store.wait([key], _PREPARATION)
            if self._store.get(key) != b"done":
                raise RankError("")
            return work()
        try:
            result = work()
        except BaseException:
            self._store.set(key, "failed")
            raise
        self._store.set(key, "done")
        return result

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Turns errors that come of another rank's end into a RankError that names it."""
        try:
            yield
        except TrainingError:  # all ranks have decided on it together
            raise
        except Exception as error:
            if self._store is None:
                raise
            explained = self._explain(error, self._store)
            if explained is None:
                raise
            raise explained from error

    def _explain(self, error: Exception, store: Store) -> RankError | None:
        """Who is to blame for the error; None if this rank is."""
        own = "" if _is_transport(error) else f"{type(error).__name__}: {error}"
        try:
            reasons = self._reasons(store, own)
        except RuntimeError as unreachable:  # the process that keeps the store is gone as well
            return None if own else RankError(f"the other ranks cannot be reached: {unreachable}")
        if own:
            return None
        for rank, reason in reasons.items():
            if reason:
                return RankError(f"rank {rank} failed: {reason}")
        lost = [str(rank) for rank, reason in reasons.items() if reason is None]
        if lost:
            return RankError(
                f"rank {', '.join(lost)} is lost or has not answered in time; go on from the "
                "newest state with run.resume true, on any number of ranks that divides "
                "data.batch_size"
            )
        return RankError(f"ranks could not reach each other: {error}")

    def _reasons(self, store: Store, own: str) -> dict[int, str | None]:
        """What each other rank says for itself; empty where it only saw others fail, None where it
        says nothing."""
        store.set(_REASON.format(self.rank), own)
        reasons: dict[int, str | None] = {}
        for rank in range(self.size):
            if rank == self.rank:
                continue
            key = _REASON.format(rank)
            try:
                store.wait([key], self._answer)
            except dist.DistStoreError:
                reasons[rank] = None
            else:
                reasons[rank] = store.get(key).decode()
        return reasons


def _is_transport(error: Exception) -> bool:
    """Whether an error is about reaching other ranks."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _TRANSPORT)


def without_sync(module: nn.Module) -> AbstractContextManager[None]:
    """While it is open, backward passes leave the gradient on its rank."""
    if isinstance(module, DistributedDataParallel):
        context: AbstractContextManager[None] = module.no_sync()
        return context
    return nullcontext()


@contextmanager
def open_ranks(options: RunOptions) -> Iterator[Ranks]:
    """Joins the other ranks if torchrun has started this process, and leaves them at the end.

    Raises:
        OptionsError, ConfigError: there is no device for this rank.
        RankError: the others cannot be reached.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ:
        yield Ranks()
        return
    device = rank_device(options.device)  # refused before the others are waited for
    timeout = timedelta(seconds=options.rank_timeout_s)
    try:
        store, rank, size = next(rendezvous("env://", timeout=timeout))
        # Numbers are exchanged by gloo whatever the gradients go by.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    except (dist.DistError, RuntimeError) as error:
        raise RankError(f"the other ranks cannot be reached: {error}") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)
    ranks = Ranks(rank=rank, size=size, store=store, timeout_s=options.rank_timeout_s)
    try:
        yield ranks
        # Gloo's threads let go of the tensors of the last exchange after it has returned, and abort
        # the process if the interpreter ends meanwhile. Waiting for rank 0 gives them the time.
        ranks.leave()
    finally:
        dist.destroy_process_group()


def rank_device(name: str) -> torch.device:
    """The device of this rank; ``cuda`` is its own under torchrun.

    Raises:
        OptionsError, ConfigError: there is no such device.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return find_device(name)
    if name.startswith("cuda:"):
        raise OptionsError(f"run.device must be cpu or cuda under torchrun, got {name}")
    return find_device("cpu" if name == "cpu" else f"{name}:{os.environ.get('LOCAL_RANK', '0')}")
