"""A program in the place of the Python that has vLLM: it looks at folders and serves `/health`, and notes how it was started and ended."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

_PROGRAM = """#!{python}
import http.server, json, os, signal, sys
from pathlib import Path

notes = Path({notes!r})
told = sys.argv[1:]
if told[0] == "-c":
    sys.exit({missing})
if told[:3] == ["-m", "vllm_eft.serve", "check"]:
    print("a line of vLLM's own")
    print(json.dumps({{"vllm": "0.32.0", "vllm_eft": "0.1.0", "refused": {refused!r}}}))
    sys.exit()
folder = Path(told[told.index("--model") + 1])
told = {{"arguments": told, "environment": dict(os.environ), "files": sorted(path.name for path in folder.iterdir())}}
notes.write_text(json.dumps(told))


class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        if {ends!r} is not None:
            os._exit({ends!r})

    def log_message(self, *_):
        pass


def end(number, frame):
    notes.write_text(json.dumps({{**told, "signal": signal.Signals(number).name}}))
    os._exit(7)


for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, end)
arguments = told["arguments"]
port = int(arguments[arguments.index("--port") + 1])
http.server.HTTPServer((arguments[arguments.index("--host") + 1], port), Health).serve_forever()
"""


class StandIn:
    r"""
    Args:
        folder (`Path`): Where the program and its notes lie.
        missing (`int`, *optional*, defaults to 0): Its status when it is asked whether it has the plugin.
        refused (`str`, *optional*): Why it refuses every folder.
        ends (`int`, *optional*): Its status as a server that ends by itself, as soon as it was asked whether it serves.
    """

    def __init__(self, folder: Path, *, missing: int = 0, refused: str | None = None, ends: int | None = None) -> None:
        self.notes, program = folder / "notes.json", folder / "python"
        program.write_text(
            _PROGRAM.format(python=sys.executable, notes=str(self.notes), missing=missing, refused=refused, ends=ends)
        )
        program.chmod(0o755)
        self.path = str(program)

    def told(self) -> dict[str, Any]:
        """How it was started, and by which signal it ended."""
        return json.loads(self.notes.read_text())

    def arguments(self) -> dict[str, str]:
        """Its options, by name; of one that is there several times, the last."""
        given = self.told()["arguments"]
        return {name: value for name, value in zip(given, [*given[1:], ""], strict=True) if name.startswith("--")}


def raise_in(number: int) -> None:
    """Send this process a signal."""
    os.kill(os.getpid(), number)
