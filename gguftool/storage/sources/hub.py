"""Files on the Hugging Face Hub: ``hf://[datasets/]org/repo[@revision]/path``, through huggingface_hub.

A revision is resolved to a commit once in a run, by a listing or by the first file that is opened, and everything else
is read at that commit: the files of a set are of one snapshot. The token goes only to the Hub's own host.
"""

from __future__ import annotations

import fnmatch
import re
import threading
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from gguftool.errors import SourceError, printable
from gguftool.record import record, replace
from gguftool.storage.sources import transport, urls
from gguftool.storage.sources.http import HttpSource, Origin, open_http
from gguftool.storage.sources.ranges import RETRIED
from gguftool.storage.sources.retry import FEW_ATTEMPTS, RetryBudget
from gguftool.storage.sources.source import AbsentError
from gguftool.storage.sources.timeouts import call_with_timeout
from gguftool.storage.sources.transport_errors import TransportError, translate_errors

SCHEME = "hf://"
_KINDS = ("models", "datasets", "spaces")
_NAME = r"[\w][\w.-]*"
_SPEC = re.compile(
    rf"hf://(?:(?P<kind>{'|'.join(_KINDS)})/)?(?P<repo>{_NAME}/{_NAME})"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[^/@]+|[^/]+))?(?:/(?P<path>.*))?",
    re.ASCII | re.DOTALL,
)
_PAGE = re.compile(
    rf"/(?:(?P<kind>datasets|spaces)/)?(?P<repo>{_NAME}/{_NAME})"
    r"(?:/(?:resolve|blob|tree)/(?P<revision>[^/]+)(?:/(?P<path>.*))?)?/?",
    re.ASCII | re.DOTALL,
)
_NO_REPOS = frozenset({"api", "docs", "datasets", "spaces", "models", "blog", "papers", "collections", "settings"})
_PUBLIC = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SNAPSHOT_SECONDS = 600.0  # how long a revision means one commit, in programs that keep running


@record
class HubPath:
    """A file or folder of a repository; `path` has no slashes at its ends, and is empty for the whole repository."""

    repo: str
    path: str
    revision: str = ""  # as the user gave it; empty for main
    kind: str = "models"

    def __str__(self) -> str:
        kind = "" if self.kind == "models" else f"{self.kind}/"
        safe = "/" if self.revision.startswith(("refs/pr/", "refs/convert/")) else ""
        at = f"@{quote(self.revision, safe=safe)}" if self.revision else ""
        return f"{SCHEME}{kind}{self.repo}{at}" + (f"/{self.path}" if self.path else "")


@record
class Snapshot:
    """A repository at one commit: the names of its files, sorted, or None before the first listing."""

    commit: str
    files: tuple[str, ...] | None
    since: float


def parse_hub(spec: str) -> HubPath:
    """Split an ``hf://`` name; raise `SourceError` if it is not one."""
    match = _SPEC.fullmatch(spec)
    path = (match["path"] or "").strip("/") if match else ""
    if match is None or any(part in ("", ".", "..") for part in path.split("/") if path):
        raise SourceError("is not a name of the Hub; expected hf://org/repo[@revision]/path", source=spec)
    revision = unquote(match["revision"] or "")
    return HubPath(repo=match["repo"], path=path, revision=revision, kind=match["kind"] or "models")


def from_page(url: str) -> str:
    """The ``hf://`` name of a page or link of the Hub, else `url` itself.

    A link to a page (/blob/) on the public Hub becomes one to the file even if HF_ENDPOINT is another host.
    """
    parts = urls.parts_of(url)
    if "@" in parts.netloc:
        return url
    at_home = urls.origin(url) == urls.origin(endpoint())
    public = parts.hostname in _PUBLIC
    if not (at_home or public):
        return url
    if not at_home and urlsplit(endpoint()).hostname not in _PUBLIC:
        return re.sub(r"^(https?://[^/]+/(?:[^/]+/)?[^/]+/[^/]+)/blob/", r"\1/resolve/", url)
    prefix = urlsplit(endpoint()).path.rstrip("/")
    match = _PAGE.fullmatch(parts.path.removeprefix(prefix))
    if match is None or match["repo"].partition("/")[0] in _NO_REPOS:
        return url
    revision = unquote(match["revision"] or "")
    path = unquote(match["path"] or "").strip("/")
    found = HubPath(repo=match["repo"], path=path, revision="" if revision == "main" else revision)
    return str(replace(found, kind=match["kind"] or "models"))


def endpoint() -> str:
    """The Hub's address: HF_ENDPOINT, else the public one; raise `SourceError` if it is not a URL."""
    found = str(_library().constants.ENDPOINT)
    try:
        urls.parts_of(found)
    except SourceError:
        what = printable(urls.shown(found), 80)
        raise SourceError(f"HF_ENDPOINT is '{what}'; expected the address of a Hub, such as https://host") from None
    return found


def refuse_offline(name: str) -> None:
    """Raise `SourceError` if the environment forbids the network."""
    if _library().constants.HF_HUB_OFFLINE:
        raise SourceError("HF_HUB_OFFLINE is set, so nothing is fetched; unset it, or name a local file", source=name)


