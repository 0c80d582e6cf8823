"""A small server that speaks the Hub's protocol to the real client, and can be told to misbehave."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

TOKEN = "hf_goodtoken"


@dataclass
class Repository:
    """Commits by sha, branches by name; who may read it."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main", deleted: Sequence[str] = ()) -> str:
        base = self.commits.get(self.branches.get(branch, self.branches.get("main", "")), {})
        content = {name: data for name, data in {**base, **files}.items() if name not in deleted}
        listing = json.dumps({name: hashlib.sha1(data).hexdigest() for name, data in sorted(content.items())})
        sha = hashlib.sha1(f"{len(self.commits)}{listing}".encode()).hexdigest()
        if content == base and branch in self.branches:
            return self.branches[branch]
        self.commits[sha] = content
        self.branches[branch] = sha
        return sha

    def files(self, revision: str) -> dict[str, bytes] | None:
        return self.commits.get(self.branches.get(revision, revision))


@dataclass
class Hub:
    """Repositories, the faults to inject, and a log of the requests."""

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)  # file name -> fault, for GET (or "head:NAME" for HEAD)
    commit_fault: bool = False
    answers: dict[str, str] = field(default_factory=dict)  # part of a path -> "STATUS" or "html", for any request
    requests: list[str] = field(default_factory=list)
    on_request: Callable[[str, str], None] | None = None  # called with the request's token and path; may wait
    lock: threading.Lock = field(default_factory=threading.Lock)


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def reply(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, length: int | None = None):
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def reply_json(self, value: object, status: int = 200) -> None:
        self.reply(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, code: str) -> None:
        self.reply(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code, "Content-Type": "application/json"})

    def arrives(self) -> str | None:
        """Notes a request and returns its path, or answers it as it was told to."""
        path = unquote(self.path.split("?")[0])
        if self.hub.on_request is not None:
            self.hub.on_request(self.headers.get("Authorization", ""), f"{self.command} {path}")
        self.hub.requests.append(f"{self.command} {path}")
        for part, answer in self.hub.answers.items():
            if part in path:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if answer == "html":
                    self.reply(200, b"<html>Welcome to the airport!</html>", {"Content-Type": "text/html"})
                else:
                    self.reply(int(answer), b"{}", {"Content-Type": "application/json"})
                return None
        return path

    def repository(self, repo_id: str) -> Repository | None:
        """Finds a repository, or refuses the request as the Hub does."""
        repository = self.hub.repositories.get(repo_id)
        trusted = self.headers.get("Authorization", "").startswith(f"Bearer {TOKEN}")
        if repository is None or (repository.private and not trusted):
            self.refuse(404 if trusted else 401, "RepoNotFound")
            return None
        if repository.gated and not trusted:
            self.refuse(403, "GatedRepo")
            return None
        return repository

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.arrives()
        if path is None:
            return None
        if match := re.fullmatch(r"/(\w+/[\w.-]+)/resolve/([^/]+)/(.+)", path):
            repository = self.repository(match[1])
            if repository is not None:
                self.file(repository, match[2], match[3])
        elif match := re.fullmatch(r"/api/models/(\w+/[\w.-]+)(?:/(tree|revision)/([^/]+))?", path):
            repository = self.repository(match[1])
            if repository is None:
                return None
            revision = match[3] or "main"
            files = repository.files(revision)
            if files is None:
                return self.refuse(404, "RevisionNotFound")
            entries = sorted((files or {}).items())
            if match[2] == "tree":
                blob = [{"type": "file", "path": n, "size": len(d), "oid": git_oid(d)} for n, d in entries]
                return self.reply_json(blob)
            sha = repository.branches.get(revision, revision)
            self.reply_json(
                {
                    "id": match[1],
                    "sha": sha,
                    "private": repository.private,
                    "siblings": [{"rfilename": n} for n, _ in entries],
                }
            )
        else:
            self.refuse(404, "EntryNotFound")
        return None

    def file(self, repository: Repository, revision: str, name: str) -> None:
        files = repository.files(revision)
        if files is None:
            return self.refuse(404, "RevisionNotFound")
        if name not in files:
            return self.refuse(404, "EntryNotFound")
        data = files[name]
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": repository.branches.get(revision, revision),
            "Accept-Ranges": "bytes",
        }
        fault = self.hub.faults.get(f"head:{name}" if self.command == "HEAD" else name)
        if fault == "wrong size":
            return self.reply(200, data, {**headers, "X-Linked-Size": str(len(data) + 1)})
        if fault == "html":
            return self.reply(200, b"<html>Welcome to the airport!</html>", {"Content-Type": "text/html"})
        if fault == "no commit header":
            return self.reply(200, data, {"ETag": headers["ETag"]})
        if fault and fault.isdigit():
            return self.reply(int(fault), b"busy")
        if fault == "reset":
            # the connection ends with a RST instead of an answer
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return None
        if fault == "stall":
            time.sleep(3)
        status = 200
        if (span := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))) and self.command == "GET":
            start = int(span[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data, status = data[start:], 206
        if fault == "wrong bytes":
            data = data[:-64] + bytes(b ^ 0x40 for b in data[-64:])
        if fault == "cut" and self.command == "GET":
            self.close_connection = True
            return self.reply(status, data[: len(data) // 2], headers, length=len(data))
        return self.reply(status, data, headers)

    def do_POST(self) -> None:
        path = self.arrives()
        if path is None:
            return None
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.headers.get("Authorization", "").startswith(f"Bearer {TOKEN}"):
            return self.refuse(401, "RepoNotFound")
        if path == "/api/validate-yaml":  # the client asks before it commits a README
            return self.reply_json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            wanted = json.loads(body)
            repo_id = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            if repo_id in self.hub.repositories:
                return self.reply_json({"error": "exists", "url": f"{self.hub.address}/{repo_id}"}, 409)
            repository = Repository(private=bool(wanted.get("private") or wanted.get("visibility") == "private"))
            repository.commit({".gitattributes": b""})
            self.hub.repositories[repo_id] = repository
            return self.reply_json({"url": f"{self.hub.address}/{repo_id}", "id": repo_id})
        match = re.fullmatch(r"/api/models/(\w+/[\w.-]+)/(preupload|commit|branch|tag)/(.+)", path)
        if match is None:
            return self.refuse(404, "EntryNotFound")
        repository = self.repository(match[1])
        if repository is None:
            return None
        if match[2] == "branch":
            if match[3] in repository.branches:
                return self.reply_json({"error": "Reference already exists"}, 409)
            repository.branches[match[3]] = repository.branches["main"]
            return self.reply_json({})
        if match[2] == "tag":
            with self.hub.lock:
                if json.loads(body)["tag"] in repository.branches:
                    return self.reply_json({"error": "Reference already exists"}, 409)
                repository.branches[json.loads(body)["tag"]] = match[3]
            return self.reply_json({})
        if match[2] == "preupload":
            files = repository.files(match[3]) or {}
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "regular",
                    "shouldIgnore": False,
                    "oid": git_oid(files[f["path"]]) if f["path"] in files else None,
                }
                for f in json.loads(body)["files"]
            ]
            return self.reply_json({"files": modes})
        if self.hub.commit_fault:
            return self.reply(500, b"the disk is on fire")
        lines = [json.loads(line) for line in body.splitlines()]
        added = {e["value"]["path"]: base64.b64decode(e["value"]["content"]) for e in lines if e["key"] == "file"}
        deleted = [e["value"]["path"] for e in lines if e["key"] == "deletedFile"]
        parent = lines[0]["value"].get("parentCommit")
        with self.hub.lock:
            if parent is not None and parent != repository.branches.get(match[3]):
                return self.reply_json({"error": "A commit has happened since. Please refresh and try again."}, 412)
            oid = repository.commit(added, match[3], deleted)
        return self.reply_json(
            {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.address}/{match[1]}/commit/{oid}"}
        )


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
