"""The services that a server answers, and their names."""

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from deqlm.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    scoring_pb2,
    scoring_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    tokenizer_pb2,
    tokenizer_pb2_grpc,
)
from server import health
from server.servicers.admin import AdminServicer
from server.servicers.edge import Edge
from server.servicers.generation import GenerationServicer
from server.servicers.models import ModelServicer
from server.servicers.scoring import ScoringServicer
from server.servicers.sessions import SessionServicer
from server.servicers.tokenizing import TokenizerServicer

SERVICES = tuple(
    service.full_name
    for module in (
        scoring_pb2,
        generation_pb2,
        session_pb2,
        tokenizer_pb2,
        model_pb2,
        admin_pb2,
    )
    for service in module.DESCRIPTOR.services_by_name.values()
)
"""Full names of our services."""


def add_services(
    server: grpc.aio.Server,
    edge: Edge,
    *,
    scoring: ScoringServicer,
    admin: AdminServicer,
    health_servicer: health.Health,
    has_reflection: bool,
) -> None:
    """Have a server answer the calls of all services.

    Args:
        server: that has not started.
        edge: what servicers work with.
        scoring, admin, health_servicer: those that others know as well.
        has_reflection: whether clients may ask which services there are.
    """
    scoring_pb2_grpc.add_ScoringServiceServicer_to_server(scoring, server)
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(GenerationServicer(edge), server)
    session_pb2_grpc.add_SessionServiceServicer_to_server(SessionServicer(edge), server)
    tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server(TokenizerServicer(edge), server)
    model_pb2_grpc.add_ModelServiceServicer_to_server(ModelServicer(edge), server)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    if has_reflection:
        names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
