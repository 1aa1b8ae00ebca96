"""The part of the Hub's HTTP interface that loading and publishing use, on localhost; every request is kept, to see what was sent where."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import transformers.utils.hub
from huggingface_hub.utils._http import close_session as reset_sessions


@dataclass
class Request:
    method: str
    path: str
    token: str | None


@dataclass
class FakeHub:
    """Repositories by id: their commits, oldest first, each a commit's files."""

    repos: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    private: dict[str, str] = field(default_factory=dict)  # by repository, the token that reads it
    blobs: dict[str, bytes] = field(default_factory=dict)
    url: str = ""

    def add(self, repo_id: str, folder: Path) -> str:
        """A new commit with a folder's files; its id."""
        return self.commit(
            repo_id, {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        )

    def commit(self, repo_id: str, files: dict[str, bytes]) -> str:
        commits = self.repos.setdefault(repo_id, {})
        commit = hashlib.sha1(f"{repo_id} {len(commits)}".encode()).hexdigest()
        commits[commit] = files
        return commit

    def head(self, repo_id: str) -> str:
        return list(self.repos[repo_id])[-1]

    def files(self, repo_id: str, revision: str) -> dict[str, bytes] | None:
        commits = self.repos[repo_id]
        return commits.get(self.head(repo_id) if revision == "main" else revision)

    def tokens(self, repo_id: str) -> set[str | None]:
        """What was sent with the requests about a repository."""
        return {request.token for request in self.requests if f"/{repo_id}/" in f"{request.path}/"}


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self, status: int, body: bytes | dict[str, Any] | list[Any] = b"", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _begin(self) -> tuple[list[str], bytes]:
        path = unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization")
        self.hub.requests.append(Request(self.command, path, token.removeprefix("Bearer ") if token else None))
        return path.strip("/").split("/"), self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _missing(self, what: str) -> None:
        self._answer(404, {"error": what}, X_Error_Code=what, X_Error_Message=what)

    def _is_closed(self, repo_id: str) -> bool:
        needed = self.hub.private.get(repo_id)
        return repo_id not in self.hub.repos or (needed is not None and self.headers.get("Authorization") != f"Bearer {needed}")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts, _ = self._begin()
        if parts[:2] == ["api", "models"]:
            self._about("/".join(parts[2:4]), parts[4:])
        elif "resolve" in parts:
            self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self._missing("EntryNotFound")

    def _about(self, repo_id: str, rest: list[str]) -> None:
        if self._is_closed(repo_id):
            return self._answer(401, {"error": "Repository Not Found"}, X_Error_Code="RepoNotFound")
        revision = rest[1] if len(rest) > 1 else "main"
        files = self.hub.files(repo_id, revision)
        if files is None:
            return self._missing("RevisionNotFound")
        if rest[:1] == ["tree"]:
            within = "/".join([*rest[2:], ""])
            found = [{"type": "file", "path": p, "size": len(c), "oid": "0"} for p, c in files.items() if p.startswith(within)]
            return self._answer(200, found) if found else self._missing("EntryNotFound")
        commit = self.hub.head(repo_id) if revision == "main" else revision
        return self._answer(200, {"id": repo_id, "sha": commit, "siblings": [{"rfilename": path} for path in files]})

    def _file(self, repo_id: str, revision: str, path: str) -> None:
        if self._is_closed(repo_id):
            return self._answer(401, {"error": "Repository Not Found"}, X_Error_Code="RepoNotFound")
        files = self.hub.files(repo_id, revision)
        if files is None:
            return self._missing("RevisionNotFound")
        commit = self.hub.head(repo_id) if revision == "main" else revision
        if path not in files:
            return self._answer(404, {"error": "no"}, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        etag = hashlib.sha256(files[path]).hexdigest()
        return self._answer(200, files[path], X_Repo_Commit=commit, ETag=f'"{etag}"')

    def do_POST(self) -> None:
        parts, body = self._begin()
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            repo_id = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if repo_id in self.hub.repos:
                return self._answer(409, {"error": "exists", "url": f"{self.hub.url}/{repo_id}"})
            self.hub.commit(repo_id, {".gitattributes": b""})
            return self._answer(200, {"url": f"{self.hub.url}/{repo_id}", "name": repo_id, "id": repo_id})
        if parts == ["api", "validate-yaml"]:
            return self._answer(200, {"errors": [], "warnings": []})
        if parts[-3:] == ["lfs", "objects", "batch"]:
            uploads = [
                {**each, "actions": {"upload": {"href": f"{self.hub.url}/storage/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            return self._answer(200, {"transfer": "basic", "objects": uploads})
        if "preupload" in parts:
            asked = [each["path"] for each in json.loads(body)["files"]]
            modes = [
                {"path": path, "uploadMode": "lfs" if path.endswith(".safetensors") else "regular", "shouldIgnore": False}
                for path in asked
            ]
            return self._answer(200, {"files": modes})
        if "commit" in parts:
            return self._commit("/".join(parts[2:4]), body)
        return self._missing("EntryNotFound")

    def _commit(self, repo_id: str, body: bytes) -> None:
        files = dict(self.hub.repos[repo_id][self.hub.head(repo_id)])
        for line in body.decode().splitlines():
            step = json.loads(line)
            value = step["value"]
            if step["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif step["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif step["key"] == "deletedFile":
                del files[value["path"]]
        commit = self.hub.commit(repo_id, files)
        self._answer(200, {"commitUrl": f"{self.hub.url}/{repo_id}/commit/{commit}", "commitOid": commit})

    def do_PUT(self) -> None:
        parts, body = self._begin()
        self.hub.blobs[parts[-1]] = body
        self._answer(200)


@contextlib.contextmanager
def serving(cache: Path, stored_token: str | None = None) -> Iterator[FakeHub]:
    """A fake Hub that `huggingface_hub` and transformers of this process talk to instead of the real one."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    constants = huggingface_hub.constants
    (cache / "token").parent.mkdir(parents=True, exist_ok=True)
    if stored_token is not None:
        (cache / "token").write_text(stored_token)
    changed = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(cache),
        "HF_TOKEN_PATH": str(cache / "token"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
    }
    before = {name: getattr(constants, name) for name in changed}
    try:
        for name, value in changed.items():
            setattr(constants, name, value)
        transformers.utils.hub._hf_api = None
        reset_sessions()
        yield hub
    finally:
        for name, value in before.items():
            setattr(constants, name, value)
        transformers.utils.hub._hf_api = None
        reset_sessions()
        server.shutdown()
        server.server_close()
