from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest

from gguftool.analysis.placement import parse_rules
from gguftool.analysis.report import Distribution, Report, distribution, report
from gguftool.model.opening import open_model, open_models
from gguftool.model.roles import Role
from gguftool.render.format import Format
from gguftool.render.json_text import render_json
from gguftool.render.models.label import label_text
from gguftool.render.models.report import report_csv, report_markdown, strips_of
from gguftool.render.models.report_tables import ReportBy, percent
from gguftool.render.page.strip import strip_rich, strip_text
from gguftool.render.registry import render
from gguftool.render.table import markdown_text
from gguftool.storage.sources.local import LocalSource
from tests.support.counted_work import LINEAR, calls_of
from tests.support.hostile_text import HOSTILE
from tests.support.paths import FIXTURES, REPO
from tests.support.report_model import EMBD, EXPERTS, FF, Spec, gguf, golden, moe_kvs, moe_tensors, write_moe, write_set
from tests.support.text_command import run_text


def report_text(made: Report, by: ReportBy | None = None) -> str:
    return render(made, Format.TEXT, by=by)


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # so that outputs name files without a folder


def moe(**changes: object) -> Path:
    return write_moe(Path("moe.gguf"), **changes)  # type: ignore[arg-type]


def reported(path: Path, *places: str) -> Distribution:
    return distribution(open_model(path), parse_rules(places))


def write(name: str, tensors: list[Spec], kvs: list[bytes] | None = None) -> Path:
    path = Path(name)
    path.write_bytes(gguf(moe_kvs() if kvs is None else kvs, tensors))
    return path


# --- figures ---------------------------------------------------------------------------------------------------------


def test_each_breakdown_adds_up_to_the_model() -> None:
    specs = moe_tensors()
    found = reported(moe(), "exps=CPU")
    nbytes = sum(spec.nbytes for spec in specs)
    assert (found.nbytes, len(found.tensors)) == (nbytes, len(specs))
    assert found.placement is not None
    for shares in (found.by_type, found.by_role, found.placement.devices):
        assert sum(share.nbytes for share in shares) == nbytes
        assert sum(share.tensors for share in shares) == len(specs)
        assert sum(share.parameters for share in shares) == found.parameters
        assert sum(share.share for share in shares) == pytest.approx(1, abs=1e-5)
    (grid,) = found.by_layer
    in_layers = sum(spec.nbytes for spec in specs if spec.name.startswith("blk."))
    assert sum(cell.nbytes for cell in grid.cells) == sum(share.nbytes for share in grid.totals) == in_layers


def test_bits_per_weight_count_row_metadata() -> None:
    found = {share.name: share for share in reported(moe()).by_type}
    rows, bits = EXPERTS * EMBD, 136 * 8 * FF // 256
    assert found["IQ4_KS"].bits_per_weight == pytest.approx(rows * (bits + 32) / (rows * FF))
    assert found["Q4_K"].bits_per_weight == 4.5


def test_layers_roles_and_mtp() -> None:
    (grid,) = reported(moe()).by_layer
    assert (grid.stack, grid.layers) == ("blk", tuple(range(12)))
    cells = {(cell.role, cell.layer): cell for cell in grid.cells}
    assert cells["routed experts", 5].types == ("IQ3_K", "IQ2_KS")
    assert cells["routed experts", 4].types == ("IQ4_KS", "IQ3_K")
    assert ("routed experts", 0) not in cells
    assert cells["dense ffn", 0].types == ("Q6_K",)
    assert [role for role, layer in cells if layer == 11] == ["mtp"]


def test_vectors_make_no_mix_of_a_cell_but_show_where_alone() -> None:
    bias = Spec("blk.0.attn_q.bias", (256,), "F32")
    (grid,) = reported(write("b.gguf", [Spec("blk.0.attn_q.weight", (256, 256), "Q6_K"), bias])).by_layer
    assert grid.cells[0].types == ("Q6_K",)
    assert grid.cells[0].tensors == 2
    (grid,) = reported(write("c.gguf", [bias])).by_layer
    assert grid.cells[0].types == ("F32",)


# --- label and claim -------------------------------------------------------------------------------------------------


def test_label_of_a_mix() -> None:
    label = reported(moe()).label
    assert re.fullmatch(r"IQ3_K mix, 4\.58 bpw, 7 types, 8\.47 MiB", label_text(label))
    assert (label.claim.number, label.claim.name, label.claim.agrees) == (139, "IQ3_K", True)


