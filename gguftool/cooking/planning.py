"""`plan`: from models, evidence and demands to a mix, with its cost and quality.

    models -> offers -> items (locks, pairs, devices) -> damage of every type -> solver -> Mix

Pure, except that it reads heads and files of measurements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from gguftool.cooking.damage.evidence import NOTHING, Evidence
from gguftool.cooking.damage.levels import LevelSource
from gguftool.cooking.damage.model import Subject
from gguftool.cooking.damage.sensitivities import EvidenceFiles, read_evidence, unknown_tensors
from gguftool.cooking.devices import Placement, Reserve, engine_arguments, reserves
from gguftool.cooking.exploration import Exploration, added
from gguftool.cooking.inputs import Offers, check_types, from_start, open_offers
from gguftool.cooking.items import Constraints, Item, make_items, parse_type_rules
from gguftool.cooking.mix import CurvePoint, DeviceUse, Mix, MixOptions, MixTensor, Rival, type_uses
from gguftool.cooking.model_digest import model_digest
from gguftool.cooking.offers import Offer, used_share
from gguftool.cooking.recipe_text import recipe_text
from gguftool.cooking.rivals import Priced, Scale, preset_mixes, recipe_types, thinned
from gguftool.cooking.solving.choosing import Choice, Demands, Table, choose
from gguftool.cooking.solving.solver import DoesNotFitError, frontier, solve
from gguftool.errors import Notes, PlanError, grouped
from gguftool.model.hparams import number
from gguftool.model.opening import ModelLike
from gguftool.record import replace

_SLOW_MEMORY = 10.0  # GPUs read their memory about this many times as fast as CPUs read theirs


def plan_mix(
    models: ModelLike | Sequence[ModelLike], options: MixOptions, evidence: Evidence | EvidenceFiles = NOTHING
) -> Mix:
    """Choose a type for every tensor of one model to quantize, or of several ready-made quants and tensors.maps.

    Raises the errors of `open_model` for paths and those of readers of measurements, and one `PlanError` for all
    demands that cannot be met.
    """
    return explore_mix(models, options, evidence).mix


def explore_mix(
    models: ModelLike | Sequence[ModelLike], options: MixOptions, evidence: Evidence | EvidenceFiles = NOTHING
) -> Exploration:
    """Plan as `plan_mix` does, and keep the numbers of the choice: for `plan --html`."""
    known = read_evidence(evidence) if isinstance(evidence, EvidenceFiles) else evidence
    notes = Notes()
    check_types(options, notes)
    offered = open_offers(models, options, notes)
    wrong = unknown_tensors(known, [offer.name for offer in offered.offers])
    if wrong is not None:
        notes.problem(wrong, "")
    _check_digest(offered, known, notes)
    return explore_offers(offered, options, known, notes)


def _check_digest(offered: Offers, known: Evidence, notes: Notes) -> None:
    """Warn if measurements were made on other data than the model to quantize: a fine-tune has the same names."""
    model = offered.model
    if offered.ready or model is None or not known.models or any(source.is_remote for source in model.sources):
        return
    if model_digest(model) not in known.models:
        warning = "was not measured on this file: right for a copy of the model in another type, wrong for a fine-tune"
        notes.remark(warning, known.inputs[0].name)


# --- choosing --------------------------------------------------------------------------------------------------------


def choose_mix(offered: Offers, options: MixOptions, evidence: Evidence, notes: Notes | None = None) -> Mix:
    """Choose from given offers, such as those of `offer_types`; `notes` may already hold notes of the opening.

    Raises one `PlanError` for all demands that cannot be met.
    """
    return explore_offers(offered, options, evidence, notes).mix


def explore_offers(offered: Offers, options: MixOptions, evidence: Evidence, notes: Notes | None = None) -> Exploration:
    """Choose as `choose_mix` does, and keep the numbers."""
    notes = Notes() if notes is None else notes
    options = from_start(offered, options)
    placement = Placement(options.devices)
    budgets, held = _budgets(offered, options, placement, notes)
    items = make_items(offered.offers, _constraints(offered, options, notes), placement.device_of, notes)
    _check_placement(items, placement, options, notes)
    _raise(notes)
    work = _Work(offered, options, evidence, placement)
    if work.levels.unit is None and options.target.most_damage is not None:
        raise PlanError("a limit of damage needs measurements: give --measure or --sensitivity")
    demands = Demands(
        budgets=budgets,
        free=placement.rest if len(placement.rest) > 1 else (),
        most_damage=options.target.most_damage,
        max_types=options.max_types,
    )
    table = work.table(items)
    choice = choose(items, table, demands)
    return Exploration(
        mix=work.mix(items, table, choice, held, notes),
        offered=offered,
        options=options,
        items=items,
        table=table,
        choice=choice,
        budgets=budgets,
        source=work.source,
    )


def _raise(notes: Notes) -> None:
    if notes.problems:
        named = zip(notes.problems.items(), grouped(notes.problems), strict=True)
        raise PlanError("cannot plan", problems=[reason if names == [""] else line for (reason, names), line in named])


def _constraints(offered: Offers, options: MixOptions, notes: Notes) -> Constraints:
    names = [offer.name for offer in offered.offers]
    return Constraints(
        fuse=options.fuse,
        locks=parse_type_rules("--lock", options.locks, names, notes),
        floors=parse_type_rules("--floor", options.floors, names, notes),
        ceilings=parse_type_rules("--ceiling", options.ceilings, names, notes),
    )


def _budgets(
    offered: Offers, options: MixOptions, placement: Placement, notes: Notes
) -> tuple[dict[str, int], Mapping[str, Reserve]]:
    """The bytes left for chosen tensors, by device; and the memory of devices that is not for weights."""
    target, fixed = options.target, _fixed_bytes(offered.offers, placement)
    if not placement.names:
        elements = sum(offer.elements for offer in offered.offers)
        if target.size is not None:
            total = target.size - offered.head
        elif target.bits is not None:
            total = int(target.bits * elements / 8)
        elif target.tensor_bytes is not None:
            total = target.tensor_bytes
        else:
            return ({} if target.most_damage is not None else {"": 0}), {}
        return {"": total - fixed.get("", 0)}, {}
    try:
        held = reserves(placement, offered.model, offered.offers, options.context)
    except PlanError as error:
        notes.problem(error.message, "")
        return {}, {}
    free = placement.rest[0] if placement.rest else placement.names[0]
    fixed[free] = fixed.get(free, 0) + (fixed.pop("", 0))
    left = {name: placement[name].size - held[name].nbytes - fixed.get(name, 0) for name in placement.names}
    return left, held


def _fixed_bytes(offers: Sequence[Offer], placement: Placement) -> dict[str, int]:
    fixed: dict[str, int] = {}
    for offer in offers:
        if not offer.choice:
            device = placement.device_of(offer.name)
            fixed[device] = fixed.get(device, 0) + offer.nbytes[0]
    return fixed


def _check_placement(items: Sequence[Item], placement: Placement, options: MixOptions, notes: Notes) -> None:
    if not placement.names:
        if options.target.in_words == "":
            notes.problem("give a target: a size, bits per weight, budgets of devices, or a limit of damage", "")
        return
    if not placement.rest:
        for item in items:
            if not item.device:
                notes.problem("no --device takes it; --device CPU=SIZE without a rule takes the rest", item.tensors[0])


class _Work:
    """State that choosing and reporting share: subjects, levels of damage, prices of mixes."""

    def __init__(self, offered: Offers, options: MixOptions, evidence: Evidence, placement: Placement) -> None:
        self._offered, self._options, self._evidence, self._placement = offered, options, evidence, placement
        chosen = [offer for offer in offered.offers if offer.choice]
        self._names = {offer.name: at for at, offer in enumerate(chosen)}
        self._shares = _shares(offered)
        subjects = [
            Subject(name=one.name, elements=one.elements, used=max(self._shares[one.name], 1e-3)) for one in chosen
        ]
        self._presets = (
            {} if offered.model is None else preset_mixes(offered.model, options.engine, imatrix=options.imatrix)
        )
        start = options.start
        self.source = LevelSource(
            offers=offered.offers,
            subjects=subjects,
            presets=self._presets,
            engine=options.engine,
            evidence=evidence,
            start=None if start is None else (start[0], recipe_types(start[1], offered.offers)),
        )
        self.levels, self._basis = self.source.choose(self._wanted_bytes())
        self._scale = Scale(offered.offers, self.levels, options.engine)

    def _wanted_bytes(self) -> int:
        target = self._options.target
        elements = sum(offer.elements for offer in self._offered.offers)
        sized = target.size or target.tensor_bytes or int((target.bits or 0) * elements / 8)
        return sized or sum(self._placement[name].size for name in self._placement.names)

    def table(self, items: Sequence[Item]) -> Table:
        """The numbers of every item and option."""
        types = dict.fromkeys(text for item in items for text in item.types)
        columns = {text: self._scale.damages(text).tolist() for text in types}
        places = [[self._names[name] for name in item.tensors] for item in items]
        damage = tuple(
            tuple(added(columns[text][at] for at in where) for text in item.types)
            for item, where in zip(items, places, strict=True)
        )
        devices = self._placement.names or ("",)
        slow = {device: {text: self._slowness(text, device) for text in types} for device in devices}
        cost = {device: tuple(self._costs(item, slow[device]) for item in items) for device in devices}
        return Table(damage=damage, nbytes=tuple(item.nbytes for item in items), cost=cost)

    def _costs(self, item: Item, slow: Mapping[str, float]) -> tuple[float, ...]:
        share = max(self._shares[name] for name in item.tensors)
        return tuple(
            # A trace of the size: among types that no token reads, the smaller one is chosen.
            size * (share + 1e-6) * slow[text]
            for text, size in zip(item.types, item.nbytes, strict=True)
        )

    def _slowness(self, type_text: str, device: str) -> float:
        """The time for a byte of a type on a device, as a multiple of the fastest; with GPUs, main memory is slow."""
        rules = [rule for rule in self._options.slow if rule.device in ("*", device) and rule.type in ("*", type_text)]
        told = any(rule.device == device and rule.type == "*" for rule in rules)
        known = device in self._placement.names and self._placement[device].is_cpu and bool(self._placement.gpus)
        return math.prod((rule.factor for rule in rules), start=_SLOW_MEMORY if known and not told else 1.0)

    def mix(
        self, items: Sequence[Item], table: Table, choice: Choice, held: Mapping[str, Reserve], notes: Notes
    ) -> Mix:
        """The report."""
        tensors = self._tensors(items, choice)
        nbytes = sum(tensor.nbytes for tensor in tensors)
        elements = sum(tensor.elements for tensor in tensors)
        damage = sum(tensor.damage for tensor in tensors)
        changed = {tensor.name: tensor.type for tensor in tensors if tensor.damage}
        interval = self.levels.interval([changed.get(name) for name in self._names])
        if choice.unlimited is not None:
            more = choice.loss / choice.unlimited - 1 if choice.unlimited else 0.0
            notes.remark(
                f"with any number of types the loss would be {choice.unlimited:.4g}, {more:.1%} less", "--max-types"
            )
        reads = sum(
            table.cost[device][at][option]
            for at, (option, device) in enumerate(zip(choice.chosen, choice.devices, strict=True))
        )
        draft = Mix(
            model=self._offered.name,
            engine=self._options.engine,
            target=self._target(),
            basis=self._basis,
            unit=self.levels.unit,
            nbytes=nbytes,
            elements=elements,
            bits_per_weight=nbytes * 8 / elements if elements else 0.0,
            damage=damage,
            low=None if interval is None else interval[0],
            high=None if interval is None else interval[1],
            gap=choice.gap,
            read_bytes=reads,
            types=type_uses(tensors),
            devices=self._device_uses(tensors, held),
            rivals=self._rivals(table),
            curve=self._curve(table),
            arguments=self._arguments(items, choice),
            tensors=tensors,
            inputs=self._evidence.inputs,
            remarks=(*self._evidence.remarks, *grouped(notes.remarks)),
            recipe="",
            made_by=self._options.made_by,
        )
        return replace(draft, recipe=recipe_text(draft, everything=self._offered.ready))

    def _target(self) -> str:
        sizes = ", ".join(
            f"{device.name}={device.size:,}{':' + device.pattern if device.pattern else ''}"
            for device in self._options.devices
        )
        return " and ".join(part for part in (self._options.target.in_words, sizes) if part)

    def _tensors(self, items: Sequence[Item], choice: Choice) -> tuple[MixTensor, ...]:
        types: dict[str, tuple[str, str]] = {}
        for item, option, device in zip(items, choice.chosen, choice.devices, strict=True):
            for name in item.tensors:
                types[name] = item.types[option], device
        made = []
        rest = self._placement.rest[0] if self._placement.rest else ""
        for offer in self._offered.offers:
            own_device = self._placement.device_of(offer.name) or rest
            text, device = types.get(offer.name, (offer.types[0], own_device))
            damage = float(self._scale.damages(text)[self._names[offer.name]]) if offer.choice else 0.0
            made.append(
                MixTensor(
                    name=offer.name,
                    type=text,
                    nbytes=offer.nbytes[offer.types.index(text)],
                    elements=offer.elements,
                    damage=damage,
                    device=device,
                    chosen=offer.choice,
                )
            )
        return tuple(made)

    def _device_uses(self, tensors: Sequence[MixTensor], held: Mapping[str, Reserve]) -> tuple[DeviceUse, ...]:
        uses = []
        for name in self._placement.names:
            size, weights = self._placement[name].size, sum(one.nbytes for one in tensors if one.device == name)
            uses.append(
                DeviceUse(
                    name=name,
                    size=size,
                    kv_cache=held[name].kv_cache,
                    compute=held[name].compute,
                    weights=weights,
                    free=size - held[name].nbytes - weights,
                    tensors=sum(one.device == name for one in tensors),
                )
            )
        return tuple(uses)

    def _arguments(self, items: Sequence[Item], choice: Choice) -> str:
        free = {
            name: device
            for item, device in zip(items, choice.devices, strict=True)
            if not item.device
            for name in item.tensors
        }
        return engine_arguments(self._placement, self._offered.offers, self._options.context, free)

    def _curve(self, table: Table) -> tuple[CurvePoint, ...]:
        elements = sum(offer.elements for offer in self._offered.offers) or 1
        corners = frontier(table.damage, table.nbytes)
        return tuple(
            CurvePoint(nbytes=size, bits_per_weight=size * 8 / elements, damage=damage)
            for size, damage in thinned(corners, self._scale.fixed)
        )

    def _rivals(self, table: Table) -> tuple[Rival, ...]:
        """Presets, recipes to compare and ready-made quants, the smallest first, each with a plan of its size."""
        mixes = [(name, types) for name, types in self._presets.items()]
        mixes += [(name, recipe_types(recipe, self._offered.offers)) for name, recipe in self._options.compare]
        mixes += [
            (quant.name, quant.types) for quant in self._offered.quants if self._names.keys() <= quant.types.keys()
        ]
        priced = [self._scale.price(name, types) for name, types in mixes]
        return tuple(self._rival(one, table) for one in sorted(priced, key=lambda one: one.nbytes))

    def _rival(self, one: Priced, table: Table) -> Rival:
        elements = sum(offer.elements for offer in self._offered.offers) or 1
        planned = None
        if not self._placement.names:
            try:
                planned = solve(table.damage, table.nbytes, one.nbytes - self._scale.fixed).loss
            except DoesNotFitError:
                planned = None
        return Rival(
            name=one.name,
            nbytes=one.nbytes,
            bits_per_weight=one.nbytes * 8 / elements,
            damage=one.damage,
            planned=planned,
        )


def _shares(offered: Offers) -> dict[str, float]:
    """The share of each tensor that one token uses."""
    names = {offer.name: offer for offer in offered.offers}
    model = offered.model
    keys = ("expert_count", "expert_used_count")
    experts, used = (0, 0) if model is None else (max(number(model, key) or 0, 0) for key in keys)
    return {name: used_share(name, names, experts, used) for name in names}
