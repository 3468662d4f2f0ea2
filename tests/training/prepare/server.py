"""A real HTTP server that knows ranges, and can be told to misbehave."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


@dataclass
class Site:
    """Files by path; what was asked for; and how to misbehave."""

    files: dict[str, bytes]
    url: str = ""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    cut_after: list[int] = field(default_factory=list)
    """Bytes after which the next answers end too early, one for each."""
    ranges: bool = True
    shift: int = 0
    """How far beside the asked range an answer begins."""

    def ranges_of(self, path: str) -> list[str | None]:
        return [span for asked, span in self.asked if asked == path]


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Site]:
    site = Site(files)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self, site)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answer(handler: BaseHTTPRequestHandler, site: Site) -> None:
    asked = handler.headers.get("Range")
    site.asked.append((handler.path, asked))
    data = site.files.get(handler.path)
    if data is None:
        handler.send_error(404)
        return
    begin = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and site.ranges else 0
    if begin >= len(data) > 0:
        handler.send_response(416)
        handler.send_header("Content-Range", f"bytes */{len(data)}")
        handler.end_headers()
        return
    if begin:
        handler.send_response(206)
        handler.send_header(
            "Content-Range", f"bytes {begin + site.shift}-{len(data) - 1}/{len(data)}"
        )
    else:
        handler.send_response(200)
    handler.send_header("Content-Length", str(len(data) - begin))
    handler.end_headers()
    end = begin + site.cut_after.pop(0) if site.cut_after else len(data)
    with suppress(ConnectionError):  # who asked may have seen enough
        handler.wfile.write(data[begin:end])