def test_router_and_norms_make_no_mix_and_embeddings_no_majority() -> None:
    layers = [Spec("blk.0.attn_q.weight", (256, 256), "Q8_0"), Spec("blk.0.attn_norm.weight", (256,), "F32")]
    pure = [*layers, Spec("blk.0.ffn_gate_inp.weight", (256, 4), "F32")]
    assert label_text(reported(write("p.gguf", pure)).label).startswith("Q8_0, ")
    big = Spec("token_embd.weight", (256, 4096), "Q4_K")
    assert label_text(reported(write("q.gguf", [big, *pure])).label).startswith("Q8_0 mix, ")


def test_label_of_nothing() -> None:
    found = report([open_model(write("empty.gguf", []))])
    assert label_text(found.models[0].label) == "no tensors"
    assert found.models[0].by_layer == ()
    assert "no tensors" in report_text(found)
    assert json.loads(render_json(found))["models"][0]["parameters"] == 0


def test_claims() -> None:
    wrong = reported(moe(file_type=15)).label.claim
    assert wrong.agrees is False
    assert wrong.text == "general.file_type says Q4_K_M (15), so mostly Q4_K; but most weights are IQ3_K"
    guessed = reported(moe(file_type=139 | 1024)).label.claim
    assert (guessed.name, guessed.agrees) == ("IQ3_K", True)
    unknown = reported(moe(file_type=4000)).label.claim
    assert (unknown.agrees, unknown.text) == (None, "general.file_type is 4000, a number that neither engine knows")
    absent = reported(write("n.gguf", moe_tensors(), [])).label.claim
    assert (absent.number, absent.text) == (None, "general.file_type is not set")


# --- placement -------------------------------------------------------------------------------------------------------


def test_bytes_per_device() -> None:
    found = reported(moe(), "exps=CPU", "blk=CUDA0").placement
    assert found is not None
    sizes = {share.name: share.nbytes for share in found.devices}
    specs = moe_tensors()
    assert sizes["CPU"] == sum(spec.nbytes for spec in specs if "exps" in spec.name)
    assert sizes["CUDA0"] == sum(s.nbytes for s in specs if "exps" not in s.name and s.name.startswith("blk"))
    assert found.unplaced == ("token_embd.weight", "output_norm.weight", "output.weight")
    assert [use.nbytes for use in found.rules] == [sizes["CPU"], sizes["CUDA0"]]


def test_a_rule_that_takes_nothing_is_said() -> None:
    (text,) = reported(moe(), "expz=CPU", ".*=CUDA0").remarks
    assert text == "--place expz=CPU took no tensor"


# --- formats ---------------------------------------------------------------------------------------------------------


def both() -> Report:
    moe()
    write_moe(Path("other.gguf"), file_type=15, layers=3)
    return report(open_models("moe.gguf", "other.gguf"), parse_rules(["exps=CPU"]))


@pytest.mark.parametrize("by", [None, *ReportBy])
def test_golden_text(by: ReportBy | None) -> None:
    golden(f"report-{by.value if by else 'all'}.txt", report_text(report(open_models(moe())), by))


@pytest.mark.parametrize("by", list(ReportBy))
def test_golden_csv(by: ReportBy) -> None:
    golden(f"report-{by.value}.csv", report_csv(report(open_models(moe()), parse_rules(["exps=CPU"])), by))


def test_golden_json_and_markdown() -> None:
    moe(layers=3)
    made = report(open_models("moe.gguf"), parse_rules(["exps=CPU", "nothing=CUDA0"]))
    golden("report.json", render_json(made))
    golden("report.md", report_markdown(made))


@pytest.mark.parametrize("by", [None, *ReportBy])
def test_golden_side_by_side(by: ReportBy | None) -> None:
    golden(f"report-two-{by.value if by else 'all'}.txt", report_text(both(), by))


def test_csv_has_plain_numbers() -> None:
    rows = list(csv.DictReader(io.StringIO(report_csv(both(), ReportBy.TENSOR))))
    first = [row for row in rows if row["model"] == "moe.gguf"]
    assert [int(row["bytes"]) for row in first] == [spec.nbytes for spec in moe_tensors()]
    assert {row["device"] for row in first} == {"CPU", ""}


def test_sides_share_their_letters_and_rows() -> None:
    (strip,) = strips_of(both())
    rows = {row.name: row.cells for row in strip.rows}
    assert [cell is None for cell in rows["mtp #2"][:4]] == [True, True, False, True]
    assert list(rows).index("attention #2") == list(rows).index("attention #1") + 1


