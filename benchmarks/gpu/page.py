"""The table beside a results file, for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.gpu.targets import targets
from benchmarks.gpu.traffic import Work


def page(results: dict[str, Any]) -> str:
    """The whole results as Markdown."""
    parts = [_head(results), _targets(results), _items(results)]
    shown = {
        "ceilings": _ceilings,
        "dense": _dense,
        "dense_large": _dense,
        "dense_fp16": _dense,
        "fed": _fed,
        "gates_10": _gates,
        "gates_30": _gates,
        "accuracy": _accuracy,
        "mixed_pixels": _pixels,
        "hostile": _hostile,
        "precisions": _precisions,
        "scaling": _scaling,
    }
    for name, entry in results["items"].items():
        show = shown.get(name.partition(",")[0])
        if show is not None and entry["figures"]:
            parts.append(f"## {entry['what'][0].upper()}{entry['what'][1:]}\n\n{show(entry['figures'], results)}")
    return "\n\n".join(parts) + "\n"


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 1)]
    lines += [f"| {' | '.join('-' if cell is None else str(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines)


def _number(value: float | None, form: str = ",.0f") -> str:
    return "-" if value is None else format(value, form)


def _head(results: dict[str, Any]) -> str:
    hardware, versions = results.get("hardware"), results.get("versions")
    lines = ["# GPU suite", ""]
    if results["tiny"]:
        lines += ["**A dry run at tiny sizes: its figures mean nothing.**", ""]
    if hardware is None or versions is None:
        return "\n".join([*lines, "The machine could not be read; its entry in the JSON file says why."])
    driver = f", driver {hardware['driver']}" if hardware.get("driver") else ""
    cuda = f" (CUDA {versions['cuda']})" if versions.get("cuda") else ""
    lines += [
        f"{hardware['name']}{driver}, {hardware['cores']} cores; torch {versions['torch']}{cuda}, "
        f"DALI {versions['dali'] or 'not installed'}, Python {versions['python']}, fastast {versions['fastast']} "
        f"({versions['commit']}), {results['measured_at'][:10]}, seed {results['seed']}. `{results['command']}`",
    ]
    return "\n".join(lines)


def _targets(results: dict[str, Any]) -> str:
    rows = [
        (row["what"], row["goal"], _number(row["found"], ",.3g"), row["verdict"] + _because(row["reason"]))
        for row in targets(results)
    ]
    return "## Targets\n\n" + _table(("target", "goal", "found", "verdict"), rows)


def _items(results: dict[str, Any]) -> str:
    rows = [
        (
            name,
            entry["what"],
            f"{entry['seconds']:.0f}",
            entry["status"] + _because(entry["reason"]),
            (entry.get("commit") or "unknown") if entry["tried"] else "",
        )
        for name, entry in results["items"].items()
    ]
    return "## Items\n\n" + _table(("item", "what", "s", "status", "commit"), rows)


def _because(reason: str | None) -> str:
    return "" if reason is None else f": {reason.replace('|', '/')}"


def _ceilings(figures: dict[str, Any], results: dict[str, Any]) -> str:
    rows = [
        (f"matrix product {figures['matmul_side']}, {dtype}, TFLOP/s", f"{rate:,.0f}")
        for dtype, rate in figures.get("matmul_tflops", {}).items()
    ]
    rows.append(("copy, bytes read and written, GB/s", _number(figures.get("copy_gb_per_s"))))
    network = figures.get("network", {})
    if network:
        shape = f"batch {network['batch_size']}, {network['dtype']}, ms"
        rows.append((f"forward in eval mode, {shape}", _number(network["eval_forward_ms"], ".2f")))
        rows.append((f"forward and backward, {shape}", _number(network["forward_and_backward_ms"], ".2f")))
    return _table(("ceiling", "found"), rows)


def bounds(results: dict[str, Any]) -> dict[str, float] | None:
    """Images a second that arithmetic and memory traffic alone would allow, from the measured ceilings."""
    work = results["items"].get("dense", {}).get("figures", {}).get("work")
    ceilings = results["items"].get("ceilings", {}).get("figures", {})
    if work is None or "copy_gb_per_s" not in ceilings:
        return None
    rates = ceilings["matmul_tflops"]
    half = max(rate for dtype, rate in rates.items() if dtype != "float32" or len(rates) == 1)
    counted = Work(1e9 * work["forward_gflops"], 1e9 * work["train_gflops"], 1e6 * work["train_mb"])
    return counted.bound_per_s(1e12 * half, 1e9 * ceilings["copy_gb_per_s"])


def _dense(figures: dict[str, Any], results: dict[str, Any]) -> str:
    bound = bounds(results) or {}
    arithmetic, memory = bound.get("arithmetic"), bound.get("memory")
    rows: list[tuple[object, ...]] = []
    for name, rate in figures["rates"].items():
        found = rate["images_per_s"]
        low, high = rate["range"]
        rows.append(
            (
                name,
                f"{found:,.0f} ({low:,.0f}-{high:,.0f})",
                _number(None if arithmetic is None else found / arithmetic, ".0%"),
                _number(None if memory is None else found / memory, ".0%"),
                _number(rate["j_per_image"], ".3f"),
                rate["n"],
            )
        )
    rows += [(name, reason, None, None, None, None) for name, reason in figures.get("notes", {}).items()]
    text = _table(
        ("loop", "images/s (range)", "MFU of the measured matrix rate", "of the memory bound", "J an image", "n"), rows
    )
    work = figures["work"]
    return (
        f"{text}\n\nBatch {figures.get('batch_size', '-')}; {figures['precision']}. One image: "
        f"{work['train_gflops']:.1f} GFLOP and at least {work['train_mb']:.0f} MB through memory in training "
        "(benchmarks/gpu/traffic.py says how they are counted)."
    )


def _fed(figures: dict[str, Any], results: dict[str, Any]) -> str:
    parts = []
    for name, found in figures["sets"].items():
        rows = [
            (loop, f"{rate['images_per_s']:,.0f} ({rate['range'][0]:,.0f}-{rate['range'][1]:,.0f})", rate["n"])
            for loop, rate in found["rates"].items()
        ]
        share = _number(found.get("share_of_synthetic"), ".0%")
        parts.append(
            f"{name}: {found['pictures']:,} JPEGs of {found['mean_pixels']:,.0f} pixels and "
            f"{found['mean_bytes'] / 1e3:,.0f} kB; batch {found['batch_size']}, {found['cores']} cores; from JPEGs "
            f"{share} of synthetic; compile {figures['compile_note']}.\n\n"
            + _table(("loop", "images/s (range)", "n"), rows)
        )
    return "\n\n".join(parts)


def _gates(figures: dict[str, Any], results: dict[str, Any]) -> str:
    rows = []
    for row in figures.get("rows", []):
        energy = row.get("energy", {})
        rows.append(
            (
                row["name"],
                f"{row['activation']:.1%}",
                _number(row["offered_per_s"]),
                f"{row['speedup']:.2f}",
                f"{row['arithmetic_ceiling']:.2f}",
                f"{row['machine_ceiling']:.2f}",
                f"{row['share_of_machine_ceiling']:.0%}",
                _number(energy.get("j_per_offered"), ".4f"),
                _number(energy.get("savings_measured"), ".0%"),
                _number(energy.get("savings_arithmetic"), ".0%"),
                row["n"],
            )
        )
    columns = ("gate", "trained", "offered/s", "times dense", "arithmetic ceiling", "machine's ceiling", "share of it")
    return _table((*columns, "J an offered image", "measured savings", "arithmetic savings", "n"), rows)


def _accuracy(figures: dict[str, Any], results: dict[str, Any]) -> str:
    rows = []
    for row in figures["rows"]:
        top1 = row.get("val_top1") or {}
        error = "" if top1.get("se") is None else f" +- {100 * top1['se']:.2f}"
        whose = "" if row["for"] is None else f" ({row['for']})"
        share = top1.get("mean")
        shown = "-" if share is None else f"{100 * share:.2f}{error}"
        rows.append((f"{row['role']}{whose}", row["gate"], shown, row["n"]))
    return f"On {figures['pictures']}.\n\n" + _table(("role", "gate", "top-1, %", "n"), rows)


def _pixels(figures: dict[str, Any], results: dict[str, Any]) -> str:
    rows = [
        (
            row["decoder"],
            row["hw_decoder_load"],
            "on" if row["fancy_upsampling"] else "off",
            row["operator"],
            *(
                (row["reason"], None, None, None)
                if "reason" in row
                else (
                    f"{row['largest_levels']:.0f} ({row['mean_levels']:.3f})",
                    f"{row['worst_mean_levels']:.3f}",
                    "same" if row["head_equals_tail"] else f"differ by {row['head_to_tail_levels']:.0f}",
                    _number(row["images_per_s"]),
                )
            ),
        )
        for row in figures["rows"]
    ]
    columns = ("decoder", "engine's load", "fancy upsampling", "operator", "largest (mean) difference to CPU, levels")
    return _table((*columns, "worst picture's mean", "head and tail of the batch", "images/s"), rows)


def _hostile(figures: dict[str, Any], results: dict[str, Any]) -> str:
    text = _table(("file", f"DALI alone ({figures['decoder']})"), figures["dali_alone"].items())
    loader = figures.get("loader")
    if loader is None:
        return text
    return (
        f"{text}\n\nAll of them through fastast's loader, with good ones: {loader['delivered']} delivered, "
        f"{len(loader['refused_by_the_scan'])} refused by the scan, {len(loader['quarantined_in_the_pass'])} "
        f"quarantined in the pass, {loader['good_pictures_lost']} good ones lost, {loader['delivered_twice']} "
        "delivered twice."
    )


def _precisions(figures: dict[str, Any], results: dict[str, Any]) -> str:
    rows = [
        (
            name,
            _number(run["first_loss"], ".4f"),
            _number(run["last_loss"], ".4f"),
            run["nonfinite"],
            run["scaler_skips"],
            run["steps"],
        )
        for name, run in figures.items()
        if isinstance(run, dict)
    ]
    text = _table(("format", "first loss", "last ten", "non-finite steps", "scaler skips", "steps"), rows)
    if figures.get("fp16_peak_gb") is None:
        return text
    return (
        f"{text}\n\nfp16 at batch {figures['fp16_batch_size']}, eager: {figures['fp16_peak_gb']:.1f} GB at the peak, "
        f"{figures['fp16_reserved_gb']:.1f} GB taken by torch's allocator."
    )


def _scaling(figures: dict[str, Any], results: dict[str, Any]) -> str:
    rows = [
        (number, _number(rate), f"{figures['efficiency'][number]:.0%}")
        for number, rate in figures["offered_per_s"].items()
    ]
    return _table(("GPUs", "offered/s", "of linear"), rows)
