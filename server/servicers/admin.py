"""AdminService."""

from deqlm.v1 import admin_pb2, admin_pb2_grpc
from server.call import Call
from server.invariants import Invariants


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Answers whoever runs the server."""

    def __init__(self, invariants: Invariants) -> None:
        self._invariants = invariants

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
