"""A server in a process of its own: its signals, how it ends, and when it answers."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

_LOOK = 0.5  # seconds between two looks at a server that starts
_PASSED_ON = ("SIGINT", "SIGTERM", "SIGHUP")
_STDERR = 2


class Child:
    r"""
    A server in a process of its own, and in a group of its own, so that a Ctrl-C reaches it once. What it prints goes to the standard
    error. Its standard input ends with this process, however this one ends.

    Args:
        command (`Sequence[str]`): The command line.
        environment (`Mapping[str, str]`): All of its environment.

    Attributes:
        told (`bool`): Whether a signal was passed on to it.
        served (`bool`): Whether it came to serve.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command, self._environment = list(command), dict(environment)
        self.told = self.served = False

    def run(self, is_up: Callable[[], bool], up: Callable[[], None]) -> int:
        r"""
        Run it to its end. A signal is passed on; a second one kills it and all that it started.

        Args:
            is_up (`Callable[[], bool]`): Asked, until it says so, whether it serves.
            up (`Callable[[], None]`): Called once it does.

        Returns:
            `int`: Its exit status; 128 and the number of the signal that it died of. One that ends well without being told has failed: 1.
        """
        process = subprocess.Popen(
            self._command, env=self._environment, stdin=subprocess.PIPE, stdout=_STDERR, start_new_session=True
        )
        with self._passing_on(process):
            try:
                while (status := _waited(process, _LOOK)) is None:
                    if is_up():
                        self.served = True
                        up()
                        status = process.wait()
                        break
            finally:
                _kill(process)  # whatever it started and left
                process.wait()
                if process.stdin is not None:
                    process.stdin.close()
        if status < 0:
            return 128 - status
        return status or (0 if self.told else 1)

    @contextlib.contextmanager
    def _passing_on(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        def pass_on(number: int, frame: Any) -> None:
            if self.told:
                _kill(process)
            elif process.returncode is None:
                self.told = True
                process.send_signal(signal.SIGTERM if number == getattr(signal, "SIGHUP", None) else number)

        before = {
            each: signal.signal(each, pass_on) for name in _PASSED_ON if (each := getattr(signal, name, None)) is not None
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def answers(host: str, port: int, path: str = "/health") -> bool:
    """Whether a server on this machine answers with 200."""
    asked = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    connection = http.client.HTTPConnection(asked, port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _waited(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
