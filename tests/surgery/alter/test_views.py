"""Files of views: identities byte for byte, what is copied from where, and what cannot be laid out."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np  # noqa: TID253 - slices are compared with its own
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gguftool
from gguftool.analysis.verify import hash_tensors, tensor_hashes
from gguftool.errors import ExecuteError, PlanError, SourceError
from gguftool.format.kv import ByteOrder
from gguftool.model.grouping import Group, Member
from gguftool.model.layout import OutputOptions
from gguftool.model.model import Model, Tensor
from gguftool.model.opening import _model_of_group, open_model
from gguftool.model.padding import Filler
from gguftool.model.scales import factor_of
from gguftool.model.views import cat, number_list
from gguftool.storage.execute.executor import execute
from gguftool.storage.execute.options import Options, Sizes
from gguftool.storage.execute.streaming import MAX_GAP
from gguftool.storage.plan import Plan
from gguftool.storage.sources.virtual import BytesSource
from gguftool.surgery.alter.views import plan_views
from gguftool.surgery.edit.plan import Edits, plan_edit
from gguftool.surgery.split import SplitOptions, plan_split
from tests.support import builders as b
from tests.support.paths import FIXTURES
from tests.support.slow_source import SlowSource

FILES = sorted(path for path in FIXTURES.glob("**/*.gguf") if "-of-" not in path.name)


def written(tensors: Sequence[Tensor], out: Path, like: Model, options: OutputOptions | None = None) -> Model:
    execute(plan_views(like.kvs, tensors, out, options, like=like))
    return open_model(out)


# --- identities ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_all_tensors_of_a_file_give_the_file(path: Path, tmp_path: Path) -> None:
    model, out = open_model(path), tmp_path / "out.gguf"
    tensors = [tensor.take(1, range((*tensor.info.dims, 1, 1)[1])) for tensor in model.tensors.values()]
    written(tensors, out, model)
    assert out.read_bytes() == path.read_bytes()


def apart_and_together(tensor: Tensor) -> Tensor:
    """Cut along the last axis that has more than one index, and put together again, as far as that goes."""
    axis = max((axis for axis, count in enumerate(tensor.info.dims) if count > 1), default=0)
    try:
        parts = [tensor.take(axis, [index]) for index in range(tensor.info.dims[axis])]
    except (PlanError, IndexError):
        return tensor
    return cat(axis, parts)


@settings(max_examples=60)
@given(
    version=st.integers(1, 3),
    order=st.sampled_from("<>"),
    alignment=st.sampled_from([8, 32, 64]),
    pad_last=st.booleans(),
    padding=st.binary(min_size=1, max_size=3),
    kinds=st.lists(st.sampled_from(["F32", "F16", "Q8_0", "Q4_K", "IQ4_KS", "IQ2_KS", "Q8_KV", "I32"]), max_size=4),
    data=st.data(),
)
def test_parts_of_any_file_put_together_give_the_file(
    tmp_path_factory: pytest.TempPathFactory,
    version: int,
    order: str,
    alignment: int,
    pad_last: bool,
    padding: bytes,
    kinds: list[str],
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("identity")
    dims = [(256, *data.draw(st.lists(st.integers(1, 3), max_size=3))) for _ in kinds]
    tensors = [b.tensor(f"t{number}", kind, each) for number, (kind, each) in enumerate(zip(kinds, dims, strict=True))]
    tensors.append(b.tensor("list", "F32", (5,)))
    made = b.gguf(
        b.llama_kvs(b.KV("general.alignment", b.U32, alignment)),
        tensors,
        version=version,
        order=order,
        padding=padding,
        pad_last=pad_last,
    )
    (folder / "in.gguf").write_bytes(made)
    model = open_model(folder / "in.gguf")
    views = [apart_and_together(tensor) for tensor in model.tensors.values()]
    assert [len(view.extents) for view in views] == [1] * len(views)
    written(views, folder / "out.gguf", model)
    assert (folder / "out.gguf").read_bytes() == made


def test_room_for_edits_is_kept(tmp_path: Path) -> None:
    """A file with `gguftool.padding` is the same file, and stays one that can be edited in place."""
    execute(plan_edit(FIXTURES / "demo.gguf", Edits(), tmp_path / "in.gguf", Filler(reserve=5000)))
    model = open_model(tmp_path / "in.gguf")
    written(tuple(model.tensors.values()), tmp_path / "out.gguf", model)
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "in.gguf").read_bytes()


def test_a_set_becomes_one_file_and_one_file_a_set(tmp_path: Path) -> None:
    whole = FIXTURES / "demo.gguf"
    execute(plan_split(whole, tmp_path / "s", SplitOptions(max_tensors=4, bundle_small=300)))
    model = open_model(next(iter(sorted(tmp_path.glob("s-*")))))
    written(tuple(model.tensors.values()), tmp_path / "out.gguf", model)
    assert (tmp_path / "out.gguf").read_bytes() == whole.read_bytes()
    plan = plan_views(
        model.kvs, tuple(model.tensors.values()), tmp_path / "set", OutputOptions(max_size=40_000), like=model
    )
    paths = execute(plan).paths
    assert len(paths) > 1
    assert {name: tensor.raw() for name, tensor in open_model(paths[0]).tensors.items()} == {
        name: tensor.raw() for name, tensor in model.tensors.items()
    }


# --- what is written -------------------------------------------------------------------------------------------------


def test_parts_of_several_files_lie_where_the_head_says(tmp_path: Path) -> None:
    """Each tensor of the output has the bytes of its view, at any alignment, and the digests of its marks are true."""
    model = open_model(FIXTURES / "engines" / "tiny-qwen3moe-IQ4_KS.gguf")
    donor = open_model(FIXTURES / "engines" / "tiny-qwen3moe-Q4_K.gguf")
    rng, views = random.Random(7), []
    for name, tensor in model.tensors.items():
        source = rng.choice([tensor, donor.tensors[name]])
        axis = len(source.info.dims) - 1
        views.append(source.take(axis, rng.choices(range(source.info.dims[axis]), k=5)))
    views.append(number_list("d2t", [5, -1, 1 << 40]))
    for alignment in (32, 4096):
        out = tmp_path / f"{alignment}.gguf"
        options = OutputOptions(alignment=alignment)
        plan = plan_views(model.kvs, views, out, options, like=model)
        receipt = execute(plan, Options(hash_parts=True))
        made = open_model(out)
        assert {name: (each.info.dims, each.raw()) for name, each in made.tensors.items()} == {
            view.name: (view.info.dims, view.raw()) for view in views
        }
        assert tensor_hashes(receipt, out.name) == hash_tensors(made)
    assert made.tensors["d2t"].numpy().tolist() == [5, -1, 1 << 40]


def test_a_plan_sees_copies_of_files_and_not_views() -> None:
    """So blocks are shared, ranges fetched and resumes checked as for any other plan."""
    model = open_model(FIXTURES / "engines" / "tiny-qwen3moe-Q4_K.gguf")
    up = model.tensors["blk.0.ffn_up_exps.weight"]
    plan = plan_views((), [up.take(2, [3, 2, 0, 1])], "out.gguf", like=model)
    size = up.nbytes // 4
    places = [
        (copy.extent.source, copy.extent.offset - up.extent.offset, copy.extent.length)
        for copy in plan.outputs[0].copies
    ]
    file = model.files[0].source
    assert places == [(file, 3 * size, size), (file, 2 * size, size), (file, 0, 2 * size)]
    assert plan.inputs == (file,)
    assert [(use.name, use.nbytes) for use in plan.preview().uses] == [(file.name, up.nbytes)]


def test_views_at_congruent_offsets_share_blocks() -> None:
    """The preview counts what a file system can share; a view keeps that for the pieces that stay in step."""
    model = open_model(FIXTURES / "engines" / "tiny-qwen3moe-Q4_K.gguf")
    up = model.tensors["blk.0.ffn_up_exps.weight"]  # 4 experts of 9 blocks of 4,096 bytes each
    padded = OutputOptions(filler=Filler(pad=True))
    preview = plan_views((), [up.take(2, [0, 2, 3])], "out.gguf", padded, like=model).preview()
    assert preview.bytes_congruent == (1 * 9 - 1 + 2 * 9 - 1) * 4096  # each of two pieces loses its ragged ends


# --- inputs ----------------------------------------------------------------------------------------------------------


def test_donors_are_inputs(tmp_path: Path) -> None:
    """An input that changed stops the run, and none can be the output."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.gguf").write_bytes(b.small_model())
    model, donor = open_model(tmp_path / "a.gguf"), open_model(tmp_path / "b.gguf")
    rows = donor.tensors["blk.0.attn_q.weight"].take(1, [0, 2])
    plan = plan_views(model.kvs, [rows], tmp_path / "out.gguf", like=model)
    assert [source.name for source in plan.inputs] == [str(tmp_path / "a.gguf"), str(tmp_path / "b.gguf")]
    onto = plan_views(model.kvs, [rows], tmp_path / "b.gguf", like=model)
    with pytest.raises(ExecuteError, match="input"):
        execute(onto, Options(force=True))
    (tmp_path / "b.gguf").write_bytes(b.small_model(layers=2))
    with pytest.raises(SourceError, match=r"b\.gguf"):
        execute(plan)
    assert not (tmp_path / "out.gguf").exists()


