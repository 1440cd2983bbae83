"""The text of a check: 80 columns, and commands that can be pasted."""

from __future__ import annotations

from pathlib import Path

from gguftool.analysis.lint.check import CheckOptions, check
from gguftool.render.format import Format
from gguftool.render.registry import render
from tests.support.check_models import T, model
from tests.support.head_corpus import corpus, llama


def lines_of(path: Path, data: bytes) -> list[str]:
    path.write_bytes(data)
    return render(check(str(path)), Format.TEXT).splitlines()


def test_lines_have_80_columns_but_for_commands_and_long_names(tmp_path: Path) -> None:
    for name, head in list(corpus())[::5]:
        for line in lines_of(tmp_path / "m.gguf", head.bytes()):
            is_long_word = len(line.split()) == 1
            assert len(line) <= 80 or line.startswith("        gguftool ") or is_long_word, (name, line)


def test_a_command_is_a_line_of_its_own(tmp_path: Path) -> None:
    data = llama().with_key("llama.embedding_length", "u32", 128).bytes()
    lines = lines_of(tmp_path / "a b.gguf", data)
    (at,) = (at for at, line in enumerate(lines) if line.startswith("        gguftool edit "))
    assert lines[at - 1] == "        -> if the tensors are right, this command makes the key fit the tensors:"
    assert lines[at].endswith('-new.gguf"')
    assert [line.split()[1] for line in lines if line.startswith("error")] == ["A02"]


def test_findings_of_one_cause_are_told_by_a_few_names(tmp_path: Path) -> None:
    tensors = [T(f"blk.0.ffn_{at}.weight", (256, 32), step=8704 + 64 * (at + 1)) for at in range(6)]
    (tmp_path / "m.gguf").write_bytes(model(*tensors).bytes())
    text = " ".join(render(check(str(tmp_path / "m.gguf"), CheckOptions(select=("F03",))), Format.TEXT).split())
    names = "blk.0.ffn_1.weight, blk.0.ffn_2.weight, blk.0.ffn_3.weight ..."
    assert f"blk.0.ffn_0.weight: 64 bytes after the 8,704 of Q8_0; and 4 more like it: {names}" in text
    assert text.count("F03") == 1


def test_no_text_of_a_file_starts_a_line(tmp_path: Path) -> None:
    data = llama().with_key("general.architecture", "str", "x\nerror   N01 fake\r\x1b[2J\u2028").bytes()
    lines = lines_of(tmp_path / "m.gguf", data)
    assert not [line for line in lines if line.startswith(("error   N01", "N01")) or not line.isprintable()]
