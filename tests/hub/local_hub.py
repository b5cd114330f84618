"""A Hub on this machine for tests: real clients talk to it over loopback, and it fails when told to.

    with LocalHub(root=tmp_path) as hub:
        hub.add_user("astro", "hf_some_token")
        hub.fail("POST", "/commit/", 500)
        HfApi(endpoint=hub.url, token="hf_some_token").create_repo("astro/model", private=True)

It speaks what `huggingface_hub`, `datasets` and `transformers` call: repositories of models, datasets and Spaces with
immutable commits, branches and tags, LFS, ranges, private repositories, tokens that expire, Collections. Large files
lie in a store of another address, as on the Hub: clients go there by signed links and leave their token behind.

Not there: Xet (set HF_HUB_DISABLE_XET=1), pull requests, discussions, gated repositories.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
import socket
import struct
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

import yaml

PREFIX = {"model": "", "dataset": "datasets/", "space": "spaces/"}
CHUNK = 1 << 20
REGULAR_LIMIT = 10_000_000
"""Bytes; a larger file goes to LFS whatever it is."""
LARGE_ENDINGS = """
7z arrow bin bz2 ckpt gz h5 joblib model msgpack npy npz onnx parquet pickle pkl pt pth rar safetensors tar tgz wasm xz
zip zst
"""
GIT_ATTRIBUTES = "".join(
    f"*.{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in LARGE_ENDINGS.split()
).encode()
"""What a new repository holds; its patterns decide which files go to LFS."""


# ---------------------------------------------------------------- what is kept


@dataclass(frozen=True)
class Stored:
    """One version of a file: git's object id, bytes, and the SHA-256 if it lies in LFS."""

    oid: str
    size: int
    sha256: str | None = None

    @property
    def key(self) -> str:
        """Name of the file that holds the bytes."""
        return self.sha256 or self.oid

    @classmethod
    def large(cls, sha256: str, size: int) -> Stored:
        return cls(git_oid(_pointer(sha256, size)), size, sha256)

    def lfs(self, name: str) -> dict[str, Any] | None:
        """What clients are told of an LFS file; its digest is called `oid` in trees and `sha256` in siblings."""
        if self.sha256 is None:
            return None
        return {name: self.sha256, "size": self.size, "pointerSize": len(_pointer(self.sha256, self.size))}


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: dict[str, Stored]


