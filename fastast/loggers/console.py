"""What a run tells the person watching: a live line in a terminal, plain lines anywhere else, a verdict at the end."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from fastast.loggers.speeds import find_speeds
from fastast.number_text import counted, duration, percent
from fastast.phases import DENSE, GATED
from fastast.run_folder import printable

# Seconds between two plain lines; a log file should stay readable after 12 hours.
PLAIN_INTERVAL_S = 15.0
# What a gate saved: key in the summary, and what is compared.
_SAVINGS = (
    ("measured", "joules"),
    ("arithmetic", "counted work"),
    ("estimated", "AST's count, trained 1 and skipped 0.01,"),
)


def open_console(*, stderr: bool = False) -> Console:
    """A console of standard output or error, which writes plain lines under TERM=dumb and NO_COLOR."""
    console = Console(stderr=stderr, highlight=False, soft_wrap=True)
    if _is_plain(console):
        console = Console(stderr=stderr, highlight=False, soft_wrap=True, color_system=None)
    return console


def _is_plain(console: Console) -> bool:
    return console.is_dumb_terminal or console.no_color


class Reporter:
    """Shows progress of long work and of training.

    Args:
        console: where to write; standard output by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or open_console()
        self._is_live = self.console.is_terminal and not _is_plain(self.console)
        self._live: Progress | None = None
        self._task: TaskID | None = None
        self._last_plain = 0.0

    def note(self, message: str) -> None:
        """Prints one line, whatever the names in it hold."""
        self.console.print(escape(printable(message)))

    def next(self, *commands: str) -> None:
        """Ends a command with what may be typed next."""
        self.note(f"next: {', '.join(commands)}")

    def begin(self, what: str, total: float | None) -> None:
        """Starts a progress bar of `total` units, None if nobody knows how many (a terminal only)."""
        self.end()
        self._last_plain = time.monotonic()
        if self._is_live:
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[detail]}"),
                console=self.console,
                transient=True,
            )
            self._task = self._live.add_task(escape(what), total=total, detail="")
            self._live.start()

    def advance(self, done: float, detail: str = "", *, total: float | None = None) -> None:
        """Moves the bar to `done`; without a terminal prints `detail` now and then."""
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=done, total=total, detail=escape(detail))
        elif detail and time.monotonic() - self._last_plain >= PLAIN_INTERVAL_S:
            self._last_plain = time.monotonic()
            self.note(detail)

    def counter(self, what: str) -> Any:
        """A `progress(done, total)` callback that shows counted work such as a scan."""

        def progress(done: int, total: int) -> None:
            if self._live is None and done < total and self._is_live:
                self.begin(what, total)
            self.advance(done, f"{what}: {done:,} of {total:,}", total=total)
            if done >= total:
                self.end()

        return progress

    def end(self) -> None:
        """Removes the bar."""
        if self._live is not None:
            self._live.stop()
        self._live = self._task = None


class FewNotes:
    """Notes that may come by the thousand: the first are shown, the others counted until `flush`.

    Args:
        reporter: shows them.
        limit: shown at once between two flushes.
    """

    def __init__(self, reporter: Reporter, limit: int = 5) -> None:
        self._reporter, self._limit = reporter, limit
        self._reasons: Counter[str] = Counter()
        self._num_shown = 0

    def note(self, what: str, reason: str) -> None:
        """Shows or counts one: `what` happened to a thing, and why."""
        if self._num_shown < self._limit:
            self._num_shown += 1
            self._reporter.note(f"{what}: {reason}")
        else:
            self._reasons[reason] += 1

    def flush(self, what: str) -> None:
        """Says how many were counted, by their most frequent reasons; `what` happened to them."""
        for reason, count in self._reasons.most_common(3):
            self._reporter.note(f"{what} {count:,} more: {reason}")
        rest = self._reasons.total() - sum(count for _, count in self._reasons.most_common(3))
        if rest:
            self._reporter.note(f"{what} {rest:,} more for other reasons")
        self._reasons.clear()
        self._num_shown = 0


