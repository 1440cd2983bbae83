"""Merges that remove their inputs, for tests of faults: their inputs, and whether a tensor is lost."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from gguftool.format.recipe import parse_any
from gguftool.model.layout import OutputOptions
from gguftool.storage.execute.executor import execute
from gguftool.storage.execute.options import Options
from gguftool.storage.plan import Plan, Request
from gguftool.surgery.inputs import open_inputs
from gguftool.surgery.merge import MergeOptions, merge_anchor, plan_merge
from gguftool.surgery.removable import find_begun
from tests.support import builders as b
from tests.support.faults import helper_path
from tests.support.writer_cases import DONOR, SET, Files, listing, set_up

_RECIPE = parse_any(b"blk.0.attn_q=@donor\n.=@set\n", "r")


@dataclass(frozen=True)
class ConsumeCase:
    """`files` are merged into `output`; `stays` are those that must still exist afterwards."""

    name: str
    files: Files
    models: tuple[str, ...]
    output: str
    max_size: int | None = None
    mixed: bool = False
    stays: tuple[str, ...] = ()
    force: bool = False
    old: Files = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def set_up(self, folder: Path) -> None:
        set_up(self, folder)  # type: ignore[arg-type]

    def request(self, folder: Path) -> Request:
        return Request(models=tuple(str(folder / name) for name in self.models))

    def anchor(self, folder: Path) -> Path:
        return merge_anchor(folder / self.output, self.max_size)

    def plan_anew(self, folder: Path, *, consume: bool = True) -> Plan:
        request = self.request(folder) if consume else None
        recipe, layout = _RECIPE if self.mixed else None, OutputOptions(max_size=self.max_size)
        options = MergeOptions(recipe=recipe, output=layout, consume=request)
        labels = ("set=", "donor=") if self.mixed else ("", "")
        named = [label + str(folder / name) for label, name in zip(labels, self.models, strict=False)]
        return plan_merge(open_inputs(named), folder / self.output, options)

    def plan(self, folder: Path) -> Plan:
        """Do what the command does: resume an interrupted run, else plan."""
        begun = find_begun(self.anchor(folder), self.request(folder), lambda: self.plan_anew(folder))
        return begun or self.plan_anew(folder)

    def run(self, folder: Path) -> None:
        execute(self.plan(folder), Options(force=self.force))

    def is_begun(self, folder: Path) -> bool:
        """Whether there is a journal, so that the same command resumes."""
        return helper_path(self.anchor(folder), "consume").exists()

    def wanted(self, folder: Path) -> dict[str, bytes]:
        """All files that a plain merge leaves, except those that are removed."""
        self.set_up(folder)
        execute(self.plan_anew(folder, consume=False), Options(force=self.force))
        return {name: data for name, data in listing(folder).items() if name not in self.files or name in self.stays}


_BIG = b.shard_set("set", [[], *([tensor] for tensor in b.llama_tensors()[:4])])
_FIRST = "set-00001-of-00003.gguf"
CONSUME_CASES = (
    ConsumeCase("merge --consume", SET, (_FIRST,), "merged.gguf"),
    ConsumeCase("merge --consume --force", SET, (_FIRST,), "merged.gguf", force=True, old={"merged.gguf": b"old"}),
    ConsumeCase("merge --consume, set", _BIG, ("set-00001-of-00005.gguf",), "out", max_size=1500),
    ConsumeCase("merge --consume, mix", {**SET, "donor.gguf": DONOR}, (_FIRST, "donor.gguf"), "merged.gguf", mixed=True,
                stays=("donor.gguf", "set-00003-of-00003.gguf")),
)  # fmt: skip


def assert_nothing_is_lost(case: ConsumeCase, folder: Path, plan: Plan, where: str = "") -> None:
    """Every input is unchanged, or its data is in the outputs or their part files and the run can resume."""
    now = listing(folder)
    for name, data in case.files.items():
        assert now.get(name, data) == data, f"{where}: {name} was changed"
    gone = [name for name in case.files if name not in now]
    assert not set(gone) & set(case.stays), where
    unfinished = [output for output in plan.outputs if helper_path(output.path, "only-copy").exists()]
    if gone and unfinished:
        assert helper_path(case.anchor(folder), "consume").name in now, where
    for output in plan.outputs:
        holder = helper_path(output.path, "only-copy")
        holder = holder if holder.exists() else output.path
        for copy in output.copies:
            source = Path(copy.extent.source.name).name
            if source in gone:
                wanted = case.files[source][copy.extent.offset : copy.extent.end]
                with open(holder, "rb") as file:
                    file.seek(copy.offset)
                    assert file.read(copy.extent.length) == wanted, f"{where}: {source} is lost"
