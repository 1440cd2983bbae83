"""A stand-in for the Hub on loopback; the real huggingface_hub reaches it through HF_ENDPOINT.

The first port is the Hub: its API, and `/<repo>/resolve/<revision>/<path>`, which answers with the identity of the file
and redirects to the second port. That is the CDN; its URLs are signed and may expire. `authorizations()` lists the
credentials that each port received.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs, quote, unquote

from tests.support.rude_server import error, honest
from tests.support.scripted_server import Exchange, WireServer

SIGNATURE = "5ec2e7-4ub51gn47u2e"
_OWN = "/api/agent-harnesses"  # huggingface_hub reads the names for its User-Agent there
_NAMED = {"ETag": None, "Content-Range": None, "Last-Modified": None}


@dataclass
class Repo:
    """A repository: revision -> commit, commit -> path -> bytes. `tokens` None: public."""

    commits: dict[str, dict[str, bytes]]
    revisions: dict[str, str] = field(default_factory=dict)
    tokens: frozenset[str] | None = None
    gated: frozenset[str] | None = None  # tokens with access; None: not gated

    @classmethod
    def of(cls, files: Mapping[str, bytes], **options: frozenset[str] | None) -> Repo:
        commit = hashlib.sha1(repr(sorted(files)).encode()).hexdigest()
        return cls({commit: dict(files)}, {"main": commit}, **options)

    def commit(self, files: Mapping[str, bytes], revision: str = "main") -> str:
        """Add a commit and point `revision` to it."""
        name = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits[name] = dict(files)
        self.revisions[revision] = name
        return name


class HubServer(WireServer):
    """The Hub and its CDN. `page` is the number of tree entries per answer.

    A signed URL is good for `expires` requests, then 403. `linked` False leaves out the identity headers, as for files
    that are not in LFS; `xet` adds the headers of Xet storage.
    """

    def __init__(self, repos: Mapping[str, Repo], page: int = 1000, expires: int | None = None) -> None:
        self.repos = dict(repos)
        self.page, self.expires = page, expires
        self.linked = self.xet = True
        self.down: int | None = None  # the status of every answer of the Hub
        self.before: Callable[[Exchange], object] = lambda exchange: None  # called before each answer
        self.moved: dict[str, str] = {}  # old name of a repository -> its name now
        self._signed: dict[str, int] = {}
        super().__init__()

    @property
    def endpoint(self) -> str:
        """The value of HF_ENDPOINT."""
        return self.origin

    def asked(self, *, cdn: bool = False) -> list[str]:
        """Method and path of each request to the Hub or the CDN, without those that the library makes for itself."""
        port = self.other_port if cdn else self.port
        chosen = [request for request in list(self.requests) if request.port == port and request.path != _OWN]
        return [f"{request.method} {request.path}" for request in chosen]

    def answer(self, exchange: Exchange) -> None:
        self.before(exchange)
        if exchange.request.port == self.other_port:
            self._cdn(exchange)
        elif self.down is not None:
            error(self.down, b"<html>Down</html>", Content_Type="text/html")(exchange)
        elif any(f"/{old}/" in exchange.request.path for old in self.moved):
            self._redirect_to_new_name(exchange)
        elif exchange.request.path.startswith("/api/"):
            self._api(exchange)
        else:
            self._resolve(exchange)

    def _redirect_to_new_name(self, ex: Exchange) -> None:
        path = ex.request.path
        for old, new in self.moved.items():
            path = path.replace(f"/{old}/", f"/{new}/")
        ex.reply(307, b"Moved", {**_NAMED, "Location": path})

    # The CDN

    def _cdn(self, ex: Exchange) -> None:
        query = parse_qs(ex.request.query)
        key = query.get("Key", [""])[0]
        used = self._signed.get(key)
        if used is None or query.get("X-Amz-Signature") != [SIGNATURE]:
            error(403, b"<Error><Code>AccessDenied</Code></Error>", Content_Type="application/xml")(ex)
            return
        self._signed[key] = used + 1
        if self.expires is not None and used >= self.expires:
            error(403, b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>")(ex)
            return
        content = self._blob(ex.request.path.rpartition("/")[2])
        honest(ex.serve(content))

    def _blob(self, digest: str) -> bytes:
        return next(data for data in self._contents() if hashlib.sha256(data).hexdigest() == digest)

    def _contents(self) -> Iterator[bytes]:
        for repo in self.repos.values():
            for files in repo.commits.values():
                yield from files.values()

    # /<repo>/resolve/<revision>/<path>

    def _resolve(self, ex: Exchange) -> None:
        parts = [unquote(part) for part in ex.request.path.strip("/").split("/")]
        if len(parts) < 5 or parts[2] != "resolve":
            error(404, b"<!DOCTYPE html><html>Not Found</html>", Content_Type="text/html")(ex)
            return
        found = self._commit(ex, "/".join(parts[:2]), parts[3])
        if found is None:
            return
        commit, files = found
        data = files.get("/".join(parts[4:]))
        if data is None:
            error(404, b"Entry not found", X_Error_Code="EntryNotFound", X_Error_Message="Entry not found")(ex)
            return
        headers = {**self._identity(commit, data), "Location": self._sign(data)}
        ex.reply(302, b"Found", {**_NAMED, "Content-Type": "text/plain", **headers})

    def _identity(self, commit: str, data: bytes) -> dict[str, str]:
        digest = hashlib.sha256(data).hexdigest()
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if self.linked:
            headers |= {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(data))}
        if self.xet:
            route = f"{self.endpoint}/api/models/xet-read-token/{commit}"
            headers |= {"X-Xet-Hash": digest[::-1], "Link": f'<{route}>; rel="xet-auth"'}
        return headers

    def _sign(self, data: bytes) -> str:
        key = f"k{len(self._signed)}"
        self._signed[key] = 0
        digest = hashlib.sha256(data).hexdigest()
        return f"{self.other}/repos/{digest[:2]}/{digest}?X-Amz-Signature={SIGNATURE}&Key={key}&Expires=3600"

    def _commit(self, ex: Exchange, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and its files; without access for this token, answer as the Hub does and return None."""
        repo, token = self.repos.get(name), _token(ex)
        if repo is None or (repo.tokens is not None and token not in repo.tokens):
            _refuse(ex, 401 if token is None else 404, "RepoNotFound", "Repository not found")
        elif repo.gated is not None and token not in repo.gated:
            status = 401 if token is None else 403
            _refuse(ex, status, "GatedRepo", f"Access to model {name} is restricted. You must have access to it.")
        elif repo.revisions.get(revision, revision) not in repo.commits:
            _refuse(ex, 404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            commit = repo.revisions.get(revision, revision)
            return commit, repo.commits[commit]
        return None

    # /api/models/<repo>...

    def _api(self, ex: Exchange) -> None:
        parts = [unquote(part) for part in ex.request.path.strip("/").split("/")[2:]]
        name, what = "/".join(parts[:2]), parts[2] if len(parts) > 2 else "revision"
        found = self._commit(ex, name, parts[3] if len(parts) > 3 else "main")
        if found is None:
            return
        commit, files = found
        if what == "revision":
            _json(ex, self._info(name, commit, files))
        elif what == "tree":
            self._tree(ex, files, "/".join(parts[4:]))
        elif what == "paths-info":
            paths = parse_qs(ex.request.body.decode()).get("paths", [])
            _json(ex, [entry for path in paths for entry in self._entries(files, path.strip("/"))])
        else:
            error(404, b"Not found")(ex)

    def _info(self, name: str, commit: str, files: Mapping[str, bytes]) -> dict[str, object]:
        siblings = [{"rfilename": path, "size": len(data)} for path, data in sorted(files.items())]
        return {"_id": "0" * 24, "id": name, "modelId": name, "sha": commit, "private": False, "siblings": siblings}

    def _entries(self, files: Mapping[str, bytes], path: str) -> list[dict[str, object]]:
        if path in files:
            return [self._file(path, files[path])]
        inside = any(name.startswith(f"{path}/") for name in files)
        return [{"type": "directory", "oid": "d" * 40, "size": 0, "path": path}] if inside else []

    def _file(self, path: str, data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        entry: dict[str, object] = {"type": "file", "oid": digest[:40], "size": len(data), "path": path}
        if self.linked:
            entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 134}
        return entry | ({"xetHash": digest[::-1]} if self.xet else {})

    def _tree(self, ex: Exchange, files: Mapping[str, bytes], folder: str) -> None:
        query = parse_qs(ex.request.query)
        prefix = f"{folder}/" if folder else ""
        below = sorted(path for path in files if path.startswith(prefix))
        if not below:
            _refuse(ex, 404, "EntryNotFound", f"{folder} does not exist")
            return
        folders = {prefix + path[len(prefix) :].partition("/")[0] for path in below if "/" in path[len(prefix) :]}
        if query.get("recursive", [""])[0].lower() not in {"true", "1"}:
            below = [path for path in below if "/" not in path[len(prefix) :]]
        entries = [entry for path in sorted({*below, *folders}) for entry in self._entries(files, path)]
        first = int(query.get("cursor", ["0"])[0])
        more = []
        if first + self.page < len(entries):
            rest = "&".join(f"{key}={quote(value[0])}" for key, value in query.items() if key != "cursor")
            link = f"{self.endpoint}{ex.request.path}?{rest}&cursor={first + self.page}"
            more = [("Link", f'<{link}>; rel="next"')]
        _json(ex, entries[first : first + self.page], more)


def _token(ex: Exchange) -> str | None:
    told = ex.request.header("Authorization")
    return told.removeprefix("Bearer ") if told else None


def _refuse(ex: Exchange, status: int, code: str, message: str) -> None:
    body = json.dumps({"error": message}).encode()
    error(status, body, Content_Type="application/json", X_Error_Code=code, X_Error_Message=message)(ex)


def _json(ex: Exchange, content: object, more: list[tuple[str, str]] | None = None) -> None:
    ex.reply(200, json.dumps(content).encode(), {**_NAMED, "Content-Type": "application/json"}, more or [])
