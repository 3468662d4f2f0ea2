"""SessionService, TokenizerService and ModelService."""

import time

import grpc
import pytest

from deqlm.v1 import common_pb2, model_pb2, session_pb2, tokenizer_pb2
from tests.server.calls import TIMEOUT_S, Stubs


def test_a_new_session(stubs):
    now = time.time()
    request = session_pb2.CreateSessionRequest(
        model="words", ttl_s=60, solver=common_pb2.SolverOptions(max_nfe=7)
    )
    view = stubs.sessions.CreateSession(request, timeout=TIMEOUT_S, metadata=stubs.metadata).session
    assert (view.model, view.owner, view.position, view.busy) == ("words", "ann", 0, False)
    assert len(view.session_id) >= 20
    assert view.create_time.ToNanoseconds() / 1e9 == pytest.approx(now, abs=10)
    expires_s = view.expire_time.ToNanoseconds() - view.last_used_time.ToNanoseconds()
    assert expires_s / 1e9 == pytest.approx(60, abs=1e-3)
    assert (view.ttl_s, view.solver.max_nfe, view.solver.tol) == (60, 7, 3e-3)
    assert view.solver.policy == common_pb2.BUDGET_POLICY_BEST_EFFORT
    assert stubs.get(view.session_id) == view
    stubs.delete(view.session_id)


def test_it_expires(stubs):
    session = stubs.create(ttl_s=0.05)
    deadline = time.monotonic() + TIMEOUT_S
    with pytest.raises(grpc.RpcError) as caught:
        while time.monotonic() < deadline:
            stubs.get(session)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_source_and_fork_go_on_independently(stubs, session):
    before = stubs.get(session)
    copy = stubs.fork(session, ttl_s=30)
    assert copy.session_id != session
    assert (copy.position, copy.totals, copy.ttl_s) == (before.position, before.totals, 30)
    assert stubs.fork(session).ttl_s == before.ttl_s
    ours = stubs.score(" And", session_id=session)
    theirs = stubs.score(" And", session_id=copy.session_id)
    assert ours.session == theirs.session
    assert stubs.score(" the", session_id=session).position == before.position + 2
    assert stubs.get(copy.session_id).position == before.position + 1


def test_owners_see_their_own(stubs, other, session):
    theirs = other.create()
    assert session in [view.session_id for view in stubs.list().sessions]
    assert [view.session_id for view in other.list().sessions] == [theirs]
    other.delete(theirs)


def test_pages_hold_every_session_once_and_in_order(live_server):
    stubs = Stubs(live_server.channel, owner="carol")
    made = [stubs.create(model=model) for model in ("pieces", "words", "pieces", "words", "pieces")]
    seen, token, pages = [], "", 0
    while pages == 0 or token:
        page = stubs.list(page_size=2, page_token=token)
        seen += [view.session_id for view in page.sessions]
        token, pages = page.next_page_token, pages + 1
    assert (seen, pages) == (made, 3)
    assert [view.session_id for view in stubs.list(model="words").sessions] == made[1::2]
    for session in made:
        stubs.delete(session)
    assert not stubs.list().sessions


def test_models(stubs):
    models = stubs.models.ListModels(model_pb2.ListModelsRequest(), timeout=TIMEOUT_S).models
    assert [(m.name, m.is_default) for m in models] == [("pieces", True), ("words", False)]
    words = stubs.models.GetModel(model_pb2.GetModelRequest(name="words"), timeout=TIMEOUT_S).model
    assert words == models[1]
    assert words.tokenizer == model_pb2.TOKENIZER_KIND_WORD
    assert models[0].tokenizer == model_pb2.TOKENIZER_KIND_SENTENCEPIECE
    assert (words.vocab_size, words.architecture.n_token, words.eos_id) == (22, 22, 0)
    assert (words.context, words.device) == (32, "cpu")
    assert words.dtype in ("float16", "float32")  # as the CPU has products for it
    assert list(words.architecture.cutoffs) == [8]
    assert words.default_solver.max_nfe == 100
    assert words.limits.max_nfe == 1000
    assert words.fingerprint != models[0].fingerprint
    assert words.n_parameters > 0
    default = stubs.models.GetModel(model_pb2.GetModelRequest(), timeout=TIMEOUT_S).model
    assert default == models[0]


@pytest.mark.parametrize("text", ["", "It was naïve\n\n  ☃", "x" * 30_000])
def test_tokenizer_round_trip(stubs, text):
    request = tokenizer_pb2.TokenizeRequest(text=text)
    answer = stubs.tokenizer.Tokenize(request, timeout=TIMEOUT_S)
    assert b"".join(token.raw for token in answer.tokens) == text.encode()
    assert [t.byte_end for t in answer.tokens[:-1]] == [t.byte_begin for t in answer.tokens[1:]]
    ids = common_pb2.TokenIds(ids=[token.token_id for token in answer.tokens])
    request = tokenizer_pb2.DetokenizeRequest(token_ids=ids)
    assert stubs.tokenizer.Detokenize(request, timeout=TIMEOUT_S).text == text


def test_tokenizer_tells_unknown_words(stubs):
    request = tokenizer_pb2.TokenizeRequest(model="words", text="the zebra")
    answer = stubs.tokenizer.Tokenize(request, timeout=TIMEOUT_S)
    assert (answer.model, answer.unknown_tokens) == ("words", 1)
    assert [token.is_unknown for token in answer.tokens] == [False, True]
