"""The plan command: choose a type for each tensor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gguftool import __version__
from gguftool.cli.shared.console import counting_bar, remark, remark_each
from gguftool.cli.shared.options import Force, FullPaths, Json, check_engine, local_path, one_format, size_option
from gguftool.cli.shared.planning.speeds import slow_types
from gguftool.cli.shared.recipes import read_recipe
from gguftool.cli.shared.running import write_files
from gguftool.cli.shared.show import show
from gguftool.cli.shared.signals import Interrupted
from gguftool.cooking.damage.sensitivities import EvidenceFiles
from gguftool.cooking.devices import Context, Device, parse_devices
from gguftool.cooking.items import FUSED, UP_GATE
from gguftool.cooking.mix import Mix, MixOptions, Target, nats_of_ratio
from gguftool.cooking.planning import explore_mix
from gguftool.errors import PlanError, did_you_mean
from gguftool.format.engine_facts.engines import LLAMA_CPP
from gguftool.model.companions import open_imatrix
from gguftool.render.units import parse_size

if TYPE_CHECKING:
    from gguftool.storage.sources.source import Source

_PLOTS = (".png", ".svg")


def plan(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="One model to quantize, or several ready-made quants or tensors.maps."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            parser=local_path,
            metavar="RECIPE",
            help="The recipe to write. Default: print it.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[int | None, size_option("--size", help="The size of the file, such as 4.2GiB.")] = None,
    bpw: Annotated[
        float | None, typer.Option("--bpw", metavar="N", min=0.1, help="Bits per weight.", show_default=False)
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device",
            metavar="NAME=SIZE:REGEX",
            help="A budget, and the tensors that go there, as with -ot. Without a REGEX it takes the rest. Repeatable.",
        ),
    ] = None,
    max_kld: Annotated[
        float | None,
        typer.Option("--max-kld", metavar="X", min=0, help="The fastest mix up to this KLD.", show_default=False),
    ] = None,
    max_ppl_ratio: Annotated[
        float | None,
        typer.Option("--max-ppl-ratio", metavar="X", help="The same, as a ratio of perplexities.", show_default=False),
    ] = None,
    measure: Annotated[
        list[str] | None,
        typer.Option(
            "--measure", metavar="FILE", help="measure.jsonl, kld_results.csv or ppl_results.csv. Repeatable."
        ),
    ] = None,
    curve: Annotated[
        str | None,
        typer.Option(
            "--curve",
            metavar="FILE",
            help="The damage of each type to the whole model: group0/kld_results.csv.",
            show_default=False,
        ),
    ] = None,
    sensitivity: Annotated[
        str | None,
        typer.Option(
            "--sensitivity", metavar="FILE", help="JSON from another tool (docs/cooking.md).", show_default=False
        ),
    ] = None,
    types: Annotated[
        str | None,
        typer.Option(
            "--types",
            metavar="T,T",
            help="The types to choose from. Default: all types of the engine that fit.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", metavar="llama.cpp|ik_llama.cpp", help="Use this engine's rules and presets.")
    ] = LLAMA_CPP,
    imatrix: Annotated[
        str | None,
        typer.Option(
            "--imatrix",
            metavar="FILE",
            help="The imatrix that quantize will use: without one, some types are not offered.",
            show_default=False,
        ),
    ] = None,
    lock: Annotated[
        list[str] | None, typer.Option("--lock", metavar="REGEX=TYPE", help="Fix a type. Repeatable.")
    ] = None,
    floor: Annotated[
        list[str] | None,
        typer.Option("--floor", metavar="REGEX=TYPE", help="No type with fewer bits than this one. Repeatable."),
    ] = None,
    ceiling: Annotated[
        list[str] | None,
        typer.Option("--ceiling", metavar="REGEX=TYPE", help="No type with more bits than this one. Repeatable."),
    ] = None,
    fuse: Annotated[
        list[str] | None,
        typer.Option(
            "--fuse",
            metavar="up-gate|qkv|none",
            help="Tensors that share one type. Default: up-gate. Repeatable.",
        ),
    ] = None,
    max_types: Annotated[
        int | None,
        typer.Option("--max-types", metavar="N", min=1, help="At most N distinct types.", show_default=False),
    ] = None,
    ctx: Annotated[
        int, typer.Option("--ctx", metavar="N", min=0, help="Reserve room on devices for a context of N tokens.")
    ] = 0,
    kv_type: Annotated[str, typer.Option("--kv-type", metavar="TYPE", help="The type of the KV cache.")] = "f16",
    ubatch: Annotated[
        int, typer.Option("--ubatch", metavar="N", min=1, help="Tokens computed at once, like -ub.")
    ] = 512,
    slow: Annotated[
        list[str] | None,
        typer.Option(
            "--slow", metavar="TYPE@DEVICE=FACTOR", help="How much longer a byte takes; * means any type. Repeatable."
        ),
    ] = None,
    bench: Annotated[
        list[str] | None,
        typer.Option("--bench", metavar="DEVICE=FILE", help="The same, from a CSV of llama-bench. Repeatable."),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option("--compare", metavar="RECIPE", help="Another recipe to compare with this one. Repeatable."),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--start",
            metavar="RECIPE",
            help="Improve on this recipe. Default target: its size.",
            show_default=False,
        ),
    ] = None,
    verify: Annotated[
        str | None,
        typer.Option(
            "--verify",
            metavar="PATH",
            help="Measure the mix with this llama-perplexity, and correct the --measure file by the result.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option("--text", metavar="FILE", help="With --verify: the text used for --measure.", show_default=False),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            parser=local_path,
            metavar="FILE",
            help="Draw the curve of best mixes as .png or .svg.",
            show_default=False,
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            parser=local_path,
            metavar="FILE",
            help="Write a page that shows the plan and lets you change budgets and locks.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
    full_paths: FullPaths = False,
    force: Force = False,
) -> None:
    """Choose each tensor's type for a size, devices or quality.

    Uses measurements of the tensors or, without any, the levels of a preset. The result is a recipe for quantize or
    merge, with the expected damage and a bound on how much better any mix could be.

    Two ways to use it:

    \b
    gguftool plan model-BF16.gguf --size 4.2GiB --measure m.jsonl -o my.recipe
    gguftool plan model-BF16.gguf --device GPU=22GiB:attn --device CPU=64GiB
    """  # noqa: D301 - \b keeps the lines of a paragraph
    check_engine(engine)
    if plot is not None and plot.suffix.lower() not in _PLOTS:
        raise typer.BadParameter(f"--plot takes a file that ends in {' or '.join(_PLOTS)}")
    targets = [path.absolute() for path in (output, plot, html) if path is not None]
    if len(set(targets)) < len(targets):
        raise typer.BadParameter("-o, --plot and --html write a file each: give each its own name")
    if imatrix is not None:
        open_imatrix(imatrix)
    devices = _devices(device or ())
    options = MixOptions(
        target=_target(size, bpw, max_kld, max_ppl_ratio, devices, needed=start is None),
        devices=devices,
        engine=engine,
        types=tuple(text.strip() for text in types.split(",") if text.strip()) if types else (),
        imatrix=imatrix is not None,
        fuse=_fused(fuse),
        locks=tuple(lock or ()),
        floors=tuple(floor or ()),
        ceilings=tuple(ceiling or ()),
        max_types=max_types,
        slow=slow_types(slow or (), bench or (), devices),
        context=Context(ctx=ctx, kv_type=kv_type, ubatch=ubatch),
        compare=tuple((name, read_recipe(name)[0]) for name in compare or ()),
        start=None if start is None else (start, read_recipe(start)[0]),
        made_by=f"gguftool {__version__}",
    )
    if verify is not None:
        _check_verify(models, measure or (), text)
    files = EvidenceFiles(measure=tuple(measure or ()), curve=curve, sensitivity=sensitivity)
    found = explore_mix(models, options, files)
    mix = found.mix
    outputs: list[tuple[Path, bytes]] = []
    if output is not None:
        outputs.append((output, mix.recipe.encode("utf-8", "surrogateescape")))
    if plot is not None:
        outputs.append((plot, _chart(mix, plot.suffix.lower().removeprefix("."))))
    if html is not None:
        from gguftool.cli.shared.planning.again import page_again  # noqa: PLC0415 - only for --html

        usual = Context()
        given = {
            "measure": measure, "curve": curve, "sensitivity": sensitivity, "types": types, "imatrix": imatrix,
            "engine": None if engine == LLAMA_CPP else engine, "lock": lock, "floor": floor, "ceiling": ceiling,
            "fuse": fuse, "max_types": max_types, "ctx": ctx or None,
            "kv_type": None if kv_type == usual.kv_type else kv_type,
            "ubatch": None if ubatch == usual.ubatch else ubatch,
            "slow": slow, "bench": bench, "compare": compare, "start": start,
        }  # fmt: skip
        outputs.append((html, page_again(found, models, given)))
    if outputs:
        named = [*models, *(measure or ()), curve, sensitivity, imatrix, *(compare or ()), start]
        named += [text.partition("=")[2] for text in bench or ()]
        write_files(outputs, (*found.offered.sources, *_local_files(named)), force=force)
    remark_each(mix.remarks)
    if verify is not None:
        _verify(mix, verify, Path((measure or [""])[0]), models[0], text or "", imatrix)
    if json:
        show(mix, one_format(json=True), full_paths=full_paths)
    else:
        show(mix, recipe=output is None)


def _check_verify(models: Sequence[str], measure: Sequence[str], text: str | None) -> None:
    """Raise a usage error, before planning, if the mix cannot be measured with these options."""
    if text is None or len(measure) != 1 or not measure[0].endswith(".jsonl") or len(models) != 1:
        raise typer.BadParameter(
            "--verify takes one MODEL, one --measure FILE.jsonl and the --text that it was measured on"
        )


def _verify(mix: Mix, engine: str, measured: Path, model: str, text: str, imatrix: str | None) -> None:
    """Measure the mix, and report how right the plan was."""
    from gguftool.cooking.measuring.verifying import setup_of, verify_plan  # noqa: PLC0415 - drives an engine

    setup = setup_of(measured, model, text, engine, imatrix, __version__)
    try:
        with counting_bar("measuring the mix", "runs of llama-perplexity") as progress:
            found = verify_plan(mix, setup, measured, progress)
    except Interrupted:
        remark(f"{measured} is unchanged: a mix is measured as a whole, so the same command starts over")
        raise
    remark(
        f"predicted KLD {found.predicted:.4g}, measured {found.actual:.4g} ± {found.error:.2g} above the floor; "
        f"same top token {found.scores.same_top:.2%}, perplexity {found.scores.ppl_ratio:.4f} times the model's"
    )
    if found.factor is None:
        remark("this text cannot tell that from the floor, so nothing is corrected: measure on more --chunks")
    else:
        remark(f"{measured}: later plans multiply by {found.factor:.3g}")


def _devices(texts: list[str] | tuple[str, ...]) -> tuple[Device, ...]:
    try:
        return parse_devices(texts, parse_size)
    except ValueError as error:
        raise PlanError(str(error), source="--device") from None


def _target(
    size: int | None,
    bpw: float | None,
    max_kld: float | None,
    max_ppl_ratio: float | None,
    devices: tuple[Device, ...],
    *,
    needed: bool,
) -> Target:
    """Read the target; a quality can be combined with device budgets, a size cannot."""
    given = {"--size": size, "--bpw": bpw, "--max-kld": max_kld, "--max-ppl-ratio": max_ppl_ratio}
    named = [name for name, value in given.items() if value is not None]
    sized = [name for name in named if name in ("--size", "--bpw")] + (["--device"] if devices else [])
    if len(sized) > 1 or (max_kld is not None and max_ppl_ratio is not None) or (len(named) > 1 and not devices):
        raise typer.BadParameter(f"{' and '.join(dict.fromkeys([*named, *sized]))} exclude each other")
    if needed and not named and not devices:
        raise typer.BadParameter("give a target: --size, --bpw, --device, --max-kld or --max-ppl-ratio, or a --start")
    try:
        most = max_kld if max_ppl_ratio is None else nats_of_ratio(max_ppl_ratio)
        return Target(size=size, bits=bpw, most_damage=most)
    except ValueError as error:
        raise typer.BadParameter(f"{', '.join(named)}: {error}") from None


def _fused(texts: list[str] | None) -> tuple[str, ...]:
    wanted = tuple(dict.fromkeys(texts or ()))
    unknown = [text for text in wanted if text not in (*FUSED, "none")]
    if unknown or ("none" in wanted and len(wanted) > 1):
        near = did_you_mean(unknown[0], (*FUSED, "none")) if unknown else ""
        raise typer.BadParameter(f"--fuse takes {', '.join(FUSED)}, or only none, not '{', '.join(wanted)}'{near}")
    if "none" in wanted:
        return ()
    return tuple(dict.fromkeys((UP_GATE, *wanted)))


def _local_files(names: Sequence[str | None]) -> tuple[Source, ...]:
    """Open the local files among the `names` that were read."""
    from gguftool.storage.sources.local import open_local  # noqa: PLC0415 - only for outputs

    return tuple(open_local(Path(name)) for name in names if name is not None and Path(name).is_file())


def _chart(mix: Mix, form: str) -> bytes:
    from gguftool.render.cooking.mix import mix_chart  # noqa: PLC0415 - only for --plot
    from gguftool.render.sharing import without_folders  # noqa: PLC0415 - only for --plot

    try:
        return mix_chart(without_folders(mix), form)
    except ImportError:
        raise PlanError("--plot needs matplotlib: pip install matplotlib") from None