def test_strip_wraps_and_keeps_every_layer() -> None:
    tensors = [Spec(f"blk.{number}.attn_q.weight", (256, 1), "Q8_0") for number in range(137)]
    (strip,) = strips_of(report(open_models(write("deep.gguf", tensors))))
    for width in (1, 40, 80, 500):
        text = strip_text(strip, width)
        assert len(re.findall("A", "".join(re.findall("^attention +(A+)$", text, re.MULTILINE)))) == 137
        if width >= 40:
            assert max(map(len, text.splitlines())) <= width
    assert re.search(r"^ +0 {9}10 {8}20$", strip_text(strip, 45), re.MULTILINE)


def test_strip_with_more_types_than_letters() -> None:
    zoo = FIXTURES / "engines" / "zoo" / "zoo-ik.gguf"
    (strip,) = strips_of(report(open_models(str(zoo))))
    assert re.search(r"# = \d+ other types", strip_text(strip))


def test_strip_in_colour() -> None:
    from rich.console import Console

    (strip,) = strips_of(report(open_models(moe())))
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=80)
    with console.capture() as captured:
        console.print(strip_rich(strip, 80))
    letters = re.findall(r"\x1b\[[0-9;]*48;2;(\d+;\d+;\d+)m(\w)\x1b", captured.get())
    assert len({letter.upper() for _, letter in letters}) == len({colour for colour, _ in letters}) > 3
    shown = Console(file=io.StringIO(), width=80)
    with shown.capture() as plain:
        shown.print(strip_rich(strip, 80))
    for line in re.findall(r"^(?:attention|norms|mtp) .*$", strip_text(strip, 80), re.MULTILINE):
        assert line in plain.get()


@pytest.mark.parametrize("share", [0.0, 0.0004, 0.0005, 0.5, 1.0])
def test_percent(share: float) -> None:
    expected = {0.0: "0.0%", 0.0004: "<0.1%", 0.0005: "0.1%", 0.5: "50.0%", 1.0: "100.0%"}
    assert percent(share) == expected[share]


def test_hostile_names_stay_text() -> None:
    path = write("h.gguf", [Spec(name, (256,), "F32") for name in HOSTILE], moe_kvs(name="\x1b]0;x\x07"))
    made = report(open_models(path), parse_rules(["^b=CPU"]))
    for text in (
        report_text(made, ReportBy.TENSOR),
        report_markdown(made, ReportBy.TENSOR),
        report_csv(made, ReportBy.TENSOR),
    ):
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e\udc80-\udcff]", text)
        assert "two\nlines" not in text
    assert "<script>" not in report_markdown(made, ReportBy.TENSOR)
    names = [row["name"] for row in json.loads(render_json(made))["models"][0]["tensors"]]
    assert names[3] == "<script>alert(1)</script>"
    assert names[4] == {"b64": "YmFk/w=="}


# --- reading ---------------------------------------------------------------------------------------------------------


def test_no_tensor_data_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []
    read_at = LocalSource.read_at

    def spy(self: LocalSource, offset: int, length: int) -> bytes:
        ends.append(offset + length)
        return read_at(self, offset, length)

    monkeypatch.setattr(LocalSource, "read_at", spy)
    report_text(report(open_models(moe())), ReportBy.TENSOR)
    assert ends
    assert max(ends) <= 64 << 10 < Path("moe.gguf").stat().st_size


def test_the_work_of_a_report_grows_with_the_number_of_shards() -> None:
    few, many = (open_models(write_set(Path(), count)) for count in (144, 1148))
    assert len(many[0].tensors) == 1147
    assert calls_of(lambda: report(many)) < LINEAR * calls_of(lambda: report(few))


@pytest.mark.parametrize(("kind", "count"), [("llama", 7), ("qwen3moe", 2)])
def test_models_of_the_engines_agree_with_their_names(kind: str, count: int) -> None:
    paths = sorted((FIXTURES / "engines").glob(f"tiny-{kind}-*.gguf"))
    assert len(paths) == count
    for path in paths:
        found = reported(path)
        kept = {"BF16", "Q8_0", "Q6_K", "Q4_K", "IQ4_XS", "IQ4_KS", "IQ5_K"}
        assert found.label.majority == path.stem.rpartition("-")[2]
        assert found.label.majority in kept
        assert found.label.claim.agrees is True
        assert "other" not in {share.name for share in found.by_role}


