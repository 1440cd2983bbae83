"""The operations for tests of faults: their inputs, their outputs, and the expected result."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gguftool.format.kv import ValueType, make_kv
from gguftool.model.opening import open_model
from gguftool.model.views import cat
from gguftool.storage.execute.executor import execute
from gguftool.storage.execute.options import Options
from gguftool.storage.plan import Plan
from gguftool.surgery.alter.views import plan_views
from gguftool.surgery.edit.plan import Edits, plan_edit
from gguftool.surgery.export import plan_export
from gguftool.surgery.inputs import open_donor
from gguftool.surgery.merge import plan_merge
from gguftool.surgery.split import SplitOptions, plan_split
from gguftool.surgery.swap import plan_swap
from tests.support import builders as b

Files = Mapping[str, bytes]


def _tensors() -> tuple[b.Tensor, ...]:
    return b.llama_tensors()[:4]


def _other(name: str, kind: str, dims: tuple[int, ...]) -> b.Tensor:
    made = b.tensor(name, kind, dims)
    return b.Tensor(made.name, made.dims, made.type, b.filler(f"other {name}", len(made.data)), None)


MODEL = b.gguf(b.llama_kvs(b.KV("general.quantization_version", b.U32, 2)), _tensors())
SET = b.shard_set("set", [[], _tensors()[:2], _tensors()[2:]])
DONOR = b.gguf(
    b.llama_kvs(), [_other("blk.0.attn_q.weight", "Q8_0", (32, 7)), _other("token_embd.weight", "F16", (32, 4))]
)
OTHER_TYPE_DONOR = b.gguf(
    b.llama_kvs(), [_other("blk.0.attn_q.weight", "F16", (32, 7)), _other("token_embd.weight", "F32", (32, 4))]
)
_SWAPPED = ["token_embd.weight", "blk.0.attn_q.weight"]


def _edits(value: str) -> Edits:
    return Edits(values=(make_kv("general.name", ValueType.STRING, value),))


@dataclass(frozen=True)
class Case:
    """An operation: `files` are its inputs, `old` existing outputs (with `force`), `plan` makes the plan."""

    name: str
    files: Files
    plan: Callable[[Path], Plan]
    force: bool = False
    checkpoint: int = 1 << 30
    hash: bool = False
    changes_inputs: bool = False
    old: Files = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def _split(folder: Path) -> Plan:
    return plan_split(open_model(folder / "m.gguf"), str(folder / "out/s"), SplitOptions(max_tensors=2))


def _split_many(folder: Path) -> Plan:
    model = open_model(folder / "many.gguf")
    return plan_split(model, str(folder / "s"), SplitOptions(max_tensors=1))


def _merge(folder: Path) -> Plan:
    return plan_merge([open_model(folder / "set-00001-of-00003.gguf")], folder / "merged.gguf")


def _swap(output: str | None, donor: str = "donor.gguf", model: str = "m.gguf") -> Callable[[Path], Plan]:
    def plan(folder: Path) -> Plan:
        target = None if output is None else folder / output
        return plan_swap(open_model(folder / model), open_donor(str(folder / donor)), _SWAPPED, target)

    return plan


def _edit(output: str | None, value: str, model: str = "m.gguf") -> Callable[[Path], Plan]:
    def plan(folder: Path) -> Plan:
        target = None if output is None else folder / output
        return plan_edit(open_model(folder / model), _edits(value), target)

    return plan


def _export(folder: Path) -> Plan:
    return plan_export(open_model(folder / "m.gguf"), ["."], folder / "out.safetensors")


def _views(folder: Path) -> Plan:
    """Parts of two files, in another order."""
    model, donor = (open_model(folder / name) for name in ("m.gguf", "donor.gguf"))
    rows = cat(1, [model.tensors["blk.0.attn_q.weight"].take(1, [6, 0, 1]), donor.tensors["blk.0.attn_q.weight"]])
    kept = [tensor for name, tensor in model.tensors.items() if name != rows.name]
    tensors = [*kept[:1], rows, *(tensor.take(1, [0]) for tensor in kept[1:])]
    return plan_views(model.kvs, tensors, folder / "views.gguf", like=model)


_ONE = {"m.gguf": MODEL}
_MANY = {"many.gguf": b.gguf(b.llama_kvs(), b.llama_tensors(2))}
_WITH_DONORS = {**_ONE, "donor.gguf": DONOR, "other.gguf": OTHER_TYPE_DONOR}
_SET_WITH_DONORS = {**SET, "donor.gguf": DONOR, "other.gguf": OTHER_TYPE_DONOR}
_LARGE = b.shard_set(
    "set",
    [[], [b.tensor("a.weight", "F32", (1024, 20)), b.Tensor("b.weight", (1024, 40), 0, bytes(40 << 12), None)]],
)
_OLD_SET = {b.shard_name("out/s", n, 3): f"old shard {n}".encode() for n in (1, 2, 3)}

CASES = (
    Case("split", _ONE, _split),
    Case("split into many", _MANY, _split_many),
    Case("split --force", _ONE, _split, force=True, old=_OLD_SET),
    Case("split, checkpoints", _ONE, _split, checkpoint=300),
    Case("merge", SET, _merge),
    Case("merge --force", SET, _merge, force=True, old={"merged.gguf": b"old merged"}),
    Case("merge, checkpoints", SET, _merge, checkpoint=300),
    Case("swap -o", _WITH_DONORS, _swap("new.gguf", "other.gguf")),
    Case("swap -o, checkpoints", _WITH_DONORS, _swap("new.gguf", "other.gguf"), checkpoint=300),
    Case("swap --in-place", _WITH_DONORS, _swap(None), changes_inputs=True),
    Case("swap --in-place, set", _SET_WITH_DONORS, _swap(None, "other.gguf", "set-00001-of-00003.gguf"), force=False,
         changes_inputs=True),
    Case("edit -o", _ONE, _edit("e.gguf", "a longer name than it had")),
    Case("edit --in-place", _ONE, _edit(None, "Tony"), changes_inputs=True),
    Case("edit -o, set", SET, _edit("new", "Other", "set-00001-of-00003.gguf")),
    Case("edit --in-place, set", SET, _edit(None, "Long" * 20, "set-00001-of-00003.gguf"), changes_inputs=True),
    Case("edit -o, set with holes", _LARGE, _edit("new", "Other", "set-00001-of-00002.gguf")),
    Case("export", _ONE, _export),
    Case("views, checkpoints", _WITH_DONORS, _views, checkpoint=300),
    Case("split, hashed", _ONE, _split, hash=True),
    Case("merge, hashed, checkpoints", SET, _merge, hash=True, checkpoint=300),
)  # fmt: skip


def set_up(case: Case, folder: Path) -> None:
    """Set up `folder` with exactly the files that the case starts from."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in {**case.files, **case.old}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        write_with_holes(folder / name, data)


def write_with_holes(path: Path, data: bytes) -> None:
    """Write `data`, pages of zeros as holes."""
    with path.open("wb") as file:
        for offset in range(0, len(data), 4096):
            page = data[offset : offset + 4096]
            if any(page):
                file.seek(offset)
                file.write(page)
        file.truncate(len(data))


def run(case: Case, folder: Path, **options: object) -> Plan:
    """Plan and execute, as the command does."""
    plan = case.plan(folder)
    execute(plan, options_of(case, **options))
    return plan


def options_of(case: Case, **more: object) -> Options:
    """The options to execute the case with."""
    hashes = {"hash_files": case.hash, "hash_parts": case.hash}
    return Options(force=case.force, checkpoint=case.checkpoint, **{**hashes, **more})  # type: ignore[arg-type]


def listing(folder: Path) -> dict[str, bytes]:
    """Name and bytes of everything in `folder`."""
    return {
        os.path.relpath(os.path.join(place, name), folder): Path(place, name).read_bytes()
        for place, _, names in os.walk(folder)
        for name in names
    }


def visible(files: Files) -> dict[str, bytes]:
    """Leave out the helper files of interrupted runs."""
    return {name: data for name, data in files.items() if not os.path.basename(name).startswith(".gguftool-")}
