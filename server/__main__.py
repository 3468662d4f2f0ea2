"""``deqlm serve``: read the configuration, serve until told to stop."""

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING

from cli.build import this_build
from server.allocator import keep_large_blocks_apart
from server.config import ServerConfig, ServerConfigError
from server.logs import set_up
from server.options import parse_config

if TYPE_CHECKING:
    from server.app import Server

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2

_log = logging.getLogger("server")


def main(argv: Sequence[str], prog: str = "deqlm serve") -> int:
    """Serve, and return the exit code.

    Args:
        argv: arguments after the command's name.
        prog: the command's name, for messages.
    """
    config = parse_config(argv, prog)
    set_up(config.log_level, config.log_format, has_messages=config.log_messages)
    if config.log_format == "json":
        # gRPC's core writes plain lines of its own, about each handshake that fails.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        problem = _run_until_told(config)
    except ServerConfigError as error:
        return _complain(prog, error, config, EXIT_USAGE)
    return EXIT_OK if problem is None else _complain(prog, problem, config, EXIT_FAILURE)


def _complain(prog: str, problem: object, config: ServerConfig, code: int) -> int:
    """Say why there is no server: where the log is read by machines, as an entry of it."""
    if config.log_format == "json":
        _log.critical("%s", problem)
    else:
        print(f"{prog}: {problem}", file=sys.stderr)
    return code


def _run_until_told(config: ServerConfig) -> Exception | str | None:
    """Serve; what kept it from that, if anything did. Raises ServerConfigError."""
    sources = config.sources()
    config.check_exposure()
    missing = [source for source in sources if not source.path.is_dir()]
    if missing:
        return f"model {missing[0].name} must be a checkpoint folder, got {missing[0].path}"
    return _serve(config)


def _serve(config: ServerConfig) -> Exception | str | None:
    _spare(config)
    keep_large_blocks_apart()
    # Only now: usage errors and --help need not wait for torch.
    import torch

    from deq_model.errors import DeqModelError
    from deq_model.tokenizers.errors import TokenizerError
    from server.app import Server
    from server.security.errors import SecurityFileError
    from server.start import StartError

    build = this_build()
    _log.info(
        "deqlm %s, torch %s, Python %s, models on %s",
        *(build, build.torch, build.python, config.device),
    )
    if config.threads:
        torch.set_num_threads(config.threads)
    try:
        return asyncio.run(_run(Server(config)))
    except (
        StartError,
        ServerConfigError,
        SecurityFileError,
        DeqModelError,
        TokenizerError,
    ) as error:
        return error


def _spare(config: ServerConfig) -> None:
    """Have signals that are requests not end the process before there is somebody to hear them."""
    has_files = config.auth_file is not None or config.tls_cert is not None
    for name in ("SIGUSR1", "SIGUSR2", *(("SIGHUP",) if has_files else ())):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


async def _run(server: "Server") -> str | None:
    """Serve until a signal comes; what is lost with the process, if anything is."""
    began = time.monotonic()
    stop = _stop_signal()
    await server.start()
    if server.has_files and hasattr(signal, "SIGHUP"):
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, loop.run_in_executor, None, server.reload)
    _at_signal("SIGUSR1", server.check)
    _at_signal("SIGUSR2", server.profile)
    loading = asyncio.create_task(server.wait_ready())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()
            settle()
            _announce(server, time.monotonic() - began)
        await stopping
        _log.info("stopping: running calls get %g s to finish", server.config.grace_s)
    finally:
        loading.cancel()
        stopping.cancel()
        await server.stop()
    if server.unsaved:
        return f"stopped; sessions lost, as the store did not take them: {server.unsaved}"
    _log.info("stopped")
    return None


def settle() -> None:
    """Spare the garbage collector what is there for good: modules, weights, descriptors.

    A full collection would go through some half a million objects, every ten seconds under load,
    and nobody would be answered for 150 to 240 ms.
    """
    gc.collect()
    gc.freeze()


def _at_signal(name: str, act: Callable[[], Coroutine[object, object, object]]) -> None:
    """Have something be done whenever a signal comes, where the system has it."""
    if not hasattr(signal, name):
        return
    tasks: set[asyncio.Task[object]] = set()

    def begin() -> None:
        task = asyncio.create_task(act())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    asyncio.get_running_loop().add_signal_handler(getattr(signal, name), begin)


def _stop_signal() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; a second one ends the process at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)

    def take() -> None:
        stop.set()
        for number in signals:
            loop.remove_signal_handler(number)
            # Python's own handler of SIGINT would unwind with a traceback.
            signal.signal(number, signal.SIG_DFL)

    for number in signals:
        loop.add_signal_handler(number, take)
    return stop


def _announce(server: "Server", seconds: float) -> None:
    port = server.metrics_port
    scheme = "http" if server.config.tls_cert is None else "https"
    metrics = "off" if port is None else f"{scheme}://{server.config.metrics_host}:{port}/metrics"
    names = ", ".join(source.name for source in server.config.sources())
    _log.info(
        "ready after %.1f s: serving %s at %s, metrics %s", seconds, names, server.address, metrics
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], "python -m server"))
