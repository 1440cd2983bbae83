"""Hash models, and verify files against a manifest or a tensors.map.

There are three formats: tensors.map (sha256 of whole shards); the manifest of llama-gguf-hash (sha256 of each tensor's
data, which does not depend on head or layout, and of all data in header order); and the output of sha256sum.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

from gguftool.errors import FormatError, GGUFToolError, LimitError, printable
from gguftool.format.ggml import type_alias
from gguftool.format.manifests import (
    is_sums,
    is_tensor_hashes,
    manifest_lines,
    parse_sums,
    parse_tensor_hashes,
)
from gguftool.format.tensors_map import MapEntry, parse_map
from gguftool.model.companions import MapIndex
from gguftool.model.model import Model, ModelFile
from gguftool.model.opening import ModelLike, StrPath, as_model, open_model
from gguftool.record import record
from gguftool.storage.plan import Receipt
from gguftool.storage.sources.digest import Progress, digest_all, digest_once, no_progress
from gguftool.storage.sources.locate import base_name, open_source
from gguftool.storage.sources.source import Extent, whole

_MAX_MANIFEST = 64 << 20  # bytes


@record
class Hash:
    """The sha256 of `name`: a file, ``FILE:TENSOR``, or ``FILE`` for all tensors' data in header order."""

    name: str
    sha256: str


_NOT_NAMED = "is not in the manifest"


@record
class Verdict:
    """Whether `name` matches its record; `ok` is None if nothing could be compared."""

    name: str
    ok: bool | None
    detail: str


def hash_tensors(model: ModelLike, jobs: int | None = None, progress: Progress = no_progress) -> tuple[Hash, ...]:
    """Hash each tensor's data without padding, and all of it in header order (the last entry); sha256 in hex.

    `jobs`: hashing threads, by default chosen by measurement; `progress` gets the number of bytes as they are hashed.
    Raises `SourceError` if the data cannot be read.
    """
    model = as_model(model)
    tensors = tuple(model.tensors.values())
    name = os.path.basename(model.files[0].source.name)
    every = [tensor.extent for tensor in tensors]
    if any(source.is_remote for source in model.sources):
        singles, total = digest_once(every, progress)
    else:  # the longest first: it keeps one core busy while the others hash single tensors
        total, *singles = digest_all([every, *([extent] for extent in every)], jobs, progress)
    hashes = [
        Hash(name=f"{name}:{tensor.info.name}", sha256=sha256) for tensor, sha256 in zip(tensors, singles, strict=True)
    ]
    return (*hashes, Hash(name=name, sha256=total))


def hash_files(model: ModelLike, jobs: int | None = None, progress: Progress = no_progress) -> tuple[Hash, ...]:
    """Hash each file of the model, sha256 in hex; arguments and errors are those of `hash_tensors`."""
    model = as_model(model)
    digests = digest_all([[whole(file.source)] for file in model.files], jobs, progress)
    return tuple(Hash(name=file.source.name, sha256=sha256) for file, sha256 in zip(model.files, digests, strict=True))


def file_hashes(receipt: Receipt) -> tuple[Hash, ...]:
    """List the hashes of the files that a writer made, the same as `hash_files` gives."""
    digests = receipt.digests
    return tuple(Hash(name=one.name, sha256=one.sha256) for one in (digests.files if digests else ()))


def tensor_hashes(receipt: Receipt, name: str) -> tuple[Hash, ...]:
    """List the hashes of tensors, the same as `hash_tensors` gives; `name` is that of the model's first file.

    If a set was replaced in part, includes only the tensors that were written.
    """
    digests = receipt.digests
    if digests is None:
        return ()
    parts = tuple(Hash(name=f"{name}:{one.name}", sha256=one.sha256) for one in digests.parts)
    return parts if digests.whole is None else (*parts, Hash(name=name, sha256=digests.whole))


# --- checking --------------------------------------------------------------------------------------------------------


def verify_against_map(
    files: Sequence[ModelFile],
    entries: tuple[MapEntry, ...],
    jobs: int | None = None,
    progress: Progress = no_progress,
) -> tuple[Verdict, ...]:
    """Compare each file with its line: tensor, shape and type from the header, then the sha256 of the file.

    `entries` may come from several maps in one folder: a file is fine if it matches one of its lines. The `bytes` and
    `elements` of a map are hints and are not compared.
    """
    index = MapIndex(entries)
    lines = [(file, own) for file in files if (own := index.entries_of(file))]
    hashed = [file for file, own in lines if any(entry.sha256 and not header_differs(file, entry) for entry in own)]
    digests = digest_all([[whole(file.source)] for file in hashed], jobs, progress)
    found = {file.source.name: sha256 for file, sha256 in zip(hashed, digests, strict=True)}
    return tuple(_best_verdict(file, own, found.get(file.source.name)) for file, own in lines)


