"""TokenizerService."""

import asyncio

from deqlm.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from server import translate
from server.call import Call
from server.engine.engine import Engine
from server.inputs import LONG_TEXT, encode_text
from server.servicers.edge import Edge
from server.validation import check_ids, check_text


class TokenizerServicer(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """Turns text into token ids and back."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def Tokenize(
        self, request: tokenizer_pb2.TokenizeRequest, call: Call
    ) -> tokenizer_pb2.TokenizeResponse:
        """Encode text."""
        engine = self._edge.registry.engine(request.model)
        call.model = engine.name
        text = check_text(request, limits=self._edge.limits)
        if len(text) < LONG_TEXT:
            return _tokenized(text, engine)
        return await asyncio.to_thread(_tokenized, text, engine)

    async def Detokenize(
        self, request: tokenizer_pb2.DetokenizeRequest, call: Call
    ) -> tokenizer_pb2.DetokenizeResponse:
        """Decode ids."""
        engine = self._edge.registry.engine(request.model)
        call.model = engine.name
        ids = check_ids(request, limits=self._edge.limits, n_token=engine.config.n_token)
        text = engine.tokenizer.decode(ids)
        return tokenizer_pb2.DetokenizeResponse(model=engine.name, text=text)


def _tokenized(text: str, engine: Engine) -> tokenizer_pb2.TokenizeResponse:
    tokens = encode_text(text, engine.tokenizer, name="text")
    return translate.tokenized(tokens, engine.tokenizer, engine.name)