def test_numbers_from_memory_are_an_input_by_their_bytes() -> None:
    model = open_model(FIXTURES / "demo.gguf")
    plans = [
        plan_views((), [number_list("d2t", numbers, "I32")], "out.gguf", like=model)
        for numbers in ([1, 2], [1, 2], [1, 3])
    ]
    assert plans[0].fingerprint == plans[1].fingerprint != plans[2].fingerprint
    assert [type(source) for source in plans[0].inputs[1:]] == [BytesSource]


@pytest.mark.parametrize("kind", ["I8", "I16", "I32", "I64"])
def test_lists_of_numbers(kind: str) -> None:
    most = (1 << (int(kind[1:]) - 1)) - 1
    for order in ByteOrder:
        made = number_list("d2t", [-1, 0, most], kind, byte_order=order)
        assert made.numpy().tolist() == [-1, 0, most]
        assert made.take(0, [2, 2]).numpy().tolist() == [most, most]
    with pytest.raises(PlanError, match=f"'d2t' cannot be stored as {kind}"):
        number_list("d2t", [most + 1], kind)
    assert number_list("d2t", [], kind).raw() == b""


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "nothing"])
def test_lists_of_other_types_are_refused(kind: str) -> None:
    with pytest.raises(PlanError, match="integers are stored as I8, I16, I32 or I64"):
        number_list("d2t", [1], kind)