@dataclass
class Repo:
    kind: str
    id: str
    private: bool
    created: str
    sdk: str | None = None
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    """SHA-256 of what was uploaded to this repository, committed or not."""

    @property
    def path(self) -> str:
        return PREFIX[self.kind] + self.id

    def at(self, revision: str) -> Commit:
        """The commit of a branch, a tag or (the beginning of) a commit's own id."""
        oid = self.branches.get(revision) or self.tags.get(revision)
        found = [oid] if oid else [known for known in self.commits if len(revision) >= 7 and known.startswith(revision)]
        if len(found) != 1:
            raise Refusal(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
        return self.commits[found[0]]

    def history(self, revision: str = "main") -> Iterator[Commit]:
        """The newest commit first."""
        oid: str | None = self.at(revision).oid
        while oid is not None:
            yield self.commits[oid]
            oid = self.commits[oid].parent

    def last_change(self, path: str, revision: str) -> Commit:
        """The commit that gave a file its content at this revision."""
        newest, *older = self.history(revision)
        changed = newest
        for commit in older:
            if commit.files.get(path) != newest.files.get(path):
                break
            changed = commit
        return changed


@dataclass(frozen=True)
class Token:
    user: str
    role: str


@dataclass
class Request:
    """One request as it came; `status` is 0 while it runs and if its connection was dropped."""

    method: str
    path: str  # unquoted, without the query
    query: dict[str, list[str]]
    host: str  # "hub" or "store"
    user: str | None
    range: str | None
    status: int = 0
    bytes_in: int = 0
    bytes_out: int = 0  # of the body


class Refusal(Exception):
    """An answer other than success."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict | None = None, **body: Any):
        super().__init__(message)
        # Both where the Hub says it: clients read the code, and put the header's message into theirs.
        self.status, self.body = status, {"error": message, **body}
        self.headers = {"X-Error-Message": message.encode("ascii", "replace").decode()} | (headers or {})
        if code is not None:
            self.headers["X-Error-Code"] = code


class Dropped(Exception):
    """The connection ends here."""


# ---------------------------------------------------------------- what goes wrong


class Hold:
    """A request that waits: `reached.wait()` until it does, `release()` to let it go on."""

    def __init__(self) -> None:
        self.reached, self._released = threading.Event(), threading.Event()

    def release(self) -> None:
        self._released.set()

    def wait(self) -> None:
        self.reached.set()
        self._released.wait()


@dataclass
class Fault:
    kind: str  # fail, drop, lose, slow, hold
    method: str
    path: str
    times: int
    after: int = 0
    seconds: float = 0.0
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    hold: Hold = field(default_factory=Hold)

    def fits(self, method: str, path: str) -> bool:
        return self.times > 0 and re.fullmatch(self.method, method) is not None and bool(re.search(self.path, path))


# ---------------------------------------------------------------- the Hub


class LocalHub:
    """The server; a context manager.

    Args:
        root: Folder for the bytes of all files, small and large.
        port: Of the Hub, on 127.0.0.1; 0 = any free one. The store of large files takes another.

    `requests` holds everything that was asked for, in order; `faults` what was ordered and has not happened yet;
    `errors` the tracebacks of the server's own mistakes (a test that sees one has found a bug here).
    """

    def __init__(self, root: str | Path, port: int = 0):
        self.root, self._ports = Path(root), [port, 0]
        (self.root / "objects").mkdir(parents=True, exist_ok=True)
        self.lock = threading.RLock()
        self.tokens: dict[str, Token] = {}
        self.expired: set[str] = set()
        self.orgs: dict[str, tuple[str, ...]] = {}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.collections: dict[str, dict[str, Any]] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.errors: list[str] = []
        self._holds: list[Hold] = []
        self.stopping = threading.Event()
        self._key = secrets.token_bytes(32)
        self._servers: list[_Server] = []

    def __enter__(self) -> LocalHub:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen. After `stop`, at the same addresses again and with everything that was there."""
        self.stopping.clear()
        for i, handler in enumerate((_HubHandler, _StoreHandler)):
            self._servers.append(_Server(self, self._ports[i], handler))
            self._ports[i] = self._servers[i].server_address[1]

    def stop(self) -> None:
        """Hang up on everyone; returns when no thread is left."""
        self.stopping.set()
        for hold in self._holds:
            hold.release()
        for server in self._servers:
            server.stop()
        self._servers.clear()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._ports[0]}"

    @property
    def lfs_url(self) -> str:
        """Another host name: clients take the answer of a link to their own host for the file's."""
        return f"http://localhost:{self._ports[1]}"

    # ------------------------------------------------ users

    def add_user(self, name: str, token: str, role: str = "write", orgs: tuple[str, ...] = ()) -> None:
        """A user, or one more token of hers; `role` is what this token may do: "read" or "write"."""
        with self.lock:
            self.tokens[token] = Token(name, role)
            self.orgs[name] = tuple(orgs) or self.orgs.get(name, ())

    def expire(self, token: str) -> None:
        self.expired.add(token)

    def may(self, token: Token | None, namespace: str) -> bool:
        return token is not None and namespace in (token.user, *self.orgs[token.user])

    def environment(self, token: str | None, home: str | Path) -> dict[str, str]:
        """Variables for another process, over its own: logged in with `token` (None = nobody), all caches in `home`."""
        home = Path(home)
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": token or "",
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_DATASETS_CACHE": str(home / "datasets"),
            "HF_MODULES_CACHE": str(home / "modules"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }

    # ------------------------------------------------ faults

    def fail(
        self,
        method: str,
        path: str,
        status: int,
        times: int = 1,
        headers: dict[str, str] | None = None,
        body: bytes | str | dict[str, Any] = b"",
    ) -> None:
        """Answer `status` to the next `times` requests whose method and path fit these regular expressions.

        The path is searched for, unquoted and without its query: `/lfs/` begins those of the store, as in
        `/lfs/datasets/astro/spectra/<sha256>` (uploads) and `/lfs/datasets/astro/spectra/<sha256>/train.parquet`.
        """
        data = json.dumps(body).encode() if isinstance(body, dict) else body.encode() if isinstance(body, str) else body
        self._order(Fault("fail", method, path, times, status=status, headers=headers or {}, body=data))

    def drop(self, method: str, path: str, after: int = 0, times: int = 1) -> None:
        """Cut the connection when `after` bytes of the body have come (PUT, POST) or gone (GET); nothing is kept."""
        self._order(Fault("drop", method, path, times, after=after))

    def lose_answer(self, method: str, path: str, times: int = 1) -> None:
        """Do what is asked, then cut the connection instead of answering."""
        self._order(Fault("lose", method, path, times))

    def slow(self, path: str, seconds: float, times: int = 1) -> None:
        self._order(Fault("slow", ".*", path, times, seconds=seconds))

    def hold(self, method: str, path: str, after: int = 0) -> Hold:
        """Keep the next such request waiting when `after` bytes of its body have come, until released."""
        fault = Fault("hold", method, path, 1, after=after)
        self._holds.append(fault.hold)
        self._order(fault)
        return fault.hold

    def clear_faults(self) -> None:
        with self.lock:
            self.faults.clear()
        for hold in self._holds:
            hold.release()

    def _order(self, fault: Fault) -> None:
        with self.lock:
            self.faults.append(fault)

    def take_faults(self, method: str, path: str) -> list[Fault]:
        """Those that befall this request: at most one of each kind."""
        with self.lock:
            taken: dict[str, Fault] = {}
            for fault in self.faults:
                if fault.kind not in taken and fault.fits(method, path):
                    fault.times -= 1
                    taken[fault.kind] = fault
            self.faults = [fault for fault in self.faults if fault.times > 0]
            return list(taken.values())

    # ------------------------------------------------ content

    def repo(self, repo_id: str, repo_type: str = "model") -> Repo:
        return self.repos[repo_type, repo_id]

    def files(self, repo_id: str, repo_type: str = "model", revision: str = "main") -> dict[str, bytes]:
        """Everything that is visible at a revision."""
        with self.lock:
            found = self.repo(repo_id, repo_type).at(revision).files
        return {path: self.object(stored.key).read_bytes() for path, stored in found.items()}

    def commits(self, repo_id: str, repo_type: str = "model") -> list[str]:
        """Of main, the newest first; the last one is the empty repository's."""
        with self.lock:
            return [commit.oid for commit in self.repo(repo_id, repo_type).history()]

    def put_raw(
        self,
        repo_id: str,
        files: dict[str, bytes],
        repo_type: str = "model",
        token_user: str | None = None,
        private: bool = False,
    ) -> str:
        """Publish around the client and all checks, under any path; makes the repository if need be.

        Returns:
            The commit.
        """
        with self.lock:
            if (repo_type, repo_id) not in self.repos:
                self.create(repo_type, repo_id, private, token_user or repo_id.split("/")[0])
            repo = self.repo(repo_id, repo_type)
            head = repo.at("main")
            stored = {
                path: self.keep(repo, data, goes_to_lfs(self, head, path, data[:512], len(data)))
                for path, data in files.items()
            }
            author = token_user or repo_id.split("/")[0]
            return self.commit(repo, "main", {**head.files, **stored}, "Put", "", author).oid

    def object(self, key: str) -> Path:
        return self.root / "objects" / key

    def keep(self, repo: Repo, data: bytes, large: bool) -> Stored:
        sha256 = hashlib.sha256(data).hexdigest()
        stored = Stored.large(sha256, len(data)) if large else Stored(git_oid(data), len(data))
        path = self.object(stored.key)
        if not path.exists():  # its name is its content: who reads it now must not see half of it
            part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
            part.write_bytes(data)
            part.replace(path)
        if large:
            repo.large.add(sha256)
        return stored

    def create(self, kind: str, repo_id: str, private: bool, author: str, sdk: str | None = None) -> Repo:
        repo = self.repos[kind, repo_id] = Repo(kind, repo_id, private, now(), sdk)
        attributes = self.keep(repo, GIT_ATTRIBUTES, large=False)
        self.commit(repo, "main", {".gitattributes": attributes}, "initial commit", "", author)
        return repo

    def commit(
        self, repo: Repo, branch: str, files: dict[str, Stored], title: str, message: str, author: str
    ) -> Commit:
        """All at once: whoever reads main sees the old commit or this one."""
        with self.lock:
            parent, date = repo.branches.get(branch), now()
            what = [repo.path, len(repo.commits), parent, title, date, sorted((p, f.key) for p, f in files.items())]
            oid = hashlib.sha1(json.dumps(what).encode()).hexdigest()
            commit = repo.commits[oid] = Commit(oid, parent, title, message, author, date, files)
            repo.branches[branch] = oid
            return commit

    def link(self, method: str, path: str, user: str | None) -> str:
        """A signed address in the store; it remembers who asked for it, since clients send it no token."""
        return f"{self.lfs_url}{quote(path)}?" + urlencode(
            {"user": user or "", "signature": self.sign(method, path, user or "")}
        )

    def sign(self, method: str, path: str, user: str) -> str:
        return hmac.new(self._key, f"{method} {path} {user}".encode(), hashlib.sha256).hexdigest()