class Hub:
    """The repositories of the Hub; one object sees one commit of each revision."""

    def __init__(self) -> None:
        self._snapshots: dict[tuple[str, str, str, str], Snapshot] = {}
        self._lock = threading.Lock()

    def open(self, spec: str, first_read: int) -> HttpSource:
        """Open a file at the commit that its revision has in this run."""
        place = parse_hub(spec)
        if not place.path:
            raise SourceError("is a repository; expected a file in it", source=spec)
        known = self._known(place)
        source = open_http(_origin(place, known.commit if known else place.revision or "main"), first_read)
        if known is None and _COMMIT.fullmatch(source.commit):
            found = Snapshot(commit=source.commit, files=None, since=time.monotonic())
            with self._lock:
                self._snapshots.setdefault(_key(place), found)
        return source

    def list(self, spec: str) -> tuple[str, ...]:
        """The names of all files of the repository of `spec`, as ``hf://`` names with its revision."""
        place = parse_hub(spec)
        return tuple(str(replace(place, path=path)) for path in self._listing(place))

    def glob(self, spec: str) -> tuple[str, ...]:
        """The names that match the pattern `spec`; ``*`` does not cross a slash."""
        place = parse_hub(spec)
        wanted = place.path.split("/")
        return tuple(
            str(replace(place, path=path))
            for path in self._listing(place)
            if len(parts := path.split("/")) == len(wanted)
            and all(fnmatch.fnmatchcase(part, pattern) for part, pattern in zip(parts, wanted, strict=True))
        )

    def _known(self, place: HubPath) -> Snapshot | None:
        with self._lock:
            known = self._snapshots.get(_key(place))
            return known if known and time.monotonic() - known.since < _SNAPSHOT_SECONDS else None

    def _listing(self, place: HubPath) -> tuple[str, ...]:
        known = self._known(place)
        if known is None or known.files is None:
            known = _ask_listing(place, known.commit if known else place.revision or "main")
            with self._lock:
                self._snapshots[_key(place)] = known
        return known.files or ()


def _key(place: HubPath) -> tuple[str, str, str, str]:
    return endpoint(), place.kind, place.repo, place.revision or "main"


def _origin(place: HubPath, revision: str) -> Origin:
    headers = _headers()
    token = headers.get("Authorization", "").partition(" ")[2]
    return Origin(
        name=str(place),
        url=_url(place, revision),
        headers=headers,
        secrets=(token,) if token else (),
        getter=transport.get_by_session,
        fixed=lambda commit: _url(place, commit),
    )


# --- listings --------------------------------------------------------------------------------------------------------


def _ask_listing(place: HubPath, revision: str) -> Snapshot:
    """Request commit and file names at once."""
    name = str(replace(place, path=""))
    api = _library().HfApi(endpoint=endpoint(), library_name="gguftool")
    budget, host = RetryBudget(), urls.host_of(endpoint())
    while True:
        try:
            info = call_with_timeout(
                lambda: translate_errors(
                    lambda: api.repo_info(
                        place.repo, revision=revision, repo_type=place.kind.rstrip("s"), timeout=budget.idle_timeout
                    )
                ),
                budget.idle_timeout,
            )
        except TransportError as error:
            problem, after = _refused(error, name)
            if problem is not None:
                raise problem from None
            response = getattr(error.cause, "response", None)
            text = str(error) if response is None else f"HTTP status {response.status_code}"
            problem = SourceError(f"the Hub's list of files: {text}, from {host}", source=name)
            if error.is_permanent and response is None:
                budget.wait(problem, attempts=FEW_ATTEMPTS)
            else:
                budget.wait(problem, after)
            continue
        files = tuple(sorted(_paths(info)))
        return Snapshot(commit=str(info.sha or ""), files=files, since=time.monotonic())


def _paths(info: Any) -> list[str]:
    """The file names in a listing that are valid names: they come from a server."""
    names = [str(entry.rfilename) for entry in info.siblings or ()]
    return [name for name in names if all(part not in ("", ".", "..") for part in name.split("/"))]


def _refused(error: TransportError, name: str) -> tuple[SourceError | None, str | None]:
    """The error that a retry cannot fix, or None and the wait that the server asks for."""
    response = getattr(error.cause, "response", None)
    if response is None:
        return None, None
    status = response.status_code
    if status in RETRIED:
        return None, response.headers.get("Retry-After")
    code = printable(response.headers.get("X-Error-Code", ""), 40)
    words = {
        "RevisionNotFoundError": "the repository has no such revision; slashes in one are written as %2F",
        "GatedRepoError": "the model is gated: accept its terms on its page, then: hf auth login",
        "RepositoryNotFoundError": "no such repository, or it is private and needs a token: hf auth login",
        "DisabledRepoError": "the repository was disabled",
    }.get(type(error.cause).__name__)
    if words is None and status in (401, 403):
        words = "access is denied; a token may be needed: hf auth login, or HF_TOKEN"
    text = f"the Hub's list of files: HTTP status {status}{f' ({code})' if code else ''}"
    kind = AbsentError if type(error.cause).__name__ == "RepositoryNotFoundError" else SourceError
    return kind(f"{text}: {words}" if words else text, source=name), None


# --- the library -----------------------------------------------------------------------------------------------------


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.utils
    except ImportError:
        raise SourceError(f"files on servers need the extra 'hub'; {transport.INSTALL}") from None
    except ValueError:  # it reads numbers from the environment while it is imported
        raise SourceError("huggingface_hub does not load; is one of the HF_... variables not a number?") from None
    return huggingface_hub


def _headers() -> Mapping[str, str]:
    """The user agent, and the token if there is one."""
    found = _library().utils.build_hf_headers(library_name="gguftool")
    if not all(value.isascii() and value.isprintable() for value in found.values()):
        raise SourceError("the Hub's token has characters that no token has; set HF_TOKEN again, or: hf auth login")
    names = {"user-agent": "User-Agent", "authorization": "Authorization"}
    return {names.get(key.lower(), key): value for key, value in found.items()}


def _url(place: HubPath, revision: str) -> str:
    kind = "" if place.kind == "models" else f"{place.kind}/"
    return f"{endpoint()}/{kind}{place.repo}/resolve/{quote(revision, safe='')}/{quote(place.path)}"
