"""The file of those who may call, and the tokens in it."""

import datetime
import stat

import pytest
import yaml

from server.security.auth_file import AuthFileError, read_auth_file
from server.security.errors import Unauthenticated
from server.security.principals import Quotas, digest_of
from server.security.token_command import main, new_token
from tests.server.security.people import TOKENS, entry, people, write

SECRET = "deqlm_this-must-never-be-shown"


def read(tmp_path, content):
    path = tmp_path / "auth.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return read_auth_file(path)


def test_tokens_show_principals(tmp_path):
    principals = read_auth_file(write(tmp_path / "auth.yaml", people()))
    found = principals.by_token(TOKENS["bob"], now=0)
    assert (found.name, found.rights) == ("bob", {"score"})
    assert principals.names == {"ann", "bob", "root", "mon"}
    told = set()
    for token, kind in [("x", "unknown_token"), ("\udcff", "unknown_token")]:
        with pytest.raises(Unauthenticated) as caught:
            principals.by_token(token, now=0)
        assert caught.value.kind == kind
        told.add(str(caught.value))
    expired = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC).timestamp()
    assert principals.by_token(TOKENS["old"], now=expired - 1).name == "ann"
    with pytest.raises(Unauthenticated) as caught:
        principals.by_token(TOKENS["old"], now=expired)
    assert caught.value.kind == "expired_token"
    assert told == {str(caught.value)}, "who tries learns nothing"


def test_identities_and_quotas(tmp_path):
    ann = {"identities": ["dns:a.example.org", "cn:Ann"], "quotas": {"max_sessions": 3}}
    principals = read(tmp_path, people(ann=ann))
    found = principals.by_identity(["uri:x", "cn:Ann"])
    assert (found.name, found.quotas) == ("ann", Quotas(max_sessions=3))
    for names, kind in [(["cn:ann"], "unknown_certificate"), ([], "unknown_certificate")]:
        with pytest.raises(Unauthenticated) as caught:
            principals.by_identity(names)
        assert caught.value.kind == kind


def test_a_certificate_of_two_principals_is_nobodys(tmp_path):
    content = people(ann={"identities": ["cn:Ann"]}, bob={"identities": ["cn:Bob"]})
    with pytest.raises(Unauthenticated) as caught:
        read(tmp_path, content).by_identity(["cn:Ann", "cn:Bob"])
    assert caught.value.kind == "ambiguous_certificate"


def with_ann(**change):
    return {"principals": {"ann": {"rights": ["score"], **change}}}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({}, "principals must hold keys and values in"),
        ({"principals": {}}, "principals must name somebody, got nobody in"),
        ({"principal": {}}, "principal must be one of principals in"),
        ({"principals": {"a b": {}}}, "principals.a b must be named by 1 to 64 letters"),
        ({"principals": {7: {}}}, "principals.7 must be named by"),
        ({"principals": {"ann": {}}}, "principals.ann.rights must be a list of score, generate,"),
        (with_ann(rights=["scor"]), r"rights must be a list of .*, got \['scor'\] in"),
        (with_ann(rights=["score", "score"]), "rights must be a list of"),
        (with_ann(right=1), "principals.ann.right must be one of rights, tokens, identities"),
        (with_ann(quotas={"max_session": 1}), "quotas.max_session must be one of requests_per"),
        (with_ann(quotas={"max_sessions": 0}), "max_sessions must be a whole number of at least 1"),
        (with_ann(quotas={"max_sessions": True}), "max_sessions must be a whole number .*True in"),
        (with_ann(tokens={}), "principals.ann.tokens must be a list in"),
        (with_ann(tokens=[SECRET]), r"tokens\[0\] must hold keys and values in"),
        (with_ann(tokens=[{"sha256": SECRET}]), r"tokens\[0\].sha256 must be 64 hexadecimal"),
        (with_ann(tokens=[entry("a"), entry("a")]), r"tokens\[1\].sha256 must be there once"),
        (with_ann(tokens=[entry("a", expires="soon")]), r"tokens\[0\].expires must be a date"),
        (with_ann(identities=["Ann"]), r"identities\[0\] must be dns:NAME, .*, got 'Ann' in"),
        (with_ann(identities=["cn:A", "cn:A"]), r"identities\[1\] must be there once, got 'cn:A'"),
        ("- a: [", "auth.yaml is not YAML: line 1"),
        (SECRET, "auth.yaml must hold keys and values$"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path, content, problem):
    with pytest.raises(AuthFileError, match=problem) as caught:
        read(tmp_path, content)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(AuthFileError, match=r"^auth_file: cannot read .*: No such file"):
        read_auth_file(tmp_path / "no.yaml")


class TestCommand:
    def test_a_token_and_its_line(self, capsys, tmp_path):
        assert main(["create", "--expires", "2030-01-02", "--note", "Ann's laptop"]) == 0
        out = capsys.readouterr().out
        token = out.splitlines()[0].rpartition(" ")[2]
        line = out.splitlines()[-1]
        head = "principals:\n  ann:\n    rights: [score]\n    tokens:\n"
        principals = read(tmp_path, head + line + "\n")
        assert principals.by_token(token, now=1.9e9 - 1e7).name == "ann"
        with pytest.raises(Unauthenticated):
            principals.by_token(token, now=1.9e9)
        assert out.count(token) == 1

    def test_a_token_for_a_file(self, capsys, tmp_path):
        path = tmp_path / "ann.token"
        assert main(["create", "--out", str(path)]) == 0
        token = path.read_text().strip()
        out = capsys.readouterr().out
        assert token not in out
        assert digest_of(token).hex() in out
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert main(["create", "--out", str(path)]) == 1
        assert capsys.readouterr().err == f"deqlm token: cannot write {path}: File exists\n"
        assert path.read_text().strip() == token

    @pytest.mark.parametrize(
        "arguments",
        [[], ["delete"], ["create", "--expires", "soon"], ["create", "--note", "a\nb"]],
    )
    def test_usage_errors(self, capsys, arguments):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1

    def test_tokens_are_long_and_new(self):
        tokens = {new_token() for _ in range(100)}
        assert len(tokens) == 100
        assert {len(token) for token in tokens} == {len("deqlm_") + 43}