# ---------------------------------------------------------------- both servers


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that closing waits for them
    request_queue_size = 128

    def __init__(self, hub: LocalHub, port: int, handler: type[_Handler]):
        super().__init__(("127.0.0.1", port), handler)
        self.hub, self.connections, self.guard = hub, set[socket.socket](), threading.Lock()
        self._accepting = threading.Thread(target=self._accept, name=f"local hub {port}", daemon=True)
        self._accepting.start()

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # that of HTTPServer asks a name server who it is, which may take seconds

    def _accept(self) -> None:
        while True:
            try:
                connection, address = self.socket.accept()
            except OSError:
                return
            if self.hub.stopping.is_set():
                connection.close()
                return
            with self.guard:
                self.connections.add(connection)
            self.process_request(connection, address)

    def shutdown_request(self, request: Any) -> None:
        with self.guard:
            self.connections.discard(request)
        super().shutdown_request(request)

    def stop(self) -> None:
        # A caller of its own wakes `accept` at once, on every system.
        with socket.create_connection(self.server_address[:2]):
            self._accepting.join()
        with self.guard:
            for connection in self.connections:
                _hang_up(connection)
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    """One connection: reads bodies in chunks, lets faults happen, answers."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms for an acknowledgement of its headers
    host = "hub"
    server: _Server

    @property
    def hub(self) -> LocalHub:
        return self.server.hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle(self) -> None:
        with suppress(ConnectionError):  # the client went away between two requests
            super().handle()

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()

    def dispatch(self) -> None:
        address = urlsplit(self.path)
        self.raw_path, query = address.path, parse_qs(address.query)
        self.seen = Request(self.command, unquote(address.path), query, self.host, None, self.headers.get("Range"))
        with self.hub.lock:
            self.hub.requests.append(self.seen)
        self.answered, self.lost, self.cut = False, False, None
        self.body = self._read_body()
        try:
            failure = self._befall(self.hub.take_faults(self.command, self.seen.path))
            if failure is None:
                self.answer()
            else:
                self.send(failure.status, failure.body, failure.headers)
        except Refusal as refusal:
            self._finally_reply(refusal.status, refusal.body, refusal.headers)
        except (Dropped, ConnectionError):
            self.close_connection = True
        except Exception:
            self.hub.errors.append(f"{self.command} {self.path}\n{traceback.format_exc()}")
            self.close_connection = True
            if not self.answered:
                self._finally_reply(500, {"error": "the local Hub made a mistake; see its errors"})

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = dispatch

    def answer(self) -> None:
        raise NotImplementedError

    def _befall(self, faults: list[Fault]) -> Fault | None:
        """Let happen what was ordered, or prepare it; gives the failure to answer with."""
        failure = None
        self.marks: list[tuple[int, Callable[[], None]]] = []
        for fault in faults:
            if fault.kind == "slow":
                self.hub.stopping.wait(fault.seconds)
            elif fault.kind == "hold":
                self.marks.append((fault.after, lambda hold=fault.hold: self._wait(hold)))
            elif fault.kind == "lose":
                self.lost = True
            elif fault.kind == "drop" and self.command == "GET":
                self.cut = fault.after
            elif fault.kind == "drop":
                self.marks.append((fault.after, self._reset))
            else:
                failure = fault
        self.marks.sort(key=lambda mark: mark[0])
        return failure

    def _wait(self, hold: Hold) -> None:
        hold.wait()
        if self.hub.stopping.is_set():
            raise Dropped

    def _reset(self) -> None:
        # With this set, closing sends a reset instead of a polite end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise Dropped

    # ------------------------------------------------ the request's body

    def _read_body(self) -> Iterator[bytes]:
        """Chunks as they come; what waits for a number of bytes happens when they are there, or at the end."""
        chunked = self.headers.get("Transfer-Encoding", "").lower() == "chunked"
        left = 0 if chunked else int(self.headers.get("Content-Length", 0))
        more = chunked
        while True:
            while self.marks and self.marks[0][0] <= self.seen.bytes_in:
                self.marks.pop(0)[1]()
            if left == 0 and more:
                left = int(self.rfile.readline().split(b";")[0] or b"0", 16)
                more = left > 0
            if left == 0:
                break
            data = self.rfile.read(min(left, CHUNK, *(mark - self.seen.bytes_in for mark, _ in self.marks)))
            if not data:
                raise ConnectionResetError("the client went away")
            left -= len(data)
            self.seen.bytes_in += len(data)
            if chunked and left == 0:
                self.rfile.readline()
            yield data
        if chunked:
            self.rfile.readline()  # the empty line after the last chunk
        for _, happen in self.marks:
            happen()
        self.marks.clear()

    def drain(self) -> None:
        """What was not read would be taken for the next request."""
        for _ in self.body:
            pass

    def json(self) -> Any:
        try:
            return json.loads(b"".join(self.body))
        except ValueError:
            raise Refusal(400, "the body is not JSON") from None

    # ------------------------------------------------ the answer

    def reply(self, status: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send(status, data, {"Content-Type": "application/json; charset=utf-8"} | (headers or {}))

    def _finally_reply(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        try:
            self.reply(status, body, headers)
        except (Dropped, ConnectionError):
            self.close_connection = True

    def send(self, status: int, data: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self._begin(status, len(data), headers or {})
        if self.command != "HEAD":
            self._count(len(data[: self.cut]))
            self.wfile.write(data[: self.cut])
            self._end(len(data))

    def send_file(self, path: Path, headers: dict[str, str]) -> None:
        """The file, or the part of it that was asked for."""
        size = path.stat().st_size
        start, stop = _asked_range(self.seen.range, size)
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"} | headers
        if self.seen.range and size:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        self._begin(206 if "Content-Range" in headers else 200, stop - start, headers)
        if self.command == "HEAD":
            return
        end = stop if self.cut is None else min(stop, start + self.cut)
        with path.open("rb") as file:
            for position in range(start, end, CHUNK):
                self._count(min(CHUNK, end - position))
                self.connection.sendfile(file, position, min(CHUNK, end - position))
        self._end(stop - start)

    def _begin(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.drain()
        if self.lost:
            self._reset()
        self.answered, self.seen.status = True, status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _count(self, n_bytes: int) -> None:
        # Before they go: a client that has them all must find them counted.
        self.seen.bytes_out += n_bytes

    def _end(self, total: int) -> None:
        if self.cut is not None and self.cut < total:
            self.seen.status = 0
            raise Dropped


# ---------------------------------------------------------------- the store of large files


class _StoreHandler(_Handler):
    """PUT and GET of `/lfs/<repository>/<sha256>[/<path>]`, by signed links only."""

    host = "store"

    def answer(self) -> None:
        match = re.fullmatch(r"/lfs/((?:datasets/|spaces/)?[^/]+/[^/]+)/([0-9a-f]{64})(?:/.*)?", self.seen.path)
        user, signature = (self.seen.query.get(name, [""])[0] for name in ("user", "signature"))
        self.seen.user = user or None
        method = "GET" if self.command == "HEAD" else self.command
        if match is None or not hmac.compare_digest(signature, self.hub.sign(method, self.seen.path, user)):
            raise Refusal(403, "this link is not signed by the Hub")
        kind, repo_id = _kind_and_id(match[1])
        sha256 = match[2]
        repo = self.hub.repos.get((kind, repo_id))
        if repo is None or (method == "GET" and sha256 not in repo.large):
            raise Refusal(404, "no such object")
        if method == "PUT":
            self._receive(repo, sha256)
        else:
            self.send_file(self.hub.object(sha256), {"ETag": f'"{sha256}"'})

    def _receive(self, repo: Repo, sha256: str) -> None:
        """Keep the body if it is whole: under its name only when its digest is right."""
        digest, path = hashlib.sha256(), self.hub.object(f"{sha256}.{secrets.token_hex(4)}.part")
        try:
            with path.open("wb") as file:
                for data in self.body:
                    digest.update(data)
                    file.write(data)
            if digest.hexdigest() != sha256:
                raise Refusal(400, "the content does not have the digest it was announced with")
            path.replace(self.hub.object(sha256))
        finally:
            path.unlink(missing_ok=True)
        with self.hub.lock:
            repo.large.add(sha256)
        self.send(200, headers={"ETag": f'"{digest.hexdigest()}"'})


# ---------------------------------------------------------------- the Hub's own endpoints

Endpoint = Callable[..., None]
ROUTES: list[tuple[str, re.Pattern[str], Endpoint]] = []
OF_REPO = r"/api/(?P<kind>model|dataset|space)s/(?P<repo_id>[^/]+/[^/]+)"
AT_REVISION = r"/(?P<revision>[^/]+)"
PLAIN_REPO = r"/(?P<repo>(?:datasets/|spaces/)?[^/]+/[^/]+?)"


def route(methods: str, pattern: str) -> Callable[[Endpoint], Endpoint]:
    """Names in the pattern become arguments, unquoted; they are cut out of the path as it was sent."""

    def add(endpoint: Endpoint) -> Endpoint:
        ROUTES.extend((method, re.compile(pattern), endpoint) for method in methods.split())
        return endpoint

    return add


class _HubHandler(_Handler):
    def answer(self) -> None:
        self.token = self._log_in()
        self.seen.user = self.token.user if self.token else None
        for method, pattern, endpoint in ROUTES:
            if method == self.command and (match := pattern.fullmatch(self.raw_path)):
                told = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
                if "repo" in told:
                    told["kind"], told["repo_id"] = _kind_and_id(told.pop("repo"))
                endpoint(self, **told)
                return
        raise Refusal(404, f"the local Hub does not know {self.command} {self.seen.path}")

    # ------------------------------------------------ who asks, and what she may

    def _log_in(self) -> Token | None:
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        if not token:
            return None
        known = self.hub.tokens.get(token) if kind == "Bearer" else None
        if known is None or token in self.hub.expired:
            what = f'User Access Token of "{known.user}" is expired' if known else "Invalid username or password."
            # Header and body differ on the Hub too.
            header = {"X-Error-Message": "Invalid credentials in Authorization header"}
            raise Refusal(401, what, headers=header)
        return known

    def user(self) -> Token:
        if self.token is None:
            raise Refusal(401, "Invalid username or password.")
        return self.token

    def check_writer(self, namespace: str) -> Token:
        token = self.user()
        if token.role != "write" or not self.hub.may(token, namespace):
            raise Refusal(403, f"You don't have the rights to write to {namespace}: this token may {token.role}")
        return token

    def readable(self, kind: str, repo_id: str) -> Repo:
        repo = self.hub.repos.get((kind, repo_id))
        # Who may not read a private repository is not told that it exists.
        if repo is None or (repo.private and not self.hub.may(self.token, repo_id.split("/")[0])):
            raise Refusal(404, "Repository not found", code="RepoNotFound")
        return repo

    def writable(self, kind: str, repo_id: str) -> Repo:
        repo = self.readable(kind, repo_id)
        self.check_writer(repo_id.split("/")[0])
        return repo

    def branch(self, repo: Repo, revision: str) -> str:
        if revision not in repo.branches:
            raise Refusal(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
        return revision

    def flag(self, name: str) -> bool:
        return self.seen.query.get(name, [""])[0].lower() in ("1", "true")

    # ------------------------------------------------ users and repositories

    @route("GET", "/api/whoami-v2")
    def whoami(self) -> None:
        token = self.user()
        orgs = [{"type": "org", "name": name, "fullname": name, "roleInOrg": "write"} for name in self._orgs(token)]
        access = {"displayName": f"of {token.user}", "role": token.role, "createdAt": now()}
        auth = {"type": "access_token", "accessToken": access}
        self.reply(200, {"type": "user", "name": token.user, "fullname": token.user, "orgs": orgs, "auth": auth})

    def _orgs(self, token: Token) -> tuple[str, ...]:
        return self.hub.orgs[token.user]

    @route("POST", "/api/repos/create")
    def create_repo(self) -> None:
        told = self.json()
        kind, repo_id = self._named(told)
        author = self.check_writer(repo_id.split("/")[0]).user
        if not re.fullmatch(r"[\w][\w.-]{0,95}", told["name"]) or ".." in told["name"]:
            raise Refusal(400, f"Invalid repository name {told['name']!r}")
        where = {"url": f"{self.hub.url}/{PREFIX[kind]}{repo_id}", "name": repo_id}
        with self.hub.lock:
            if (kind, repo_id) in self.hub.repos:
                raise Refusal(409, f"You already created this {kind} repo", **where)
            private = told.get("visibility") == "private" or bool(told.get("private"))
            self.hub.create(kind, repo_id, private, author, told.get("sdk"))
        self.reply(200, where)

    @route("DELETE", "/api/repos/delete")
    def delete_repo(self) -> None:
        repo = self.writable(*self._named(self.json()))
        with self.hub.lock:
            del self.hub.repos[repo.kind, repo.id]
        self.reply(200, {})

    def _named(self, told: dict[str, Any]) -> tuple[str, str]:
        return told.get("type") or "model", f"{told.get('organization') or self.user().user}/{told['name']}"

    @route("PUT", OF_REPO + "/settings")
    def change_settings(self, kind: str, repo_id: str) -> None:
        repo, told = self.writable(kind, repo_id), self.json()
        if "visibility" in told or "private" in told:
            repo.private = told.get("visibility") == "private" or bool(told.get("private"))
        self.reply(200, {"private": repo.private})

    @route("GET", OF_REPO + "/auth-check(?P<write>/write)?")
    def check_access(self, kind: str, repo_id: str, write: str = "") -> None:
        (self.writable if write else self.readable)(kind, repo_id)
        self.reply(200, {})

    @route("GET", r"/api/(?P<kind>model|dataset|space)s")
    def list_repos(self, kind: str) -> None:
        author, search = (self.seen.query.get(name, [""])[0] for name in ("author", "search"))
        found = []
        with self.hub.lock:
            for repo in self.hub.repos.values():
                namespace = repo.id.split("/")[0]
                seen = not repo.private or self.hub.may(self.token, namespace)
                if seen and repo.kind == kind and author in ("", namespace) and search.lower() in repo.id.lower():
                    found.append(self._info(repo, repo.at("main")))
        self.reply(200, found)

    @route("GET", OF_REPO)
    @route("GET", OF_REPO + "/revision" + AT_REVISION)
    def repo_info(self, kind: str, repo_id: str, revision: str = "main") -> None:
        repo = self.readable(kind, repo_id)
        self.reply(200, self._info(repo, repo.at(revision)))

    def _info(self, repo: Repo, commit: Commit) -> dict[str, Any]:
        card = self._card(commit)
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(commit.files)]
        if self.flag("blobs"):
            for sibling in siblings:
                stored = commit.files[sibling["rfilename"]]
                sibling |= {"size": stored.size, "blobId": stored.oid}
                sibling |= {"lfs": stored.lfs("sha256")} if stored.sha256 else {}
        info = {"_id": git_oid(repo.path.encode())[:24], "id": repo.id, "author": repo.id.split("/")[0]}
        info |= {"sha": commit.oid, "lastModified": commit.date, "createdAt": repo.created, "private": repo.private}
        info |= {"gated": False, "disabled": False, "downloads": 0, "likes": 0, "siblings": siblings}
        info |= {"tags": _tags(card), "usedStorage": sum(stored.size for stored in commit.files.values())}
        if repo.kind == "model":
            info |= {"modelId": repo.id} | {key: card[key] for key in ("library_name", "pipeline_tag") if key in card}
            info |= {"model-index": card.pop("model-index")} if "model-index" in card else {}
        if repo.kind == "space":
            info |= {"sdk": card.get("sdk", repo.sdk)}
        return info | ({"cardData": card} if card else {})

    def _card(self, commit: Commit) -> dict[str, Any]:
        stored = commit.files.get("README.md")
        if stored is None:
            return {}
        metadata, errors, _ = read_card(self.hub.object(stored.key).read_text(errors="replace"))
        return {} if errors else json.loads(json.dumps(metadata, default=str))

    # ------------------------------------------------ looking into a repository

    @route("GET", OF_REPO + "/tree" + AT_REVISION + "(?:/(?P<path>.*))?")
    def tree(self, kind: str, repo_id: str, revision: str, path: str = "") -> None:
        repo = self.readable(kind, repo_id)
        commit = repo.at(revision)
        below = f"{path}/" if path else ""
        found: dict[str, dict[str, Any]] = {}
        for name in sorted(commit.files):
            if not name.startswith(below):
                continue
            parts = name[len(below) :].split("/")
            for depth in range(1, len(parts)):
                folder = below + "/".join(parts[:depth])
                found.setdefault(folder, self._entry(repo, commit, folder))
            found[name] = self._entry(repo, commit, name)
        if path and not found:
            raise Refusal(404, f"{path} does not exist on {revision}", code="EntryNotFound")
        if not self.flag("recursive"):
            found = {name: entry for name, entry in found.items() if "/" not in name[len(below) :]}
        self._pages(list(found.values()))

    def _pages(self, entries: list[dict[str, Any]], size: int = 1000) -> None:
        """A thousand at a time; the header names the next page."""
        start = int(self.seen.query.get("cursor", ["0"])[0])
        headers = {}
        if start + size < len(entries):
            query = {name: values[0] for name, values in self.seen.query.items()} | {"cursor": start + size}
            headers["Link"] = f'<{self.hub.url}{self.raw_path}?{urlencode(query)}>; rel="next"'
        self.reply(200, entries[start : start + size], headers)

    def _entry(self, repo: Repo, commit: Commit, path: str) -> dict[str, Any]:
        stored = commit.files.get(path)
        if stored is None:
            return {"type": "directory", "oid": git_oid(f"{commit.oid} {path}".encode()), "size": 0, "path": path}
        entry = {"type": "file", "oid": stored.oid, "size": stored.size, "path": path}
        entry |= {"lfs": stored.lfs("oid")} if stored.sha256 else {}
        if self.flag("expand"):
            last = repo.last_change(path, commit.oid)
            entry["lastCommit"] = {"id": last.oid, "title": last.title, "date": last.date}
        return entry

    @route("POST", OF_REPO + "/paths-info" + AT_REVISION)
    def paths_info(self, kind: str, repo_id: str, revision: str) -> None:
        data = b"".join(self.body)
        form = "form" in self.headers.get("Content-Type", "")
        told = parse_qs(data.decode()) if form else json.loads(data)
        repo = self.readable(kind, repo_id)
        commit = repo.at(revision)
        expand = str((told.get("expand") or ["false"])[0] if form else told.get("expand")).lower() == "true"
        self.seen.query |= {"expand": [str(expand)]}
        folders = {
            "/".join(name.split("/")[:depth]) for name in commit.files for depth in range(1, name.count("/") + 1)
        }
        there = [path for path in told.get("paths", []) if path in commit.files or path in folders]
        self.reply(200, [self._entry(repo, commit, path) for path in there])

    @route("GET HEAD", PLAIN_REPO + "/resolve" + AT_REVISION + "/(?P<path>.+)")
    def resolve(self, kind: str, repo_id: str, revision: str, path: str) -> None:
        commit = self.readable(kind, repo_id).at(revision)
        stored, headers = commit.files.get(path), {"X-Repo-Commit": commit.oid}
        if stored is None:
            raise Refusal(404, f"Entry not found: {path}", code="EntryNotFound", headers=headers)
        if stored.sha256 is None:
            self.send_file(self.hub.object(stored.key), headers | {"ETag": f'"{stored.oid}"'})
            return
        where = self.hub.link("GET", f"/lfs/{PREFIX[kind]}{repo_id}/{stored.sha256}/{path}", self.seen.user)
        headers |= {"Location": where, "X-Linked-Etag": f'"{stored.sha256}"', "X-Linked-Size": str(stored.size)}
        self.send(302, b"", headers | {"ETag": f'"{stored.oid}"'})

    @route("GET", OF_REPO + "/commits" + AT_REVISION)
    def list_commits(self, kind: str, repo_id: str, revision: str) -> None:
        told = [
            {"id": commit.oid, "title": commit.title, "message": commit.message, "date": commit.date}
            | {"authors": [{"user": commit.author}]}
            for commit in self.readable(kind, repo_id).history(revision)
        ]
        self._pages(told)

    # ------------------------------------------------ branches and tags

    @route("GET", OF_REPO + "/refs")
    def refs(self, kind: str, repo_id: str) -> None:
        repo = self.readable(kind, repo_id)
        told: dict[str, list[Any]] = {"branches": [], "converts": [], "tags": [], "pullRequests": []}
        for group, where, refs in (("branches", "heads", repo.branches), ("tags", "tags", repo.tags)):
            told[group] = [{"name": n, "ref": f"refs/{where}/{n}", "targetCommit": oid} for n, oid in refs.items()]
        self.reply(200, told)

    @route("POST", OF_REPO + "/branch/(?P<name>[^/]+)")
    def create_branch(self, kind: str, repo_id: str, name: str) -> None:
        told = self.json()
        repo = self.writable(kind, repo_id)
        self._add_ref(repo.branches, name, repo.at(told.get("startingPoint") or "main").oid)

    @route("POST", OF_REPO + "/tag" + AT_REVISION)
    def create_tag(self, kind: str, repo_id: str, revision: str) -> None:
        told = self.json()
        repo = self.writable(kind, repo_id)
        self._add_ref(repo.tags, told["tag"], repo.at(revision).oid)

    def _add_ref(self, refs: dict[str, str], name: str, oid: str) -> None:
        with self.hub.lock:
            if name in refs:
                raise Refusal(409, f"Reference {name} exists already")
            refs[name] = oid
        self.reply(200, {})

    @route("DELETE", OF_REPO + "/(?P<group>branch|tag)/(?P<name>[^/]+)")
    def delete_ref(self, kind: str, repo_id: str, group: str, name: str) -> None:
        repo = self.writable(kind, repo_id)
        refs = repo.branches if group == "branch" else repo.tags
        if name not in refs:
            raise Refusal(404, f"Invalid rev id: {name}", code="RevisionNotFound")
        if group == "branch" and name == "main":
            raise Refusal(403, "main cannot be deleted")
        del refs[name]
        self.reply(200, {})

    # ------------------------------------------------ pushing

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self) -> None:
        told = self.json()
        _, errors, warnings = read_card(told["content"])
        answer = {name: [{"message": m} for m in found] for name, found in (("errors", errors), ("warnings", warnings))}
        self.reply(400 if errors else 200, answer)

    @route("POST", OF_REPO + "/preupload" + AT_REVISION)
    def preupload(self, kind: str, repo_id: str, revision: str) -> None:
        told = self.json()
        repo = self.writable(kind, repo_id)
        commit = repo.at(self.branch(repo, revision))
        files = []
        for file in told["files"]:
            path = checked_path(file["path"])
            sample, there = base64.b64decode(file.get("sample", "")), commit.files.get(path)
            large = goes_to_lfs(self.hub, commit, path, sample, file["size"])
            answer = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            files.append(answer | ({"oid": there.key} if there else {}))
        self.reply(200, {"files": files})

    @route("POST", PLAIN_REPO + r"\.git/info/lfs/objects/batch")
    def lfs_batch(self, kind: str, repo_id: str) -> None:
        told = self.json()
        upload = told.get("operation") == "upload"
        repo = (self.writable if upload else self.readable)(kind, repo_id)
        objects = []
        for wanted in told["objects"]:
            oid, answer = wanted["oid"], {"oid": wanted["oid"], "size": wanted["size"]}
            if not re.fullmatch("[0-9a-f]{64}", oid):
                answer["error"] = {"code": 422, "message": "not a SHA-256"}
            elif upload and oid not in repo.large:
                verify = f"{self.hub.url}/{repo.path}.git/info/lfs/objects/verify"
                put = self.hub.link("PUT", f"/lfs/{repo.path}/{oid}", self.seen.user)
                answer["actions"] = {"upload": {"href": put}, "verify": {"href": verify}}
            elif not upload and oid in repo.large:
                answer["actions"] = {
                    "download": {"href": self.hub.link("GET", f"/lfs/{repo.path}/{oid}", self.seen.user)}
                }
            elif not upload:
                answer["error"] = {"code": 404, "message": "no such object"}
            objects.append(answer)
        headers = {"Content-Type": "application/vnd.git-lfs+json"}
        self.reply(200, {"transfer": "basic", "objects": objects}, headers)

    @route("POST", PLAIN_REPO + r"\.git/info/lfs/objects/verify")
    def lfs_verify(self, kind: str, repo_id: str) -> None:
        told = self.json()
        self._large(self.writable(kind, repo_id), told["oid"], told["size"])
        self.reply(200, {})

    def _large(self, repo: Repo, oid: str, size: int | None) -> Stored:
        if oid not in repo.large:
            raise Refusal(404 if size is None else 400, f"LFS object {oid} was not uploaded")
        there = self.hub.object(oid).stat().st_size
        if size not in (None, there):
            raise Refusal(400, f"LFS object {oid} has {there} bytes, not {size}")
        return Stored.large(oid, there)

    @route("POST", OF_REPO + "/commit" + AT_REVISION)
    def make_commit(self, kind: str, repo_id: str, revision: str) -> None:
        repo = self.writable(kind, repo_id)
        branch, header, changes = self.branch(repo, revision), {}, []
        for line in _lines(self.body):
            try:
                key, value = line["key"], line["value"]
            except (KeyError, TypeError):
                raise Refusal(400, f"a line of a commit has a key and a value, got {str(line)[:80]}") from None
            if key == "header":
                header = value
            else:
                changes.append((key, checked_path(value["path"].rstrip("/")), self._change(repo, key, value)))
        with self.hub.lock:
            head = repo.at(branch)
            if header.get("parentCommit", head.oid) != head.oid:
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            files = dict(head.files)
            for key, path, stored in changes:
                if stored is not None:
                    files[path] = stored
                    continue
                gone = [
                    name for name in files if name == path or (key == "deletedFolder" and name.startswith(path + "/"))
                ]
                if not gone:
                    raise Refusal(404, f"{path} does not exist and cannot be deleted", code="EntryNotFound")
                for name in gone:
                    del files[name]
            author = self.user().user
            done = self.hub.commit(
                repo, branch, files, header.get("summary", ""), header.get("description", ""), author
            )
        self.reply(
            200, {"success": True, "commitOid": done.oid, "commitUrl": f"{self.hub.url}/{repo.path}/commit/{done.oid}"}
        )

    def _change(self, repo: Repo, key: str, value: dict[str, Any]) -> Stored | None:
        """What a line of a commit puts there; None = it takes something away."""
        if key == "lfsFile":
            return self._large(repo, value["oid"], value.get("size"))
        if key in ("deletedFile", "deletedFolder"):
            return None
        if key != "file":
            raise Refusal(400, f"a commit has no {key!r}")
        try:
            data = base64.b64decode(value["content"], validate=True)
        except binascii.Error:
            raise Refusal(400, f"{value['path']} is not base64") from None
        if value["path"] == "README.md" and (errors := read_card(data.decode(errors="replace"))[1]):
            raise Refusal(400, f"Invalid metadata in README.md: {'; '.join(errors)}")
        return self.hub.keep(repo, data, large=False)

    # ------------------------------------------------ Collections

    @route("POST", "/api/collections")
    def create_collection(self) -> None:
        told = self.json()
        namespace, title = told["namespace"], told["title"]
        self.check_writer(namespace)
        words = re.sub("[^a-z0-9]+", "-", title.lower()).strip("-")
        with self.hub.lock:
            for slug, known in self.hub.collections.items():
                if slug.startswith(f"{namespace}/") and known["title"] == title:
                    raise Refusal(409, "A collection of this title exists already", slug=slug)
            slug = f"{namespace}/{words}-{secrets.token_hex(12)}"
            collection = self.hub.collections[slug] = {
                "slug": slug,
                "title": title,
                "description": told.get("description"),
                "owner": {"name": namespace, "type": "org" if namespace != self.user().user else "user"},
                "private": bool(told.get("private")),
                "theme": "blue",
                "upvotes": 0,
                "position": 0,
                "lastUpdated": now(),
                "items": [],
            }
        self.reply(200, collection)

    @route("GET", "/api/collections")
    def list_collections(self) -> None:
        """Items are cut at four; no position, which the client counts itself."""
        owners, items = self.seen.query.get("owner", []), self.seen.query.get("item", [])
        found = []
        for collection in list(self.hub.collections.values()):
            ids = {PREFIX.get(item["type"], item["type"] + "s/") + item["id"] for item in collection["items"]}
            ids |= {f"models/{item['id']}" for item in collection["items"] if item["type"] == "model"}
            if not self._sees(collection) or (owners and collection["owner"]["name"] not in owners):
                continue
            if not items or ids & set(items):
                found.append(
                    {k: v for k, v in collection.items() if k != "position"} | {"items": collection["items"][:4]}
                )
        self._pages(found)

    def _sees(self, collection: dict[str, Any]) -> bool:
        return not collection["private"] or self.hub.may(self.token, collection["owner"]["name"])

    def _collection(self, slug: str, write: bool = False) -> dict[str, Any]:
        collection = self.hub.collections.get(slug)
        if collection is None or not self._sees(collection):
            raise Refusal(404, "Collection not found")
        if write:
            self.check_writer(collection["owner"]["name"])
            collection["lastUpdated"] = now()
        return collection

    COLLECTION = "/api/collections/(?P<slug>[^/]+/[^/]+)"

    @route("GET", COLLECTION)
    def get_collection(self, slug: str) -> None:
        self.reply(200, self._collection(slug))

    @route("PATCH", COLLECTION)
    def update_collection(self, slug: str) -> None:
        told, collection = self.json(), self._collection(slug, write=True)
        collection |= {k: told[k] for k in ("title", "description", "private", "theme", "position") if k in told}
        self.reply(200, {"success": True, "data": collection})

    @route("DELETE", COLLECTION)
    def delete_collection(self, slug: str) -> None:
        self._collection(slug, write=True)
        del self.hub.collections[slug]
        self.reply(200, {"success": True})

    @route("POST", COLLECTION + "/items?")
    def add_item(self, slug: str) -> None:
        told, collection = self.json(), self._collection(slug, write=True)
        kind, item_id = told["item"]["type"], told["item"]["id"]
        self.readable(kind, item_id)
        with self.hub.lock:
            items = collection["items"]
            if any((item["type"], item["id"]) == (kind, item_id) for item in items):
                raise Refusal(409, f"{item_id} is in this collection already")
            item = {"_id": secrets.token_hex(12), "type": kind, "id": item_id, "position": len(items)}
            items.append(item | _note(told.get("note")))
        self.reply(200, collection)

    @route("PATCH DELETE", COLLECTION + "/items/(?P<item_id>[^/]+)")
    def change_item(self, slug: str, item_id: str) -> None:
        told = self.json() if self.command == "PATCH" else {}
        items = self._collection(slug, write=True)["items"]
        with self.hub.lock:
            found = [item for item in items if item["_id"] == item_id]
            if not found:
                raise Refusal(404, "Item not found")
            items.remove(found[0])
            if self.command == "PATCH":
                items.insert(told.get("position", found[0]["position"]), found[0] | _note(told.get("note")))
            for position, item in enumerate(items):
                item["position"] = position
        self.reply(200, {"success": True})


# ---------------------------------------------------------------- small things


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def git_oid(data: bytes) -> str:
    """The object id git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _pointer(sha256: str, size: int) -> bytes:
    """What git keeps in place of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def goes_to_lfs(hub: LocalHub, commit: Commit, path: str, sample: bytes, size: int) -> bool:
    """By the patterns of .gitattributes; and all that is large or is no text."""
    attributes = commit.files.get(".gitattributes")
    lines = hub.object(attributes.key).read_text().splitlines() if attributes else []
    patterns = [line.split()[0] for line in lines if "filter=lfs" in line]
    named = any(fnmatch(path, pattern) or fnmatch(path.rsplit("/", 1)[-1], pattern) for pattern in patterns)
    return size > 0 and (named or size > REGULAR_LIMIT or b"\0" in sample)


def checked_path(path: str) -> str:
    if not path or any(part in ("", ".", "..", ".git") for part in path.split("/")):
        raise Refusal(400, f"Invalid path in a repository: {path!r}")
    return path


def read_card(content: str) -> tuple[dict[str, Any], list[str], list[str]]:
    """The metadata of a README.md; what is wrong with it; what is missing from it."""
    match = re.match(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*$", content, re.DOTALL | re.MULTILINE)
    if match is None:
        return {}, [], ["empty or missing yaml metadata in repo card"]
    try:
        metadata = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return {}, [f"Invalid YAML: {' '.join(str(error).split())}"], []
    if metadata is None:
        return {}, [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(metadata, dict):
        return {}, [f"the metadata must be a mapping, got {type(metadata).__name__}"], []
    errors = []
    for name in ("license", "language", "tags", "datasets", "base_model", "metrics"):
        value = metadata.get(name, [])
        if not all(isinstance(item, str) for item in (value if isinstance(value, list) else [value])):
            errors.append(f'"{name}" must be a string or a list of strings')
    for name in ("library_name", "pipeline_tag", "license_link"):
        if not isinstance(metadata.get(name, ""), str):
            errors.append(f'"{name}" must be a string')
    return metadata, [*errors, *_index_errors(metadata.get("model-index", []))], []


def _index_errors(index: Any) -> Iterator[str]:
    """What the Hub requires of results in a card."""
    if not isinstance(index, list):
        yield '"model-index" must be a list'
        return
    for i, model in enumerate(index):
        for j, result in enumerate(model.get("results") or [{}]):
            where = f"model-index[{i}].results[{j}]"
            needed = {"task": ("type",), "dataset": ("type", "name")}
            for part, names in needed.items():
                for name in names:
                    if name not in (result.get(part) or {}):
                        yield f'"{where}.{part}.{name}" is required'
            for k, metric in enumerate(result.get("metrics") or [{}]):
                for name in ("type", "value"):
                    if name not in metric:
                        yield f'"{where}.metrics[{k}].{name}" is required'


def _tags(card: dict[str, Any]) -> list[str]:
    def several(name: str) -> list[str]:
        value = card.get(name) or []
        return [str(item) for item in (value if isinstance(value, list) else [value])]

    tags = [*several("library_name"), *several("pipeline_tag"), *several("tags")]
    for name, prefix in (("datasets", "dataset"), ("base_model", "base_model"), ("license", "license")):
        tags += [f"{prefix}:{value}" for value in several(name)]
    if card.get("base_model_relation"):
        tags += [f"base_model:{card['base_model_relation']}:{value}" for value in several("base_model")]
    return list(dict.fromkeys(tags))


def _kind_and_id(path: str) -> tuple[str, str]:
    """datasets/astro/spectra -> dataset, astro/spectra."""
    for kind in ("dataset", "space"):
        if path.startswith(PREFIX[kind]):
            return kind, path.removeprefix(PREFIX[kind])
    return "model", path


def _asked_range(header: str | None, size: int) -> tuple[int, int]:
    """First byte and the one after the last.

    Raises:
        Refusal: 416, nothing of it is there.
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    if match is None or match[0] == "bytes=-" or size == 0:
        return 0, size
    if match[1]:
        start, stop = int(match[1]), min(int(match[2]) + 1 if match[2] else size, size)
    else:
        start, stop = max(size - int(match[2]), 0), size
    if start >= stop:
        raise Refusal(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{size}"})
    return start, stop


def _lines(body: Iterator[bytes]) -> Iterator[Any]:
    """JSON, one value a line."""
    rest = b""
    for data in body:
        *whole, rest = (rest + data).split(b"\n")
        yield from (_parsed(line) for line in whole if line.strip())
    if rest.strip():
        yield _parsed(rest)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        raise Refusal(400, "a line of a commit is not JSON") from None


def _note(text: str | None) -> dict[str, Any]:
    return {} if text is None else {"note": {"text": text, "html": text}}


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):  # the client was faster
        connection.shutdown(socket.SHUT_RDWR)