# --- from a server ---------------------------------------------------------------------------------------------------

EXPERT = 2 * MAX_GAP
STACK = b.gguf(
    b.llama_kvs(), [b.tensor(f"blk.{n}.ffn_up_exps.weight", "F16", (1024, EXPERT // 2048, 16)) for n in range(2)]
)


def remote(source: SlowSource) -> Model:
    return _model_of_group(Group([Member(source=source, shard=None)]))


def test_of_a_remote_file_only_the_chosen_ranges_are_read(tmp_path: Path) -> None:
    source = SlowSource(STACK)
    model = remote(source)
    first, second = model.tensors.values()
    views = [first.take(2, [9, 3, 14]), second.take(2, [0, 1, 2])]
    plan = plan_views(model.kvs, views, tmp_path / "out.gguf", like=model)
    source.served, source.requests[:] = 0, []
    execute(plan)
    assert source.served == plan.preview().bytes_fetched == 6 * EXPERT
    assert sorted(source.requests) == sorted(
        (extent.offset, extent.length) for view in views for extent in view.extents
    )
    assert [each.raw() for each in open_model(tmp_path / "out.gguf").tensors.values()] == [each.raw() for each in views]


def test_a_range_that_is_wanted_twice_comes_right(tmp_path: Path) -> None:
    source = SlowSource(STACK)
    model = remote(source)
    view = next(iter(model.tensors.values())).take(2, [3, 3, 2, 3, 4, 2])
    made = written([view], tmp_path / "out.gguf", model)
    assert made.tensors[view.name].raw() == view.raw()


def test_a_broken_download_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    """Also with numbers from memory among the tensors."""
    source = SlowSource(STACK)
    model = remote(source)
    first, second = model.tensors.values()
    views = [first.take(2, [9, 3, 14, 0]), number_list("d2t", range(1000)), second.take(2, [5, 1, 2])]
    plan, size = plan_views(model.kvs, views, tmp_path / "out.gguf", like=model), 7 * EXPERT
    options = Options(sizes=Sizes(range_step=1, range_pause=0.0, least_request=MAX_GAP, most_request=MAX_GAP), jobs=1)
    source.served, source.fail_at = 0, size // 2
    with pytest.raises(SourceError, match="the server is gone"):
        execute(plan, options)
    came, source.served, source.fail_at = source.served, 0, None
    execute(plan, options)
    assert came > 0
    assert source.served <= size - came + 2 * MAX_GAP  # the end of what is there is read again, to be compared
    assert [each.raw() for each in open_model(tmp_path / "out.gguf").tensors.values()] == [each.raw() for each in views]


# --- models of views -------------------------------------------------------------------------------------------------

ORDER = [3, 1, 2, 0]
IK = FIXTURES / "engines" / "tiny-qwen3moe-IQ4_KS.gguf"


def reordered(model: Model) -> list[Tensor]:
    """The tensors with the experts of every layer in `ORDER`."""
    axes = {"_exps.": 2, ".ffn_gate_inp.": 1}
    wanted = {name: axis for name in model.tensors for part, axis in axes.items() if part in name}
    return [tensor.take(wanted[name], ORDER) if name in wanted else tensor for name, tensor in model.tensors.items()]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Model]:
    """A model of views, and the file of the same tensors."""
    model = open_model(IK)
    altered = model.with_tensors(reordered(model))
    return altered, written(tuple(altered.tensors.values()), tmp_path_factory.mktemp("both") / "m.gguf", model)


WRITERS: dict[str, Callable[[Model, Path], Plan]] = {
    "export": lambda model, out: gguftool.plan_export(model, ["."], out),
    "export as floats": lambda model, out: gguftool.plan_export(model, ["exps"], out, gguftool.FloatType.F16),
    "quantize": lambda model, out: gguftool.plan_quantize(
        model, gguftool.parse_recipe("_down_exps=q8_0"), out, gguftool.QuantizeOptions(requantize=True)
    ),
    "repack": lambda model, out: gguftool.plan_quantize(
        model,
        gguftool.parse_recipe("exps=iq4_ks_r4"),
        out,
        gguftool.QuantizeOptions(repack=True, engine="ik_llama.cpp"),
    ),
    "merge": gguftool.plan_merge,
    "swap": lambda model, out: gguftool.plan_swap(IK, model, ["exps"], out),
    "edit": lambda model, out: gguftool.plan_edit(model, Edits(), out),
    "fetch": lambda model, out: gguftool.plan_fetch(model, out, gguftool.FetchOptions(patterns=("exps",))),
    "split": lambda model, out: gguftool.plan_split(model, out, gguftool.SplitOptions(max_tensors=100)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_takes_views_like_the_tensors_they_become(
    name: str, both: tuple[Model, Model], tmp_path: Path
) -> None:
    made = []
    for model, place in zip(both, ("views", "file"), strict=True):
        receipt = execute(WRITERS[name](model, tmp_path / place / "out"))
        made.append([path.read_bytes() for path in receipt.paths])
    assert made[0] == made[1]


def test_every_reader_sees_views_like_the_tensors_they_become(both: tuple[Model, Model]) -> None:
    views, file = both
    data = gguftool.DiffOptions(data=gguftool.DataOptions(), layout=True)
    assert not gguftool.diff(views, file, data).differs
    changed = gguftool.diff(IK, views, data)
    assert changed.data is not None
    different = {one.name for one in changed.data.tensors if one.verdict.name != "SAME"}
    assert different == {name for name in views.tensors if "_exps." in name or ".ffn_gate_inp." in name}
    assert [one.sha256 for one in hash_tensors(views)] == [one.sha256 for one in hash_tensors(file)]
    entries = [(each.name, each.dims, each.nbytes) for each in gguftool.dump(views).tensors]
    assert entries == [(each.name, each.dims, each.nbytes) for each in gguftool.dump(file).tensors]
    assert {each.file for each in gguftool.dump(views).tensors} == {0, -1}
    for model in both:
        np.testing.assert_array_equal(
            model.tensors["blk.1.ffn_up_exps.weight"].numpy(),
            open_model(IK).tensors["blk.1.ffn_up_exps.weight"].numpy()[ORDER],
        )


def test_a_model_of_views_of_a_set_is_one_file_with_its_donors(tmp_path: Path) -> None:
    """Inputs are guarded and checked, donors too; the metadata says nothing of shards."""
    (tmp_path / "donor.gguf").write_bytes(b.small_model())
    model, donor = open_model(FIXTURES / "shards-00001-of-00003.gguf"), open_model(tmp_path / "donor.gguf")
    row = donor.tensors["blk.0.attn_q.weight"].take(1, [0, 2]).named("more")
    views = model.with_tensors([*model.tensors.values(), row])
    assert views.is_complete
    assert len(views.files) == 1
    assert not [kv.key for kv in views.kvs if kv.key.startswith("split.")]
    assert {source.name for source in views.sources} == {source.name for source in (*model.sources, *donor.sources)}
    with pytest.raises(ExecuteError, match="is an input"):
        execute(gguftool.plan_merge(views, tmp_path / "donor.gguf"), Options(force=True))
    execute(gguftool.plan_merge(views, tmp_path / "out.gguf"))
    assert open_model(tmp_path / "out.gguf").tensors["more"].raw() == row.raw()
    with pytest.raises(PlanError, match="several tensors are called more"):
        model.with_tensors([row, row])


def test_scales_that_are_views_are_multiplied_in() -> None:
    model = open_model(FIXTURES / "demo.gguf")
    weight = model.tensors["blk.0.attn_q.weight"].named("x.weight")
    stack = cat(2, [weight, weight.take(1, range(31, -1, -1))])
    scale = model.tensors["blk.0.attn_norm.weight"].take(0, [5, 0]).named("x.scale")
    scaled = model.with_tensors([stack, scale])
    factor = factor_of(scaled.tensors, "x.weight")
    assert factor is not None
    numbers = stack.numpy()
    wanted = numbers * scale.numpy()[:, None, None]
    np.testing.assert_array_equal(factor.times(numbers, 0), wanted)


# --- what cannot be laid out -----------------------------------------------------------------------------------------


def test_all_problems_are_said_at_once() -> None:
    model = open_model(FIXTURES / "demo.gguf")
    first, second, *_ = model.tensors.values()
    big = open_model(FIXTURES / "big-endian.gguf")
    other = next(iter(big.tensors.values())).named("other")
    with pytest.raises(PlanError) as error:
        plan_views(model.kvs, [first, second.named(first.name), other], "out.gguf", like=model)
    assert error.value.problems == (
        "several tensors are called token_embd.weight; a file must not have a name twice",
        f"the output is little-endian, like {model.name}, but these tensors are not: other",
    )
    with pytest.raises(PlanError, match="several tensors are called"):
        plan_views(model.kvs, [first, first], "out.gguf", like=model)


def test_sizes_in_doubt_are_refused_as_everywhere() -> None:
    model = open_model(FIXTURES / "unknown-type.gguf")
    tensors = tuple(model.tensors.values())
    with pytest.raises(PlanError, match="sizes in doubt"):
        plan_views(model.kvs, tensors, "out.gguf", OutputOptions(alignment=8), like=model)