def _best_verdict(file: ModelFile, entries: Sequence[MapEntry], sha256: str | None) -> Verdict:
    """Choose the best verdict among a file's lines: it matches, else it differs, else nothing could be compared."""
    verdicts = [_map_verdict(file, entry, sha256) for entry in entries]
    return min(verdicts, key=lambda verdict: (True, False, None).index(verdict.ok))


def _map_verdict(file: ModelFile, entry: MapEntry, sha256: str | None) -> Verdict:
    name, wrong = file.source.name, header_differs(file, entry)
    if wrong is not None:
        return Verdict(name=name, ok=False, detail=wrong)
    if entry.sha256 is None:
        return Verdict(name=name, ok=None, detail="the map has no hash for it")
    if sha256 == entry.sha256:
        return Verdict(name=name, ok=True, detail="sha256 matches the map")
    return Verdict(name=name, ok=False, detail=f"sha256 is {sha256}, the map says {entry.sha256}")


def header_differs(file: ModelFile, entry: MapEntry) -> str | None:
    """Describe how the tensor, shape or type in `file` differs from `entry`, or None if it does not."""
    infos = {info.name: info for info in file.header.tensors}
    info = infos.get(entry.tensor)
    if info is None:
        return f"does not hold '{printable(entry.tensor)}', which the map names"
    expected = entry.shape
    while len(expected) > 1 and expected[-1] == 1:
        expected = expected[:-1]
    if info.shape != expected:
        return f"'{printable(entry.tensor)}' has shape {info.shape}, the map says {expected}"
    if entry.type_id is not None and entry.type_id != info.type:
        return f"'{printable(entry.tensor)}' is {type_alias(info.type)}, the map says {printable(entry.dtype)}"
    return None


def verify_manifest(
    manifest: StrPath, model: ModelLike | None = None, jobs: int | None = None, progress: Progress = no_progress
) -> tuple[Verdict, ...]:
    """Check the files that `manifest` (tensors.map, llama-gguf-hash or sha256sum format) names.

    Looks names up in the manifest's folder, or in `model` for tensor hashes and maps. Raises `FormatError` for a
    manifest of another format or algorithm.
    """
    manifest, model = os.fspath(manifest), None if model is None else as_model(model)
    source = open_source(manifest)
    if source.size > _MAX_MANIFEST:
        raise LimitError(
            f"{source.size:,} bytes; gguftool reads a manifest of at most {_MAX_MANIFEST:,}", source=manifest
        )
    text = source.read_at(0, source.size).decode("utf-8", "surrogateescape")
    lines = manifest_lines(text)
    if not lines:
        raise FormatError("holds no line", source=manifest)
    if is_sums(lines[0]) or is_tensor_hashes(lines[0]):
        return _verify_lines(manifest, lines, model, jobs, progress)
    return _verify_map(manifest, parse_map(text, manifest), model, jobs, progress)


def _verify_lines(
    manifest: str, lines: Sequence[str], model: Model | None, jobs: int | None, progress: Progress
) -> tuple[Verdict, ...]:
    """Check the lines about files and those about tensors; the output of a writer's --hash has both."""
    sums = [line for line in lines if is_sums(line)]
    others = [line for line in lines if not is_sums(line)]
    of_files = _verify_sums(manifest, sums, model, jobs, progress) if sums else ()
    if model is not None and others:  # the manifest of another layout of the model names other files
        of_files = tuple(verdict for verdict in of_files if verdict.detail != _NOT_NAMED)
    return (*of_files, *(_verify_tensors(manifest, others, model, jobs, progress) if others else ()))


