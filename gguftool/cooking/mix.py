"""`plan`: from models, evidence and demands to a mix, with what it costs and how good it is.

    models -> offers -> items (locks, pairs, devices) -> damage of every type -> solver -> Mix

Everything here is pure but for reading heads and files of measurements.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

from gguftool import cooking
from gguftool.cooking.choosing import Choice, Demands, Table, choose
from gguftool.cooking.damage import DamageModel, Levels, PresetLevels, Subject
from gguftool.cooking.devices import Context, Device, Placement, Reserve, engine_arguments, reserves
from gguftool.cooking.evidence import NOTHING, Evidence, InputFile
from gguftool.cooking.items import UP_GATE, Constraints, Item, make_items, parse_type_rules
from gguftool.cooking.offers import (
    Offer,
    Pool,
    offers_of_ready,
    offers_of_source,
    ready_map,
    ready_model,
    used_share,
)
from gguftool.cooking.rivals import CurvePoint, Priced, Scale, nearest_preset, preset_mixes, recipe_types, thinned
from gguftool.cooking.sensitivities import EvidenceFiles, read_evidence, unknown_tensors
from gguftool.cooking.solver import DoesNotFitError, frontier, solve
from gguftool.errors import Notes, PlanError, grouped, printable
from gguftool.format.engine_facts.engines import LLAMA_CPP
from gguftool.format.ggml import find_type
from gguftool.format.recipe import Recipe
from gguftool.model.companions import read_map
from gguftool.model.model import Model
from gguftool.model.opening import ModelLike
from gguftool.record import record