def step_detail(line: dict[str, Any], left_s: float | None) -> str:
    """One line of text for a step line of `metrics.jsonl`, with the seconds that are left by the plan, if known."""
    speed = line["offered_per_s"] or 0.0
    parts = [f"epoch {line['epoch']} {line['phase']}", f"{speed:,.0f} offered/s"]
    if line["activation"] is not None and line["phase"] == GATED:
        parts.append(f"{speed * line['activation']:,.0f} trained/s")
        parts.append(f"share {percent(line['activation'], 1)}")
    if line["threshold"] is not None:
        parts.append(f"threshold {line['threshold']:.3g}")
    if line["loss"] is not None:
        parts.append(f"loss {line['loss']:.3f}")
    if line["gpu_w"] is not None:
        parts.append(f"{line['gpu_w']:,.0f} W")
    if left_s is not None:
        parts.append(f"{duration(left_s)} left")
    return " · ".join(parts)


def epoch_detail(line: dict[str, Any], of: str) -> str:
    """One line of text for an epoch line of `metrics.jsonl`; `of` follows the epoch's number."""
    loss = "-" if line["train_loss"] is None else f"{line['train_loss']:.3f}"
    accuracy = (
        ""
        if line["val_top1"] is None
        else (f"val top-1 {percent(line['val_top1'])}, top-5 {percent(line['val_top5'])}, ")
    )
    share = f"share {percent(line['activation'], 1)} of " if line["phase"] == GATED else ""
    return (
        f"epoch {line['epoch']}{of} {line['phase']}: {accuracy}train loss {loss}, "
        f"{share}{counted(line['offered'], 'picture')}, {duration(line['seconds'])}"
    )


def probe_detail(probe: dict[str, Any]) -> str:
    """One line of text for the `probe` entry of a summary."""
    return (
        f"probe: val top-1 {percent(probe['val_top1'])}, top-5 {percent(probe['val_top5'])}, "
        f"{counted(probe['pictures'], 'picture')}, penalty {probe['penalty']:.1e}, {duration(probe['seconds'])}"
    )


def probe_verdict(accuracy: dict[str, Any]) -> str:
    """What fine-tuning made of the probe's accuracy, in one line.

    Args:
        accuracy: of a summary, with a probe.
    """
    probe, last = accuracy["probe_top1"], accuracy["val_top1"]
    if last is None:
        return percent(probe)
    if last > probe:
        return f"{percent(probe)}; fine-tuning added {100 * (last - probe):.2f} points"
    lost = f"lost {100 * (probe - last):.2f} points" if last < probe else "changed nothing"
    better = "; a smaller --lr may keep them" if last < probe else ""
    return f"{percent(probe)}, and fine-tuning did not improve on it: it {lost}{better}"


