"""The man page is what docs/make_man.py makes of the commands as they are."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess

import pytest

from tests.support.command import commands
from tests.support.paths import REPO

PAGE = REPO / "docs" / "gguftool.1"


def test_the_page_is_up_to_date() -> None:
    made = runpy.run_path(str(REPO / "docs" / "make_man.py"))["page"]()
    assert PAGE.read_text(encoding="utf-8") == made, "run: python docs/make_man.py"


def test_every_command_and_option_is_in_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8").replace("\\-", "-")
    for name, command in commands().items():
        assert f'.SS "{name}"' in text
        for param in command.params:
            for option in param.opts if param.param_type_name == "option" else ():
                assert f"\\fB{option}\\fR" in text, (name, option)


def test_no_line_is_a_request_that_roff_does_not_know() -> None:
    requests = set(re.findall(r"^[.'](\S*)", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert requests <= {'\\"', "TH", "SH", "SS", "PP", "TP", "nf", "fi", "RS", "RE"}


@pytest.mark.skipif(shutil.which("groff") is None, reason="no groff: apt-get install groff")
def test_groff_has_nothing_to_say_and_keeps_the_examples() -> None:
    command = ["groff", "-man", "-Tascii", "-ww", "-rLL=100n", "-P-c", "-P-b", "-P-u", str(PAGE)]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    assert done.stderr == b""
    assert "gguftool edit model.gguf --set-token 'eos=<|im_end|>' --in-place" in done.stdout.decode()
