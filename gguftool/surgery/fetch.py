"""Fetch: copy a model, or some of its tensors, from anywhere into local files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gguftool.errors import PlanError, printable
from gguftool.format.file_names import KEY_TENSORS
from gguftool.format.kv import ValueType, make_kv
from gguftool.model.layout import OutputOptions, check_sizes, gguf_file, with_alignment
from gguftool.model.model import Model, ModelFile
from gguftool.model.opening import ModelLike, StrPath, as_model
from gguftool.record import record, replace
from gguftool.storage.plan import Copy, OutputFile, Plan
from gguftool.storage.sources.locate import base_name
from gguftool.storage.sources.source import Extent, Source
from gguftool.surgery.compatibility import require_complete
from gguftool.surgery.merge import MergeOptions, plan_merge
from gguftool.surgery.metadata import without_layout_keys
from gguftool.surgery.selection import select_tensors


@record
class FetchOptions:
    """Which tensors to take (default: all), and how the output is laid out; tensors by pattern make one file."""

    patterns: tuple[str, ...] = ()
    output: OutputOptions = OutputOptions()

    @property
    def as_it_is(self) -> bool:
        """Whether the layout is kept."""
        return replace(self.output, force_sizes=None, keep_file_type=False) == OutputOptions()


def plan_fetch(model: ModelLike, output: StrPath, options: FetchOptions | None = None) -> Plan:
    """Plan `model`, or its tensors that match the patterns, as one valid GGUF at `output`.

    A whole model of one file is copied byte for byte, and verified if its sha256 is recorded; a set is merged. Raises
    `PlanError` if the model is incomplete, or a pattern matches nothing.
    """
    model, output, options = as_model(model), Path(output), options or FetchOptions()
    if options.patterns:
        names = select_tensors(options.patterns, tuple(model.tensors))
        if len(names) < len(model.tensors) or not model.is_complete:
            return _plan_part(model, names, output, options)
    require_complete(model)
    if len(model.files) == 1 and options.as_it_is:
        return Plan(outputs=(_as_it_is(model.files[0].source, output),), inputs=model.sources, remarks=model.remarks)
    return plan_merge([model], output, MergeOptions(output=options.output))


def plan_fetch_files(model: ModelLike, folder: StrPath) -> Plan:
    """Plan the files of `model` unchanged, under their own names in `folder`; each with a known sha256 is verified.

    Raises `PlanError` if the model is incomplete, or a name is unsafe or belongs to two files.
    """
    model = as_model(model)
    require_complete(model)
    outputs = tuple(_as_it_is(file.source, Path(folder) / _own_name(file)) for file in model.files)
    if len({output.path for output in outputs}) < len(outputs):
        raise PlanError("several folders have files of the same name; -o OUT.gguf makes one file of them")
    return Plan(outputs=outputs, inputs=model.sources, remarks=model.remarks)


def _as_it_is(source: Source, path: Path) -> OutputFile:
    copies = (Copy(extent=Extent(source=source, offset=0, length=source.size), offset=0),)
    return OutputFile(path=path, head=b"", copies=copies, size=source.size, sha256=source.sha256)


def _own_name(file: ModelFile) -> str:
    """The last part of a file's name; names come from a server's listing, so odd ones are refused."""
    name = base_name(file.source.name)
    # An escaped slash is decoded by now, and would lead out of the folder.
    if not name or name.startswith((".", "-")) or set(name) & {"/", "\\"} or not name.isprintable():
        raise PlanError(f"'{printable(name)}' cannot be the name of a file here; -o OUT.gguf gives it another")
    return name


def _plan_part(model: Model, names: Sequence[str], output: Path, options: FetchOptions) -> Plan:
    """Plan a file of some tensors. It records the whole model's count, so that it is not taken for complete."""
    tensors = [model.tensors[name] for name in names]
    dialect = options.output.dialect_for(model)
    check_sizes(tensors, dialect)
    total = model.expected_tensors or len(model.tensors)
    count = make_kv(KEY_TENSORS, ValueType.INT32, total, byte_order=model.byte_order)
    kvs = with_alignment((*without_layout_keys(model.kvs), count), dialect.alignment, dialect.byte_order)
    used = {part.source for tensor in tensors for part in tensor.extents} | {model.files[0].source}
    return Plan(
        outputs=(gguf_file(output, kvs, tensors, dialect),),
        inputs=tuple(source for source in model.sources if source in used),
        remarks=(f"takes {len(tensors):,} of {total:,} tensors", *model.remarks),
    )
