"""The vocabulary: keep some tokens, or add unused ones, with every row and every key that is indexed by token.

A new token has no row of its own. Rows cannot be made up without knowing every type, so it gets the row of the last
unused token, or of the last token. Their logits are equal, and greedy sampling takes the lower number.

A draft head of EAGLE-3 or DFlash may score fewer tokens than its target has: `d2t` lists them. For such a model a list
leaves the vocabulary unchanged, cuts the head, and writes `d2t` for it.

Source: llama.cpp src/models/eagle3.cpp, dflash.cpp: row i of the head scores token d2t[i].
"""

from __future__ import annotations

from collections.abc import Sequence

from gguftool.errors import PlanError
from gguftool.format.engine_facts.engines import ENGINES
from gguftool.format.engine_facts.heads import head_facts
from gguftool.format.kv import INTEGERS, KV, ValueType, find_kv
from gguftool.model.axes import AxisKind, tensor_axes, unknown_with_axis
from gguftool.model.remap.vocabulary import vocab_keys
from gguftool.model.views import number_list
from gguftool.record import replace
from gguftool.surgery.alter.lists import is_all, parse_list, resolve_own
from gguftool.surgery.alter.state import Findings, Item, State, shown

D2T = "d2t"
_TOKENS, _TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
_UNUSED = 5  # LLAMA_TOKEN_TYPE_UNUSED in include/llama.h
_MAX_ADDED = 1 << 16


def change_vocabulary(state: State, wanted: str | Sequence[int], findings: Findings) -> State:
    """`state` with the tokens of a list, or ``+N`` unused ones at the end; in a draft, only its head changes."""
    count = _count(state.kvs)
    if not count:
        findings.problem(f"--vocab: the metadata has no list of {_TOKENS}")
        return state
    problems: list[str] = []
    kept, added = _read(wanted, count, problems)
    findings.problem(*problems)
    if problems or (not added and is_all(kept, count)):
        return state
    if _is_draft(state):
        return _with_draft_head(state, kept, added, findings)
    unknown = unknown_with_axis(state.as_model(), AxisKind.VOCABULARY, count)
    findings.problem(
        *(
            f"{shown(name)}: has a dimension of {count:,} with an unknown meaning; it may count tokens"
            for name in unknown
        )
    )
    changed = vocab_keys(state.kvs, kept, added, byte_order=state.model.byte_order)
    rows = [*kept, *([_row_of_new(state.kvs, count)] * added)]
    if not changed.problems:
        findings.remark(_remark(rows, count, added))
    kvs = findings.add_changes(changed)
    if unknown or changed.problems:
        return state
    return replace(state, kvs=kvs, items=tuple(_with_rows(state, item, rows, count, findings) for item in state.items))


def _count(kvs: Sequence[KV]) -> int:
    tokens = find_kv(kvs, _TOKENS)
    is_list = tokens is not None and tokens.type is ValueType.ARRAY and tokens.element_type is ValueType.STRING
    return tokens.count if tokens is not None and is_list else 0


def _read(wanted: str | Sequence[int], count: int, problems: list[str]) -> tuple[list[int], int]:
    """The tokens to keep, and how many to add."""
    if not isinstance(wanted, str):
        outside = [number for number in wanted if not 0 <= number < count]
        if outside:
            problems.append(f"--vocab: token {outside[0]:,} is out of range; there are {count:,} tokens")
        return list(wanted), 0
    if wanted.startswith("+"):
        digits = wanted[1:]
        if not (digits.isascii() and digits.isdigit()) or not 0 < int(digits[:9]) <= _MAX_ADDED or len(digits) > 9:
            problems.append(f"--vocab {shown(wanted)}: +N adds 1 to {_MAX_ADDED:,} tokens")
            return list(range(count)), 0
        return list(range(count)), int(digits)
    return resolve_own(parse_list(wanted, "vocab"), count, "vocab", problems), 0


def _row_of_new(kvs: Sequence[KV], count: int) -> int:
    """The token that gives new ones their rows: the last unused one, else the last."""
    types = find_kv(kvs, _TYPES)
    if types is None or types.type is not ValueType.ARRAY or types.element_type not in INTEGERS:
        return count - 1
    unused = [number for number, kind in enumerate(types.value()) if kind == _UNUSED]
    return unused[-1] if unused and unused[-1] < count else count - 1


def _remark(rows: Sequence[int], count: int, added: int) -> str:
    if added:
        return f"--vocab adds {added:,} unused token(s) to {count:,}; their rows are those of token {rows[-1]:,}"
    return f"--vocab keeps {len(rows):,} of {count:,} tokens"


def _with_rows(state: State, item: Item, rows: Sequence[int], count: int, findings: Findings) -> Item:
    """`item` with the rows of these tokens, if its rows are tokens."""
    axes = tensor_axes(item.name, state.architecture)
    axis = axes.vocabulary
    if axis is None:
        return item
    if axes.holds:
        findings.problem(f"{shown(item.name)}: {axes.reason or f'it holds {axes.holds}'}")
        return item
    dims = item.tensor.info.dims
    if axis >= len(dims) or dims[axis] != count:
        have = dims[axis] if axis < len(dims) else 1
        findings.problem(f"{shown(item.name)} has {have:,} rows, but there are {count:,} tokens")
        return item
    try:
        return replace(item, tensor=item.tensor.take(axis, rows))
    except PlanError as error:
        findings.problem(str(error))
        return item


# --- heads of drafts -------------------------------------------------------------------------------------------------


def _is_draft(state: State) -> bool:
    """Whether an engine reads `d2t` in models of this architecture."""
    facts = [one for one in map(head_facts, ENGINES) if one is not None]
    known = (one.architectures.get(state.architecture) for one in facts)
    return any(tensor.name == D2T for one in known if one is not None for tensor in one.tensors)


def _with_draft_head(state: State, kept: Sequence[int], added: int, findings: Findings) -> State:
    """`state` with a head for only the tokens `kept`, and the `d2t` for it."""
    if added:
        findings.problem(
            "--vocab +N: the head of a draft scores the tokens of its target; it has no tokens of its own to add"
        )
        return state
    old = _targets(state)
    places = {token: row for row, token in enumerate(old)} if old is not None else None
    missing = [token for token in kept if places is not None and token not in places]
    if missing:
        findings.problem(f"--vocab: the draft does not score token {missing[0]:,} ({len(missing):,} such tokens)")
        return state
    rows = [places[token] for token in kept] if places is not None else list(kept)
    count = _count(state.kvs) if old is None else len(old)
    items = [_with_draft_rows(state, item, rows, count, findings) for item in state.items if item.name != D2T]
    listed = number_list(D2T, kept, byte_order=state.model.byte_order)
    head = Item(tensor=listed, model=state.model)
    place = next((index for index, item in enumerate(state.items) if item.name == D2T), len(items))
    findings.remark(f"--vocab: the draft's head scores {len(kept):,} of {count:,} tokens; d2t lists them")
    return state.with_items([*items[:place], head, *items[place:]])


def _targets(state: State) -> list[int] | None:
    """The tokens that the rows of the head score, or None if it scores all."""
    item = state.by_name.get(D2T)
    return None if item is None else [int(token) for token in item.tensor.numpy().reshape(-1)]


def _with_draft_rows(state: State, item: Item, rows: Sequence[int], count: int, findings: Findings) -> Item:
    axes = tensor_axes(item.name, state.architecture)
    return _with_rows(state, item, rows, count, findings) if axes.draft else item