def verdict(summary: dict[str, Any]) -> Table:
    """The closing table of a run: accuracy, work, time, and the three savings side by side."""
    is_dense = summary["gate"]["name"] == DENSE
    title = f"{summary['model']['arch']} · {'dense training' if is_dense else summary['gate']['name'] + ' gate'}"
    table = Table(title=title, title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column()
    accuracy, samples, energy = summary["accuracy"], summary["samples"], summary["energy"]
    compute, gate = summary["compute"], summary["gate"]
    table.add_row("val top-1 / top-5", f"{percent(accuracy['val_top1'])} / {percent(accuracy['val_top5'])}")
    best = "the probe" if accuracy["best_epoch"] == 0 else f"epoch {accuracy['best_epoch']}"
    table.add_row("best top-1", f"{percent(accuracy['best_val_top1'])} ({best})")
    balanced = accuracy.get("balanced_top1")
    if balanced is not None and abs(balanced - accuracy["val_top1"]) > 5e-5:
        table.add_row("balanced top-1", f"{percent(balanced)} (mean of the classes)")
    if accuracy.get("probe_top1") is not None:
        table.add_row("probe top-1", probe_verdict(accuracy))
    if (ema := accuracy.get("ema")) is not None:
        kept = "kept" if ema["used"] else "not kept"
        table.add_row("average of weights", f"{percent(ema['top1'])}, {kept} (plain {percent(ema['plain_top1'])})")
    if (budget := summary.get("budget")) is not None:
        table.add_row("budget", f"{amount(budget, 'spent')} of {amount(budget, 'given')} spent")
        if told := passes_told(samples["offered"] / summary["data"]["train"], energy["run_savings_arithmetic"]):
            table.add_row("", told)
    table.add_row("offered / trained", f"{samples['offered']:,} / {samples['backward']:,}")
    if gate["activation_rate"] is not None and not is_dense:
        target = "" if gate["target"] is None else f" (target {percent(gate['target'], 1)})"
        table.add_row("share, gated part", f"{percent(gate['activation_rate'], 1)}{target}")
        if told := share_told(gate):
            table.add_row("", told)
    elif not is_dense:
        dense = f"dense warm-up took {gate['warmup_epochs']:.3g} epochs; train longer, or with --warmup-epochs 0"
        table.add_row("gate", f"never ran: {dense}")
    if compute["speedup_ceiling"] is not None and not is_dense:
        table.add_row("gated ceiling", f"{compute['speedup_ceiling']:.2f}x (forward 1, backward 2)")
    for name, meaning in () if is_dense else _SAVINGS:
        gated, whole = energy[f"savings_{name}"], energy[f"run_savings_{name}"]
        figures = (
            f"gated part {percent(gated, 1)}, whole run {percent(whole, 1)}" if gated is not None else percent(None)
        )
        table.add_row(f"savings, {name}", f"{figures} ({meaning} per offered picture)")
    if energy["gpu_j"] is not None:
        table.add_row("GPU energy", f"{energy['gpu_j']:,.0f} J")
    if (speed := find_speeds(summary["throughput"].get)) is not None:
        part = "" if is_dense else " in the gated part" + (" after its first steps" if speed.is_steady else "")
        table.add_row("throughput", f"{speed.gated:,.0f} offered/s{part}")
    time_s = summary["time_s"]
    parts = f"training {duration(time_s['train'])}, evaluation {duration(time_s['eval'])}"
    if summary.get("probe") is not None:
        parts = f"probe {duration(summary['probe']['seconds'])}, {parts}"
    table.add_row("time", f"{duration(time_s['total'])}: {parts}")
    if summary["data"]["quarantined"]:
        table.add_row("quarantined", f"{counted(summary['data']['quarantined'], 'picture')} (quarantine.jsonl)")
    if samples["nonfinite_steps"]:
        table.add_row("non-finite steps", f"{samples['nonfinite_steps']:,} (skipped without a trace)")
    for note in energy["notes"]:
        if is_dense and "savings" in note:  # it is what others are measured by
            continue
        table.add_row("note", escape(note))
    return table


def passes_told(passes: float, saved: float | None) -> str | None:
    """Where the saving of a gate went whose run had a budget, in one line; None where it saved nothing.

    Args:
        passes: over the training set, offered.
        saved: share of the work of training all of what was offered.
    """
    if saved is None or saved < 0.005:
        return None
    return (
        f"the saving went into more passes: {passes:.1f} were offered, dense training has "
        f"{passes * (1 - saved):.1f} for as much work"
    )


def share_told(gate: dict[str, Any]) -> str | None:
    """How the share of a gate that sets it by itself has moved, in one line; None for other gates.

    Args:
        gate: of a summary. Older ones have no shares.
    """
    shares = gate.get("shares") or [None]
    if gate["target"] is not None or None in shares or shares[0] == shares[-1]:
        return None
    first, last = shares[0], shares[-1]
    return (
        f"the gate's share {'fell' if last < first else 'rose'} from {percent(first, 0)} to {percent(last, 0)} "
        "as the network learned"
    )


def amount(budget: dict[str, Any], name: str) -> str:
    """The "given" or "spent" of a `budget` entry of `summary.json` as text."""
    value = budget[name]
    if budget["kind"] == "time":
        return duration(value)
    return f"{value:,.0f} J" if budget["kind"] == "joules" else f"{value:.4g}ep"
