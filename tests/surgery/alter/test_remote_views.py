"""Views of files behind a real web server, counted request by request in its access log."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gguftool.model.opening import open_model
from gguftool.model.views import cat
from gguftool.storage.execute.executor import execute
from gguftool.surgery.alter.views import plan_views
from tests.support import builders as b
from tests.support.nginx import Nginx

MIB = 1 << 20
EXPERTS = [
    b.tensor(f"blk.{n}.ffn_{role}_exps.weight", "Q8_0", (512, 512, 16)) for n in range(4) for role in ("gate", "up")
]


def test_a_pruned_layer_costs_the_head_and_its_experts(nginx: Callable[[Path], Nginx], tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "model.gguf").write_bytes(b.gguf(b.llama_kvs(), EXPERTS))  # 36 MB
    server = nginx(tmp_path / "served")
    model = open_model(server.url("model.gguf"))
    head = server.sent
    gate, up = (model.tensors[f"blk.2.ffn_{role}_exps.weight"].take(2, [11, 4, 7]) for role in ("gate", "up"))
    both = cat(1, [gate, up]).named("blk.2.ffn_gate_up_exps.weight")
    server.forget()
    execute(plan_views(model.kvs, [both, gate], tmp_path / "out.gguf", like=model))
    asked = sorted((int(start), int(end) + 1) for start, end in (line.range[6:].split("-") for line in server.log()))
    wanted = sorted((part.offset, part.end) for part in (*both.extents, *gate.extents))
    assert head <= MIB
    assert server.sent == both.nbytes + gate.nbytes
    assert {place for pair in asked for place in pair} <= {place for pair in wanted for place in pair}
    local = open_model(tmp_path / "served" / "model.gguf").tensors
    gate, up = (local[f"blk.2.ffn_{role}_exps.weight"].take(2, [11, 4, 7]) for role in ("gate", "up"))
    made = open_model(tmp_path / "out.gguf").tensors
    assert made[gate.name].raw() == gate.raw()
    assert made["blk.2.ffn_gate_up_exps.weight"].raw() == cat(1, [gate, up]).raw()
    halves = (made["blk.2.ffn_gate_up_exps.weight"].take(1, half) for half in (range(512), range(512, 1024)))
    assert [half.raw() for half in halves] == [gate.raw(), up.raw()]
