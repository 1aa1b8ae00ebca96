"""A server in a process of its own: signals, statuses, and what is left of it."""

from __future__ import annotations

import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hf_eft.programs import child as room
from hf_eft.programs.child import Child, answers

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes in groups, as vLLM's are")

# Serves until it is told to end; says so in a file.
SERVER = """
import os, pathlib, signal, subprocess, sys
folder = pathlib.Path(sys.argv[1])
def end(number, frame):
    (folder / signal.Signals(number).name).touch()
    {end}
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, end)
grandchild = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
(folder / "grandchild").write_text(str(grandchild.pid))
(folder / "up.new").touch()
(folder / "up.new").rename(folder / "up")
{then}
"""


def server(folder: Path, end: str = "os._exit(7)", then: str = "while True: signal.pause()") -> Child:
    return Child([sys.executable, "-c", SERVER.format(end=end, then=then), str(folder)], os.environ)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(room, "_LOOK", 0.01)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    assert {number: signal.getsignal(number) for number in before} == before


def until(condition: Callable[[], bool]) -> None:
    """Wait for something; the suite's limit ends a test that waits for ever."""
    while not condition():
        time.sleep(0.01)


def wait_until_gone(folder: Path) -> None:
    """Until what the server started has ended."""
    stat = Path(f"/proc/{(folder / 'grandchild').read_text()}/stat")

    def is_gone() -> bool:
        try:
            return stat.read_text().rpartition(")")[2].split()[0] == "Z"  # whoever inherits it may take its time to bury it
        except (FileNotFoundError, ProcessLookupError):
            return True

    until(is_gone)


@pytest.mark.parametrize(("sent", "got"), [("SIGTERM", "SIGTERM"), ("SIGINT", "SIGINT"), ("SIGHUP", "SIGTERM")])
def test_a_signal_is_passed_on_and_the_status_comes_back(sent: str, got: str, tmp_path: Path) -> None:
    child = server(tmp_path)
    status = child.run((tmp_path / "up").exists, lambda: os.kill(os.getpid(), signal.Signals[sent]))
    assert (status, child.told, child.served) == (7, True, True)
    assert (tmp_path / got).exists()
    wait_until_gone(tmp_path)


def test_a_second_signal_ends_what_does_not_end(tmp_path: Path) -> None:
    def up() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        threading.Thread(target=again, daemon=True).start()

    def again() -> None:
        until((tmp_path / "SIGINT").exists)
        os.kill(os.getpid(), signal.SIGINT)

    child = server(tmp_path, end="pass")
    assert child.run((tmp_path / "up").exists, up) == 128 + signal.SIGKILL
    wait_until_gone(tmp_path)


@pytest.mark.parametrize(("then", "status"), [("sys.exit(5)", 5), ("sys.exit(0)", 1), ("os.kill(os.getpid(), 9)", 137)])
def test_one_that_ends_by_itself_has_failed(then: str, status: int, tmp_path: Path) -> None:
    child = server(tmp_path, then=then)
    assert child.run(lambda: False, lambda: pytest.fail("it never served")) == status
    assert (child.told, child.served) == (False, False)
    wait_until_gone(tmp_path)


def test_it_knows_when_whoever_started_it_is_gone(tmp_path: Path) -> None:
    """Killed in a way that it cannot pass on: the standard input of the server ends."""
    code = f"""
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("child", {room.__file__!r})
child = importlib.util.module_from_spec(spec)
spec.loader.exec_module(child)
server = "import sys, pathlib; pathlib.Path({str(tmp_path / "up")!r}).touch(); sys.stdin.read(); pathlib.Path(sys.argv[1]).touch()"
up = {str(tmp_path / "up")!r}
child.Child([sys.executable, "-c", server, {str(tmp_path / "ended")!r}], os.environ).run(
    lambda: os.path.exists(up), lambda: os.kill(os.getpid(), 9)
)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    until((tmp_path / "ended").exists)


def test_a_server_answers_when_it_says_so() -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 503)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as served:
        port = served.server_port
        threading.Thread(target=served.serve_forever, daemon=True).start()
        assert answers("0.0.0.0", port) and answers("127.0.0.1", port)
        assert not answers("127.0.0.1", port, "/other")
        served.shutdown()
    assert not answers("127.0.0.1", port)
