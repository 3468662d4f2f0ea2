"""ModelService."""

from deqlm.v1 import model_pb2, model_pb2_grpc
from server import translate
from server.call import Call
from server.engine.engine import Engine
from server.servicers.edge import Edge


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Tells about the loaded models."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def ListModels(
        self, request: model_pb2.ListModelsRequest, call: Call
    ) -> model_pb2.ListModelsResponse:
        """All models, the default one first."""
        engines = self._edge.registry.engines()
        return model_pb2.ListModelsResponse(models=[self._info(engine) for engine in engines])

    async def GetModel(
        self, request: model_pb2.GetModelRequest, call: Call
    ) -> model_pb2.GetModelResponse:
        """One model."""
        engine = self._edge.registry.engine(request.name)
        call.model = engine.name
        return model_pb2.GetModelResponse(model=self._info(engine))

    def _info(self, engine: Engine) -> model_pb2.ModelInfo:
        return translate.model_info(
            engine,
            is_default=engine is self._edge.registry.engines()[0],
            limits=self._edge.limits,
            solve=self._edge.default_solve,
            build=self._edge.build,
        )
