"""What all servicers share."""

from dataclasses import dataclass

from cli.build import Build
from server.attempts import Attempts
from server.config import RequestLimits
from server.engine.results import SessionView
from server.engine.solve import Solve
from server.events import Post
from server.metrics.counts import Metrics
from server.persistence import Persistence
from server.registry import Registry

LONG_RESPONSE = 2000
"""Tokens from which a response is made beside the event loop: some ten milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """The parts of a server that its servicers use.

    Attributes:
        registry: the models.
        limits: bounds of requests.
        default_solve: solver options where neither request nor session names one.
        metrics: counts.
        persistence: keeps sessions.
        attempts: calls with idempotency keys that are under way.
        post: from the engines' threads.
        build: version and revision of the server.
    """

    registry: Registry
    limits: RequestLimits
    default_solve: Solve
    metrics: Metrics
    persistence: Persistence
    attempts: Attempts
    post: Post
    build: Build

    def solve_of(self, view: SessionView | None) -> Solve:
        """What an unset solver option of a call means."""
        return self.default_solve if view is None else view.solve
