"""A small Hub on a local port: what the real client asks for of repositories that are folders of this machine.

It lists, tells of revisions, serves files with ETag and ranges, large ones by a redirect, and breaks off where told.
"""

import contextlib
import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOKEN = "hf_right"


@dataclass
class FakeRepository:
    """`revisions`: folder by branch or tag. `private`, `gated`: closed without TOKEN, the latter only its files."""

    revisions: dict[str, Path]
    private: bool = False
    gated: bool = False

    def commit(self, revision: str) -> str | None:
        """The commit that a branch, a tag or a commit means."""
        commits = {name: hashlib.sha1(str(folder).encode()).hexdigest() for name, folder in self.revisions.items()}
        return commits.get(revision) or (revision if revision in commits.values() else None)

    def folder(self, commit: str) -> Path:
        return next(folder for name, folder in self.revisions.items() if self.commit(name) == commit)


@dataclass
class FakeHub:
    """`requests`: method, path and range of every request. `cut`: how many answers break off in the middle, by the name
    of the file. `held`: names of files that stop in the middle until they are taken out. `down`: nothing is answered.
    """

    repositories: dict[str, FakeRepository]
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    cut: dict[str, int] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    down: bool = False

    def __enter__(self) -> "FakeHub":
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fetched(self) -> set[str]:
        """Names of the files whose content was asked for."""
        asked = (path for method, path, _ in self.requests if method == "GET" and not path.startswith("/api/"))
        return {path.rpartition("/")[2] for path in asked}


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if self.hub.down:
            self._refuse(503, "Down")
        elif match := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/(revision|tree)/(.+)", path):
            self._describe(match[1], match[2], match[3])
        elif match := re.fullmatch(r"/([\w.-]+/[\w.-]+)/(resolve|large)/([^/]+)/(.+)", path):
            self._file(match[1], match[3], match[4], large=match[2] == "large")
        else:
            self._refuse(404, "NotFound")

    def _repository(self, name: str, *, of_files: bool) -> FakeRepository | None:
        """The repository, if it is there and open to who asks; else the request is answered."""
        repository = self.hub.repositories.get(name)
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.private and not known):
            # The Hub does not tell strangers whether there is such a repository.
            self._refuse(404 if known else 401, "RepoNotFound")
        elif repository.gated and of_files and not known:
            self._refuse(401, "GatedRepo")
        else:
            return repository
        return None

    def _describe(self, name: str, what: str, revision: str) -> None:
        repository = self._repository(name, of_files=False)
        if repository is None:
            return
        commit = repository.commit(revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound")
            return
        folder = repository.folder(commit)
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        if what == "revision":
            siblings = [{"rfilename": str(file.relative_to(folder)), "size": file.stat().st_size} for file in files]
            self._send(200, json.dumps({"id": name, "sha": commit, "siblings": siblings, "tags": []}).encode())
            return
        self._send(200, json.dumps([_entry(folder, file) for file in files]).encode())

    def _file(self, name: str, revision: str, path: str, *, large: bool) -> None:
        repository = self._repository(name, of_files=True)
        if repository is None:
            return
        commit = repository.commit(revision)
        if commit is None or not (repository.folder(commit) / path).is_file():
            self._refuse(404, "RevisionNotFound" if commit is None else "EntryNotFound")
            return
        content = (repository.folder(commit) / path).read_bytes()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_etag(content)}"', "Accept-Ranges": "bytes"}
        if path.endswith(".safetensors") and not large:
            linked = {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
            self._send(302, b"", headers | linked | {"Location": f"/{name}/large/{revision}/{path}"})
            return
        start = int(match[1]) if (match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206 if start else 200, content[start:], headers, name=path)

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, *, name: str = "") -> None:
        self.send_response(status)
        for header, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        half = len(body) // 2
        with contextlib.suppress(OSError):  # who asked may be gone
            self.wfile.write(body[:half])
            while name in self.hub.held:
                time.sleep(0.01)
            if self.hub.cut.get(name, 0):
                self.hub.cut[name] -= 1
                self.close_connection = True
            else:
                self.wfile.write(body[half:])


def _etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _entry(folder: Path, file: Path) -> dict[str, object]:
    content = file.read_bytes()
    entry = {"type": "file", "path": str(file.relative_to(folder)), "size": len(content), "oid": _etag(content)[:40]}
    if file.suffix == ".safetensors":
        entry["lfs"] = {"oid": _etag(content), "size": len(content), "pointerSize": 134}
    return entry
