"""The service of one machine: a server, and a dispatcher beside it that is kept alive."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import resource
import signal
import socket
import sys
import time
from types import FrameType

import uvicorn
from rich.text import Text

from mpsearch.cli.console import show
from mpsearch.errors import DependencyError, InputError
from mpsearch_api import logs
from mpsearch_api.execution.executors import check_executor
from mpsearch_api.http import create_app
from mpsearch_api.http.borders import is_loopback
from mpsearch_api.http.service import Service
from mpsearch_api.settings import Settings

__all__ = ["DispatcherKeeper", "serve"]

GRACE_SECONDS = 10
MOST_FILES = 65_536
SWITCH_SECONDS = 0.0005
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
STEADY_SECONDS = 60.0
DISPATCHER = "mpsearch_api.execution.dispatcher"


def serve(settings: Settings, host: str, port: int, *, dispatch: bool, page: bool) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: Of the service.
        host: Address to listen on.
        port: Port; 0 takes a free one.
        dispatch: Whether jobs are run here.
        page: Whether the web page is served, where its package is installed.
    """
    logs.configure_logs(settings)
    if dispatch:
        check_executor(settings)  # or the dispatcher would be started again and again
    # Threads that wait for the database hand the interpreter back sooner than every 5 ms, so that
    # the event loop answers the others meanwhile.
    sys.setswitchinterval(SWITCH_SECONDS)
    _raise_open_files()
    listener = _listening(host, port)
    app = create_app(
        settings, host=host, page=page and importlib.util.find_spec("nicegui") is not None
    )
    service: Service = app.state.service
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # the application logs its requests itself
        server_header=False,
        # A header that names another client must not make it look like this machine.
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        lifespan="on",
    )
    server = _Server(config, service)
    _announce(service, listener)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_serve(server, listener, DispatcherKeeper() if dispatch else None))
    service.store.close()


async def _serve(server: _Server, listener: socket.socket, keeper: DispatcherKeeper | None) -> None:
    # uvicorn passes a signal on when it has ended; without these that would end us in its place,
    # before the dispatcher has given its jobs back.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)
    # Of the two, whichever ends first ends the other; an error of either comes out.
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    keeping = asyncio.create_task(keeper.run() if keeper is not None else asyncio.Event().wait())
    try:
        await asyncio.wait([serving, keeping], return_when=asyncio.FIRST_COMPLETED)
    finally:
        server.should_exit = True
        keeping.cancel()
        await asyncio.wait([serving, keeping])
    for task in (serving, keeping):
        if not task.cancelled():
            task.result()


class _Server(uvicorn.Server):
    """Ends streams and long polls first, so that connections can close."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._service.close_streams)


class DispatcherKeeper:
    """Keeps a dispatcher running as long as the server runs.

    It is started from the main thread, since the kernel ends a child with the thread that started
    it (PR_SET_PDEATHSIG), and told to end with SIGTERM, upon which it puts its jobs back.
    """

    def __init__(self, command: tuple[str, ...] = (sys.executable, "-P", "-m", DISPATCHER)) -> None:
        """Keep the command.

        Args:
            command: What to run.
        """
        self._command = command
        self._log = logs.get("serve")
        self.process: asyncio.subprocess.Process | None = None
        self.starts = 0

    async def run(self) -> None:
        """Start the dispatcher, and again when it ends, until this is cancelled."""
        pause = FIRST_PAUSE
        try:
            while True:
                began = time.monotonic()
                self.process = await asyncio.create_subprocess_exec(
                    *self._command,
                    stdin=asyncio.subprocess.DEVNULL,
                    env=os.environ | {"MPSEARCH_DISPATCHER_PARENT": str(os.getpid())},
                    # Ctrl-C is for the server alone, which then ends the dispatcher gently.
                    start_new_session=True,
                )
                self.starts += 1
                code = await self.process.wait()
                if time.monotonic() - began > STEADY_SECONDS:
                    pause = FIRST_PAUSE
                self._log.error("dispatcher ended; it is started again", code=code, seconds=pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        finally:
            await self._end()

    async def _end(self) -> None:
        process = self.process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(GRACE_SECONDS):
                await process.wait()
        except TimeoutError:
            self._log.error("dispatcher did not end in time and is killed", seconds=GRACE_SECONDS)
            process.kill()
            await process.wait()


def _raise_open_files() -> None:
    """Take as many descriptors as are allowed: every waiting client and idle connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except socket.gaierror as error:
        listener.close()
        raise InputError(f"--host {host!r} is no address of this machine: {error}") from error
    except OSError as error:
        listener.close()
        raise DependencyError(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another with --port"
        ) from error
    listener.listen(2048)
    listener.set_inheritable(False)
    return listener


def _announce(service: Service, listener: socket.socket) -> None:
    """Say where the service is, and who may use it."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    settings = service.settings
    show(Text(f"mpsearch serves on http://{shown}:{port} (reference at /docs)", style="bold"))
    show(Text(f"data in {settings.data_dir.absolute()}; Ctrl-C ends it"))
    has_keys = service.store.keys.any()
    if is_loopback(service.host) and settings.open_mode is not False:
        if settings.open_mode or not has_keys:
            show(
                Text(
                    "OPEN MODE: everyone on this machine may use the service without a key. "
                    "`mpsearch keys create NAME` ends that.",
                    style="bold yellow",
                )
            )
    elif not has_keys:
        show(Text("No key exists, so nobody can use it yet: mpsearch keys create NAME", "yellow"))
    if not is_loopback(service.host):
        show(Text("Keys travel in clear text: put a TLS proxy in front.", style="yellow"))