# --- the command -----------------------------------------------------------------------------------------------------


def test_command_shows_what_the_library_renders() -> None:
    moe()
    done = run_text("report", "moe.gguf", "--place", "exps=CPU,zzz=X", "--by", "role")
    assert done.returncode == 0
    assert done.stdout == report_text(report(open_models("moe.gguf"), parse_rules(["exps=CPU,zzz=X"])), ReportBy.ROLE)
    assert "--place zzz=X took no tensor" in done.stderr
    assert json.loads(run_text("report", "moe.gguf", "--json").stdout)["models"][0]["architecture"] == "deepseek2"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--json", "--csv"], "exclude each other"),
        (["--by", "colour"], "takes type, role, layer, tensor"),
        (["--place", "exps"], "is not REGEX=DEVICE"),
    ],
)
def test_bad_usage_is_said(args: list[str], said: str) -> None:
    moe()
    done = run_text("report", "moe.gguf", *args)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_one_name_with_partial_sets_is_one_model() -> None:
    write("a-00001-of-00003.gguf", [Spec("blk.0.attn_q.weight", (256, 2), "Q8_0")])
    write("b-00002-of-00003.gguf", [Spec("blk.1.attn_q.weight", (256, 2), "Q8_0")])
    done = run_text("report", ".", "--json")
    (model,) = json.loads(done.stdout)["models"]
    assert len(model["tensors"]) == 2
    assert "is incomplete" in done.stderr


# --- dump ------------------------------------------------------------------------------------------------------------


def test_dump_csv() -> None:
    moe()
    rows = list(csv.DictReader(io.StringIO(run_text("dump", "moe.gguf", "--csv").stdout)))
    assert [(row["name"], row["type"], int(row["bytes"])) for row in rows] == [
        (spec.name, spec.type, spec.nbytes) for spec in moe_tensors()
    ]
    kvs = list(csv.DictReader(io.StringIO(run_text("dump", "moe.gguf", "--csv", "--no-tensors").stdout)))
    assert [(row["key"], row["type"], row["value"]) for row in kvs] == [
        ("general.architecture", "STRING", "deepseek2"),
        ("general.name", "STRING", "Tiny <MoE> & Sons"),
        ("general.file_type", "UINT32", "139"),
    ]


def test_dump_markdown() -> None:
    moe(layers=2)
    golden("dump.md", run_text("dump", "moe.gguf", "--markdown").stdout)
    only = run_text("dump", "moe.gguf", "--markdown", "--no-kv").stdout
    assert "metadata" not in only
    assert "| token_embd.weight |" in only
    assert run_text("dump", "moe.gguf", "--markdown", "--json").returncode == 2


def test_markdown_means_nothing_but_the_text() -> None:
    text = "a_b _c_ d__e &#8238; $x$ <b> `q` [l](u) |"
    assert markdown_text(text) == r"a_b \_c\_ d\_\_e \&\#8238; \$x\$ \<b\> \`q\` \[l\](u) \|"


def test_docs_show_real_output() -> None:
    docs = (REPO / "docs" / "report.md").read_text(encoding="utf-8")
    assert report_text(report(open_models(moe()))) in docs
    assert report_text(both(), ReportBy.ROLE) in docs
    placed = report_text(report(open_models("moe.gguf"), parse_rules(["exps=CPU", ".*=CUDA0"])))
    assert placed[placed.index("by device") :] in docs


def test_docs_name_every_json_field_and_role() -> None:
    docs = (REPO / "docs" / "report.md").read_text(encoding="utf-8")
    moe()
    made = json.loads(render_json(report(open_models("moe.gguf"), parse_rules(["exps=CPU"]))))

    def fields(value: object) -> set[str]:
        if isinstance(value, dict):
            return set(value) | {name for item in value.values() for name in fields(item)}
        return {name for item in value for name in fields(item)} if isinstance(value, list) else set()

    assert {name for name in fields(made) if not re.search(rf"[`.]{name}[`\[.]", docs)} == set()
    assert [role.value for role in Role if f"| {role.value} |" not in docs] == []


def test_padding_is_not_counted() -> None:
    found = reported(write("odd.gguf", [Spec("blk.0.attn_q.bias", (5,), "F32"), Spec("output.bias", (3,), "F32")]))
    assert (found.nbytes, [row.nbytes for row in found.tensors]) == (32, [20, 12])
    assert found.label.bits_per_weight == 32
