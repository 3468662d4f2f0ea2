"""Every decoder of bytes that the project has."""

from tests.fuzz import answers, files, loads, requests, sessions
from tests.fuzz.target import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        *requests.TARGETS,
        *files.TARGETS,
        *answers.TARGETS,
        *sessions.TARGETS,
        *loads.TARGETS,
    )
}
