"""Lossless relayouts: interleaved rows and plain ones, in both directions, against the bytes of ik_llama.cpp."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguftool.format.dequantize import decoder_of
from gguftool.format.ggml import find_type
from gguftool.format.kv import ByteOrder
from gguftool.format.quants.relayout import Relayout, relayout_of
from gguftool.format.quants.repacks import REPACKS
from gguftool.model.model import Model, Tensor
from gguftool.model.opening import open_model
from tests.support import builders as b
from tests.support.command import run_gguftool
from tests.support.paths import FIXTURES

np = pytest.importorskip("numpy")

ZOO = FIXTURES / "engines" / "zoo" / "zoo-ik.gguf"
OLD = {"Q4_0_4_4": (4, 4), "Q4_0_4_8": (4, 8), "Q4_0_8_8": (8, 8)}
# Not these: IQ1_S_R4 and the like are no repacks, and Q8_K is no type of files.
NOT_THE_SAME = {"Q8_K_R8"}


@pytest.fixture(scope="module")
def by_type() -> dict[str, Tensor]:
    model: Model = open_model(ZOO)
    return {tensor.type_name: tensor for tensor in model.tensors.values()}


def type_id(name: str) -> int:
    kind = find_type(name)
    assert kind is not None
    return kind.id


def relayout(old: str, new: str, dims: tuple[int, ...]) -> Relayout | None:
    return relayout_of(type_id(old), type_id(new), dims)


PAIRS = sorted((name, one.base) for name, one in REPACKS.items() if name != one.base and name not in NOT_THE_SAME)


@pytest.mark.parametrize(("packed", "plain"), PAIRS)
def test_the_engine_s_bytes_hold_the_numbers_of_the_plain_type_and_come_back(
    by_type: dict[str, Tensor], packed: str, plain: str
) -> None:
    if packed in OLD or packed == "Q8_KV_R8":
        return  # no engine makes the first any more; the other keeps less in each row
    tensor = by_type[packed]
    there, back = relayout(packed, plain, tensor.info.dims), relayout(plain, packed, tensor.info.dims)
    assert there is not None
    assert back is not None
    taken_apart = there.convert(tensor.raw())
    decoders = [decoder_of(type_id(name), ByteOrder.LITTLE, tensor.info.dims) for name in (packed, plain)]
    assert decoders[0] is not None
    assert decoders[1] is not None
    np.testing.assert_array_equal(decoders[0].decode(tensor.raw()), decoders[1].decode(taken_apart))
    assert back.convert(taken_apart) == tensor.raw()


def test_what_the_engine_made_directly_is_what_a_relayout_makes(by_type: dict[str, Tensor]) -> None:
    """Q8_0 heeds no imatrix, so another package makes the same blocks of the same floats."""
    quants = pytest.importorskip("gguf.quants")
    tensor = by_type["Q8_0_R8"]
    floats = open_model(ZOO.with_name("zoo-f32-ik.gguf")).tensors[tensor.name].numpy()
    plain = quants.quantize(floats, quants.GGMLQuantizationType.Q8_0).tobytes()
    change = relayout("Q8_0", "Q8_0_R8", tensor.info.dims)
    assert change is not None
    assert change.convert(plain) == tensor.raw()


@pytest.mark.parametrize("packed", OLD)
def test_the_old_forms_of_q4_0_come_back_as_it_was(by_type: dict[str, Tensor], packed: str) -> None:
    rows, size = OLD[packed]
    plain = by_type["Q4_0"]
    blocks = np.frombuffer(plain.raw(), dtype=np.uint8).reshape(-1, rows, plain.info.dims[0] // 32, 18)
    groups = []
    for group in blocks:
        for column in range(group.shape[1]):
            codes = [
                group[row, column, 2 + at : 2 + at + size] ^ 0x88 for at in range(0, 16, size) for row in range(rows)
            ]
            groups += [*(group[row, column, :2] for row in range(rows)), *codes]
    old = np.concatenate(groups).tobytes()
    there, back = relayout(packed, "Q4_0", plain.info.dims), relayout("Q4_0", packed, plain.info.dims)
    assert there is not None
    assert back is not None
    assert there.convert(old) == plain.raw()
    assert back.convert(plain.raw()) == old


@pytest.mark.parametrize(
    ("old", "new", "dims"),
    [
        ("Q4_0", "Q5_0_R4", (256, 16)),  # other numbers
        ("Q8_KV_R8", "Q8_KV", (256, 16)),  # other rows
        ("Q4_K", "Q4_K_R4", (256, 6)),  # rows that do not divide
        ("IQ1_S", "IQ1_S_R4", (256, 16)),  # of the same name, and not the same numbers
        ("Q4_K", "Q4_K", (256, 16)),
    ],
)
def test_what_is_no_relayout_is_none(old: str, new: str, dims: tuple[int, ...]) -> None:
    assert relayout(old, new, dims) is None


def test_quantize_goes_back_to_q4_0_and_refuses_what_is_no_relayout(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    data = rng.integers(0, 256, 18 * 8 * 8, dtype=np.uint8)
    data.reshape(-1, 18 * 4)[:, 1:8:2] &= 0x3F  # scales that are finite
    tensor = b.Tensor("blk.0.attn_q.weight", (256, 8), 31, data.tobytes())
    old = tmp_path / "old.gguf"
    old.write_bytes(b.gguf(b.llama_kvs(), (tensor, *b.llama_tensors()[:1])))
    plan = [tmp_path / name for name in ("new.gguf", "back.gguf", "bad.gguf")]
    assert run_gguftool("quantize", old, "--repack", "-o", plan[0]).returncode == 0
    made = open_model(plan[0]).tensors[str(tensor.name)]
    assert made.type_name == "Q4_0"
    np.testing.assert_array_equal(made.numpy(), open_model(old).tensors[str(tensor.name)].numpy())
    back = ("--repack", "--engine", "ik_llama.cpp", "--tensor", "attn_q=q4_0_4_4")
    assert run_gguftool("quantize", plan[0], *back, "-o", plan[1]).returncode == 0
    assert open_model(plan[1]).tensors[str(tensor.name)].raw() == tensor.data
    refused = run_gguftool("quantize", old, "--repack", "--tensor", "attn_q=q8_0", "-o", plan[2])
    assert (refused.returncode, b"--repack" in refused.stderr) == (2, True)
