"""gguftool: take GGUF model files apart and put them back together, tensor by tensor.

    import gguftool

    plan = gguftool.plan_split("model.gguf", "shards/model")
    gguftool.execute(plan)

Every operation that writes makes a plan (pure data, no disk); `execute` carries it out. A model is a path, as a `str`
or `os.PathLike`, or a `Model` from `open_model`. docs/python.md has examples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gguftool.analysis.diff.data import DataOptions
    from gguftool.analysis.diff.models import DiffOptions, HeaderDiff
    from gguftool.analysis.diff.models import diff_headers as diff
    from gguftool.analysis.dump import Dump, TensorSort, dump, sort_dump
    from gguftool.analysis.imatrix import ImatrixReport, ModelCoverage, check_imatrix, describe_imatrix
    from gguftool.analysis.imatrix import coverage_of as imatrix_coverage
    from gguftool.analysis.info import Info, info
    from gguftool.analysis.lint.check import CheckOptions, CheckReport
    from gguftool.analysis.lint.check import check as check_model
    from gguftool.analysis.lint.check import codes as check_codes
    from gguftool.analysis.lint.groups import FindingGroup
    from gguftool.analysis.lint.rules import Finding, Severity
    from gguftool.analysis.metadata import KeyRow, metadata_rows
    from gguftool.analysis.placement import PlacementRule
    from gguftool.analysis.placement import parse_rules as parse_placement
    from gguftool.analysis.recipe import RecipeReport
    from gguftool.analysis.recipe import check as check_recipe
    from gguftool.analysis.recipe_compact import compact as compact_recipe
    from gguftool.analysis.recipe_compact import expand as expand_recipe
    from gguftool.analysis.recipe_compact import extract as extract_recipe
    from gguftool.analysis.report import Distribution, Report, distribution, report
    from gguftool.analysis.verify import (
        Hash,
        Verdict,
        file_hashes,
        hash_files,
        hash_tensors,
        tensor_hashes,
        verify_against_map,
        verify_manifest,
    )
    from gguftool.cooking.damage.evidence import Evidence, Given, Observation
    from gguftool.cooking.damage.sensitivities import EvidenceFiles, read_evidence
    from gguftool.cooking.devices import Context as MixContext
    from gguftool.cooking.devices import Device as MixDevice
    from gguftool.cooking.devices import parse_devices
    from gguftool.cooking.exploration import Exploration
    from gguftool.cooking.imatrix_making import ImatrixJob, made_imatrix
    from gguftool.cooking.imatrix_making import MakeHooks as ImatrixHooks
    from gguftool.cooking.inputs import Offers
    from gguftool.cooking.making.cook import Cooked, plan_cook
    from gguftool.cooking.making.gather import Gathered, open_cook_inputs
    from gguftool.cooking.making.published import check_published
    from gguftool.cooking.measuring.bench import Setup as MeasureSetup
    from gguftool.cooking.measuring.groups import Grouping as MeasureGrouping
    from gguftool.cooking.measuring.groups import parse_grouping
    from gguftool.cooking.measuring.run import (
        ErrorSetup,
        MeasurePlan,
        MeasureReport,
        measure,
        measure_errors,
        plan_measure,
    )
    from gguftool.cooking.measuring.run import Hooks as MeasureHooks
    from gguftool.cooking.measuring.run import Selection as MeasureSelection
    from gguftool.cooking.measuring.verifying import Verification
    from gguftool.cooking.measuring.verifying import setup_of as verify_setup
    from gguftool.cooking.measuring.verifying import verify_plan as verify_mix
    from gguftool.cooking.mix import Mix, MixOptions, Slow
    from gguftool.cooking.mix import Target as MixTarget
    from gguftool.cooking.offers import Offer, offer_types
    from gguftool.cooking.planning import choose_mix, explore_mix, plan_mix
    from gguftool.cooking.transfer import Transfer, TransferOptions, transfer_recipe, transfer_words
    from gguftool.engines.llama_quantize import LlamaQuantize
    from gguftool.errors import ExecuteError, FormatError, GGUFToolError, LimitError, PlanError, SourceError
    from gguftool.format.cursor import NeedMoreData
    from gguftool.format.engine_facts.presets.names import find_preset
    from gguftool.format.ggml import TYPES, TypeTraits, find_type, nbytes
    from gguftool.format.header import Header, TensorInfo, parse, serialize
    from gguftool.format.imatrix import Imatrix, ImatrixKind
    from gguftool.format.kv import KV, ByteOrder, ValueType, make_kv
    from gguftool.format.pattern import BadPatternError
    from gguftool.format.recipe import Recipe, RecipeFormat, RecipeRule, parse_recipe, render_recipe
    from gguftool.format.recipe import parse_any as parse_any_recipe
    from gguftool.format.recipe import render_any as render_any_recipe
    from gguftool.format.tensors_map import MapEntry
    from gguftool.model.companions import open_imatrix
    from gguftool.model.companions import read_map as read_tensors_map
    from gguftool.model.layout import ForceSizes, OutputOptions
    from gguftool.model.model import Model, ModelFile, Sizing, Tensor
    from gguftool.model.opening import ModelLike, StrPath, open_model, open_models
    from gguftool.model.padding import Filler
    from gguftool.model.recovery import recover_model
    from gguftool.model.views import cat
    from gguftool.render.format import Format
    from gguftool.render.registry import render as render_report
    from gguftool.render.types import TypeRow, type_rows
    from gguftool.storage.execute.executor import execute
    from gguftool.storage.execute.options import Options
    from gguftool.storage.plan import Copy, OutputFile, Plan, Preview, Receipt
    from gguftool.storage.plan import Request as ConsumeRequest
    from gguftool.storage.sources.source import Extent, Source
    from gguftool.surgery.alter.alteration import Alteration
    from gguftool.surgery.alter.imatrix import plan_alter_imatrix
    from gguftool.surgery.alter.plan import plan_alter
    from gguftool.surgery.alter.views import plan_views
    from gguftool.surgery.convert_imatrix import plan_convert_imatrix
    from gguftool.surgery.dequantized_source import FloatType
    from gguftool.surgery.edit.plan import Edits, plan_edit
    from gguftool.surgery.export import plan_export
    from gguftool.surgery.fetch import FetchOptions, plan_fetch, plan_fetch_files
    from gguftool.surgery.inputs import Donor, Input, open_donor, open_inputs
    from gguftool.surgery.merge import MergeOptions, plan_merge
    from gguftool.surgery.quantize.external import ExternalJob, made_externally
    from gguftool.surgery.quantize.options import QuantizeOptions, Weights
    from gguftool.surgery.quantize.plan import Decision, plan_decision, plan_quantize
    from gguftool.surgery.quantize.plan import decide as decide_quantize
    from gguftool.surgery.quantize.preview import QuantizePreview, preview_quantize
    from gguftool.surgery.repair import Damage, DamageOptions, find_damage, plan_repair
    from gguftool.surgery.selection import SelectionOptions
    from gguftool.surgery.split import SplitOptions, plan_split
    from gguftool.surgery.swap import plan_swap
    from gguftool.surgery.tensors_map import plan_tensors_map, plan_tensors_map_of_split

__version__ = "0.2.0"

# Everything that a module above defines for users is here; tests compare.
__all__ = (
    "KV", "TYPES", "Alteration", "BadPatternError", "ByteOrder", "CheckOptions", "CheckReport", "ConsumeRequest",
    "Cooked", "Copy", "Damage", "DamageOptions", "DataOptions", "Decision", "DiffOptions", "Distribution", "Donor",
    "Dump", "Edits", "ErrorSetup", "Evidence", "EvidenceFiles", "ExecuteError", "Exploration", "Extent",
    "ExternalJob", "FetchOptions", "Filler", "Finding", "FindingGroup", "FloatType", "ForceSizes", "Format",
    "FormatError", "GGUFToolError", "Gathered", "Given", "Hash", "Header", "HeaderDiff", "Imatrix", "ImatrixHooks",
    "ImatrixJob", "ImatrixKind", "ImatrixReport", "Info", "Input", "KeyRow", "LimitError", "LlamaQuantize",
    "MapEntry", "MeasureGrouping", "MeasureHooks", "MeasurePlan", "MeasureReport", "MeasureSelection", "MeasureSetup",
    "MergeOptions", "Mix", "MixContext", "MixDevice", "MixOptions", "MixTarget", "Model", "ModelCoverage",
    "ModelFile", "ModelLike", "NeedMoreData", "Observation", "Offer", "Offers", "Options", "OutputFile",
    "OutputOptions", "PlacementRule", "Plan", "PlanError", "Preview", "QuantizeOptions", "QuantizePreview", "Receipt",
    "Recipe", "RecipeFormat", "RecipeReport", "RecipeRule", "Report", "SelectionOptions", "Severity", "Sizing",
    "Slow", "Source", "SourceError", "SplitOptions", "StrPath", "Tensor", "TensorInfo", "TensorSort", "Transfer",
    "TransferOptions", "TypeRow", "TypeTraits", "ValueType", "Verdict", "Verification", "Weights", "__version__",
    "cat", "check_codes", "check_imatrix", "check_model", "check_published", "check_recipe", "choose_mix",
    "compact_recipe", "decide_quantize", "describe_imatrix", "diff", "distribution", "dump", "execute",
    "expand_recipe", "explore_mix", "extract_recipe", "file_hashes", "find_damage", "find_preset", "find_type",
    "hash_files", "hash_tensors", "imatrix_coverage", "info", "made_externally", "made_imatrix", "make_kv", "measure",
    "measure_errors", "metadata_rows", "nbytes", "offer_types", "open_cook_inputs", "open_donor", "open_imatrix",
    "open_inputs", "open_model", "open_models", "parse", "parse_any_recipe", "parse_devices", "parse_grouping",
    "parse_placement", "parse_recipe", "plan_alter", "plan_alter_imatrix", "plan_convert_imatrix", "plan_cook",
    "plan_decision", "plan_edit", "plan_export", "plan_fetch", "plan_fetch_files", "plan_measure", "plan_merge",
    "plan_mix", "plan_quantize", "plan_repair", "plan_split", "plan_swap", "plan_tensors_map",
    "plan_tensors_map_of_split", "plan_views", "preview_quantize", "read_evidence", "read_tensors_map",
    "recover_model", "render_any_recipe", "render_recipe", "render_report", "report", "serialize", "sort_dump",
    "tensor_hashes", "transfer_recipe", "transfer_words", "type_rows", "verify_against_map", "verify_manifest",
    "verify_mix", "verify_setup",
)  # fmt: skip

# Module -> its public names, as ``NAME`` or ``NAME=PUBLIC_NAME``. A module is loaded on the first use of a name:
# the command line needs few of them, and start-up matters.
_MODULES = {
    "analysis.diff.data": "DataOptions",
    "analysis.diff.models": "DiffOptions HeaderDiff diff_headers=diff",
    "analysis.dump": "Dump TensorSort dump sort_dump",
    "analysis.imatrix": "ImatrixReport ModelCoverage check_imatrix coverage_of=imatrix_coverage describe_imatrix",
    "analysis.info": "Info info",
    "analysis.lint.check": "CheckOptions CheckReport check=check_model codes=check_codes",
    "analysis.lint.groups": "FindingGroup",
    "analysis.lint.rules": "Finding Severity",
    "analysis.metadata": "KeyRow metadata_rows",
    "analysis.placement": "PlacementRule parse_rules=parse_placement",
    "analysis.recipe": "RecipeReport check=check_recipe",
    "analysis.recipe_compact": "compact=compact_recipe expand=expand_recipe extract=extract_recipe",
    "analysis.report": "Distribution Report distribution report",
    "analysis.verify": (
        "Hash Verdict file_hashes hash_files hash_tensors tensor_hashes verify_against_map verify_manifest"
    ),
    "cooking.damage.evidence": "Evidence Given Observation",
    "cooking.damage.sensitivities": "EvidenceFiles read_evidence",
    "cooking.devices": "Context=MixContext Device=MixDevice parse_devices",
    "cooking.exploration": "Exploration",
    "cooking.imatrix_making": "ImatrixJob MakeHooks=ImatrixHooks made_imatrix",
    "cooking.inputs": "Offers",
    "cooking.making.cook": "Cooked plan_cook",
    "cooking.making.gather": "Gathered open_cook_inputs",
    "cooking.making.published": "check_published",
    "cooking.measuring.bench": "Setup=MeasureSetup",
    "cooking.measuring.groups": "Grouping=MeasureGrouping parse_grouping",
    "cooking.measuring.run": (
        "ErrorSetup Hooks=MeasureHooks MeasurePlan MeasureReport Selection=MeasureSelection measure measure_errors "
        "plan_measure"
    ),
    "cooking.measuring.verifying": "Verification setup_of=verify_setup verify_plan=verify_mix",
    "cooking.mix": "Mix MixOptions Slow Target=MixTarget",
    "cooking.offers": "Offer offer_types",
    "cooking.planning": "choose_mix explore_mix plan_mix",
    "cooking.transfer": "Transfer TransferOptions transfer_recipe transfer_words",
    "engines.llama_quantize": "LlamaQuantize",
    "errors": "ExecuteError FormatError GGUFToolError LimitError PlanError SourceError",
    "format.cursor": "NeedMoreData",
    "format.engine_facts.presets.names": "find_preset",
    "format.ggml": "TYPES TypeTraits find_type nbytes",
    "format.header": "Header TensorInfo parse serialize",
    "format.imatrix": "Imatrix ImatrixKind",
    "format.kv": "KV ByteOrder ValueType make_kv",
    "format.pattern": "BadPatternError",
    "format.recipe": (
        "Recipe RecipeFormat RecipeRule parse_any=parse_any_recipe parse_recipe render_any=render_any_recipe "
        "render_recipe"
    ),
    "format.tensors_map": "MapEntry",
    "model.companions": "open_imatrix read_map=read_tensors_map",
    "model.layout": "ForceSizes OutputOptions",
    "model.model": "Model ModelFile Sizing Tensor",
    "model.opening": "ModelLike StrPath open_model open_models",
    "model.padding": "Filler",
    "model.recovery": "recover_model",
    "model.views": "cat",
    "render.format": "Format",
    "render.registry": "render=render_report",
    "render.types": "TypeRow type_rows",
    "storage.execute.executor": "execute",
    "storage.execute.options": "Options",
    "storage.plan": "Copy OutputFile Plan Preview Receipt Request=ConsumeRequest",
    "storage.sources.source": "Extent Source",
    "surgery.alter.alteration": "Alteration",
    "surgery.alter.imatrix": "plan_alter_imatrix",
    "surgery.alter.plan": "plan_alter",
    "surgery.alter.views": "plan_views",
    "surgery.convert_imatrix": "plan_convert_imatrix",
    "surgery.dequantized_source": "FloatType",
    "surgery.edit.plan": "Edits plan_edit",
    "surgery.export": "plan_export",
    "surgery.fetch": "FetchOptions plan_fetch plan_fetch_files",
    "surgery.inputs": "Donor Input open_donor open_inputs",
    "surgery.merge": "MergeOptions plan_merge",
    "surgery.quantize.external": "ExternalJob made_externally",
    "surgery.quantize.options": "QuantizeOptions Weights",
    "surgery.quantize.plan": "Decision decide=decide_quantize plan_decision plan_quantize",
    "surgery.quantize.preview": "QuantizePreview preview_quantize",
    "surgery.repair": "Damage DamageOptions find_damage plan_repair",
    "surgery.selection": "SelectionOptions",
    "surgery.split": "SplitOptions plan_split",
    "surgery.swap": "plan_swap",
    "surgery.tensors_map": "plan_tensors_map plan_tensors_map_of_split",
}

if not TYPE_CHECKING:  # type checkers read a module's `__getattr__` as a promise that every name exists

    def __getattr__(name: str) -> object:
        import sys
        from importlib import import_module

        for module, entries in _MODULES.items():
            for entry in entries.split():
                attribute, _, public_name = entry.partition("=")
                if name == (public_name or attribute):
                    value = globals()[name] = getattr(import_module(f"gguftool.{module}"), attribute)
                    return value
        # With `name` and `obj` the interpreter suggests the name that was meant.
        raise AttributeError(f"module 'gguftool' has no attribute {name!r}", name=name, obj=sys.modules[__name__])


def __dir__() -> list[str]:
    return sorted(__all__)