def _verify_map(
    manifest: str, entries: tuple[MapEntry, ...], model: Model | None, jobs: int | None, progress: Progress
) -> tuple[Verdict, ...]:
    folder = os.path.dirname(manifest)
    if model is not None:
        return _with_missing(entries, verify_against_map(model.files, entries, jobs, progress))
    files: list[ModelFile] = []
    verdicts = []
    for entry in entries:
        name = os.path.join(folder, os.path.basename(entry.file))
        try:
            files += open_model(name, this_file_only=True).files
        except GGUFToolError as error:
            verdicts.append(Verdict(name=name, ok=False, detail=error.message))
    return (*verdicts, *verify_against_map(files, entries, jobs, progress))


def _with_missing(entries: Iterable[MapEntry], verdicts: tuple[Verdict, ...]) -> tuple[Verdict, ...]:
    seen = {os.path.basename(verdict.name) for verdict in verdicts}
    missing = [entry.file for entry in entries if entry.file not in seen]
    gaps = (Verdict(name=name, ok=False, detail="is in the map but not in the model") for name in missing)
    return (*verdicts, *gaps)


def _verify_sums(
    manifest: str, lines: Sequence[str], model: Model | None, jobs: int | None, progress: Progress
) -> tuple[Verdict, ...]:
    """Check the files of `model`, else those named: in the manifest's folder, else in the working folder."""
    wanted = parse_sums(lines, manifest)
    if model is not None:
        return _verify_files_of(model, wanted, jobs, progress)
    present, verdicts = {}, []
    for name in wanted:
        beside = os.path.join(os.path.dirname(manifest), name)
        try:
            present[name] = open_source(beside if os.path.exists(beside) else name)
        except GGUFToolError as error:
            verdicts.append(Verdict(name=name, ok=False, detail=error.message))
    digests = digest_all([[whole(source)] for source in present.values()], jobs, progress)
    return (*verdicts, *_compared(wanted, dict(zip(present, digests, strict=True))))


def _verify_files_of(
    model: Model, wanted: Mapping[str, str], jobs: int | None, progress: Progress
) -> tuple[Verdict, ...]:
    """Check the files of `model` against the lines with their names; a single file and a single line need no name."""
    by_name = {os.path.basename(name): sha256 for name, sha256 in wanted.items()}
    promised: dict[str, str] = {}
    verdicts = []
    for file in model.files:
        name = file.source.name
        sha256 = by_name.get(base_name(name))
        if sha256 is None and len(wanted) == len(model.files) == 1:
            sha256 = next(iter(wanted.values()))
        if sha256 is None:
            verdicts.append(Verdict(name=name, ok=False, detail=_NOT_NAMED))
        else:
            promised[name] = sha256
    sources = [file.source for file in model.files if file.source.name in promised]
    digests = digest_all([[whole(source)] for source in sources], jobs, progress)
    found = {source.name: sha256 for source, sha256 in zip(sources, digests, strict=True)}
    return (*verdicts, *_compared(promised, found))


def _verify_tensors(
    manifest: str, lines: Sequence[str], model: Model | None, jobs: int | None, progress: Progress
) -> tuple[Verdict, ...]:
    """Check ``FILE:TENSOR`` lines by tensor name, and the line of ``FILE`` against all data in order."""
    wanted = parse_tensor_hashes(lines, manifest)
    base = min(wanted, key=len)  # the line of the file itself is the shortest; the others add :TENSOR
    if ".gguf:" in base:  # a set that was replaced in part has only lines of tensors
        base = base[: base.index(".gguf:") + len(".gguf")]
    model = model or open_model(os.path.join(os.path.dirname(manifest), base))
    every = [tensor.extent for tensor in model.tensors.values()]
    tensors = {printable(name, len(name)): tensor for name, tensor in model.tensors.items()}  # as manifests spell them
    works: dict[str, list[Extent]] = {}
    verdicts = []
    for name in wanted:
        tensor = tensors.get(name[len(base) + 1 :]) if name.startswith(base + ":") else None
        if name == base:
            works[name] = every
        elif tensor is not None:
            works[name] = [tensor.extent]
        else:
            verdicts.append(Verdict(name=name, ok=False, detail=f"is not in {printable(model.name)}"))
    digests = digest_all(list(works.values()), jobs, progress)
    return (*verdicts, *_compared(wanted, dict(zip(works, digests, strict=True))))


def _compared(wanted: Mapping[str, str], found: Mapping[str, str]) -> Iterable[Verdict]:
    for name, sha256 in found.items():
        ok = sha256 == wanted[name]
        detail = "sha256 matches" if ok else f"sha256 is {sha256}, expected {wanted[name]}"
        yield Verdict(name=name, ok=ok, detail=detail)
