"""AdminService."""

from deqlm.v1 import admin_pb2, admin_pb2_grpc
from server.bounds import Checks
from server.call import Call
from server.invariants import Invariants
from server.profiling.profiles import (
    DEFAULT_STEPS,
    DEFAULT_TIME_S,
    LONGEST_S,
    MOST_STEPS,
    Profiles,
)
from server.registry import Registry


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Answers whoever runs the server."""

    def __init__(self, invariants: Invariants, profiles: Profiles, registry: Registry) -> None:
        self._invariants, self._profiles, self._registry = invariants, profiles, registry

    async def CheckInvariants(
        self, request: admin_pb2.CheckInvariantsRequest, call: Call
    ) -> admin_pb2.CheckInvariantsResponse:
        """Look whether everything adds up."""
        found = await self._invariants.check()
        return admin_pb2.CheckInvariantsResponse(
            problems=found.problems,
            calls=found.calls,
            leases=found.leases,
            streams=found.streams,
        )

    async def Profile(
        self, request: admin_pb2.ProfileRequest, call: Call
    ) -> admin_pb2.ProfileResponse:
        """Take a profile."""
        steps = request.steps if request.HasField("steps") else DEFAULT_STEPS
        max_time_s = request.max_time_s if request.HasField("max_time_s") else DEFAULT_TIME_S
        checks = Checks()
        checks.require(1 <= steps <= MOST_STEPS, "steps", f"in [1, {MOST_STEPS}]", steps)
        is_short = 0.0 < max_time_s <= LONGEST_S
        checks.require(is_short, "max_time_s", f"in (0, {LONGEST_S:g}]", max_time_s)
        checks.done()
        engine = self._registry.engine(request.model)
        call.model = engine.name
        made = await self._profiles.take(
            engine, steps=steps, max_time_s=max_time_s, why=call.request_id
        )
        return admin_pb2.ProfileResponse(
            model=made.model,
            folder=str(made.folder),
            files=made.files,
            steps=made.steps,
            seconds=made.seconds,
            stack_samples=made.samples,
        )
