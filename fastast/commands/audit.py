"""`fastast audit`: duplicates, leaks, suspected labels and more of a set of pictures, as a page and CSV files."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastast.commands.shared_options import add_batches, require_positive
from fastast.errors import InputError
from fastast.run_folder import RunFolder, find_weights, read_json

if TYPE_CHECKING:
    from fastast.audit.pictures import Pictures
    from fastast.loggers.console import Reporter

# What says which pictures a run was trained on.
_DATA_OPTIONS = ("data", "train_dir", "val_dir", "val_split", "seed")


def add_parser(commands: Any) -> None:
    """Adds the command and its arguments."""
    parser = commands.add_parser(
        "audit",
        help="duplicates, leaks into validation, suspected labels and more of a set of pictures",
        description="Reads every picture, and writes a page and CSV files: which are in train and in val, which are "
        "there twice (also re-encoded, resized, slightly cropped or mirrored), which cannot be read, how many each "
        "class has; with a run also which labels its network contradicts, and what a gate could save.",
    )
    parser.add_argument(
        "model", nargs="?", metavar="RUN|FILE", help="a run folder, whose data is audited, or a file of weights"
    )
    parser.add_argument("--data", metavar="DIR|PACK", help="the pictures, in any layout; default those of the run")
    parser.add_argument("--out", metavar="DIR", help="where to write; default audit/ in the run, or audit-NAME here")
    add_batches(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Audits.

    Returns:
        0, whatever was found.

    Raises:
        InputError: something that the user can fix.
    """
    require_positive(batch_size=args.batch_size)
    if args.model is None and args.data is None:
        raise InputError("name a run, or the pictures: fastast audit RUN, or fastast audit --data DIR")
    folder = None if args.model is None else find_weights(args.model)[1]
    is_run = folder is not None and folder.config.exists()
    if args.data is None and not is_run:
        raise InputError(f"{args.model}: no run that says where its pictures are; add --data DIR")

    from fastast.audit.findings import Findings, write_tables
    from fastast.audit.fingerprints import read_fingerprints
    from fastast.audit.groups import find_groups
    from fastast.audit.page import write_audit_page
    from fastast.data import require_outside
    from fastast.loggers.console import Reporter

    options = {"data": args.data} if args.data is not None else _options_of(folder)
    name = Path(options.get("data") or args.model).resolve().name
    out = Path(args.out or (folder.path / "audit" if folder is not None and is_run else f"audit-{name}"))
    require_outside(out, options.get("data"), options.get("train_dir", "").split(","), options.get("val_dir"))
    reporter = Reporter()
    pictures = _open(args.data, options, reporter)
    prints = read_fingerprints(pictures, reporter.counter("reading"))
    groups = find_groups(pictures, prints, reporter.counter("comparing"))
    findings = Findings(name, pictures, prints, groups)
    if folder is not None:
        findings = _judged(findings, args, folder, reporter)
    try:
        out.mkdir(parents=True, exist_ok=True)
        tables = write_tables(findings, out)
    except OSError as error:
        raise InputError(f"--out {out}: {os.strerror(error.errno or 0)}; name another folder") from error
    to_judge = () if folder is not None else _to_judge(args.data, name)
    page = write_audit_page(findings, out / "audit.html", to_judge=to_judge)
    for line in findings.told():
        reporter.note(line)
    reporter.note(f"wrote {page} and {', '.join(path.name for path in tables)}")
    if folder is None:
        reporter.next(f"{', then '.join(to_judge)}: with a trained network it finds suspected labels too")
    else:
        reporter.next(f"fastast report {shlex.quote(str(folder.path))}")
    return 0


def _to_judge(data: str, name: str) -> tuple[str, str]:
    """The commands that train a network on the pictures, and audit them with it."""
    run = shlex.quote(f"runs/{name}")
    return f"fastast train --data {shlex.quote(data)} --out {run}", f"fastast audit {run}"


def _options_of(folder: RunFolder | None) -> dict[str, Any]:
    """The options that say which pictures a run was trained on."""
    assert folder is not None
    config = read_json(folder.config)
    return {key: config[key] for key in _DATA_OPTIONS if config.get(key) is not None}


def _open(data: str | None, options: dict[str, Any], reporter: Reporter) -> Pictures:
    """The pictures that were named, or those of the run with these options."""
    from fastast.audit.pictures import Pictures, open_pictures

    if data is not None:
        return open_pictures(data, progress=reporter.counter("scanning"), on_note=reporter.note)
    from fastast.config import TrainConfig
    from fastast.session.run_data import open_data

    dataset = open_data(TrainConfig(**options), reporter)
    return Pictures({"train": dataset.train, "val": dataset.val})


def _judged(findings: Any, args: argparse.Namespace, folder: RunFolder, reporter: Reporter) -> Any:
    """With what the network says of the labels, and the forecast of its run."""
    import dataclasses

    from fastast.audit.forecast import forecast
    from fastast.audit.judgement import judge
    from fastast.models.trained import find_trained
    from fastast.record.run_record import read_record

    judgement = judge(
        find_trained(args.model),
        findings.pictures,
        batch_size=args.batch_size,
        device=args.device,
        progress=reporter.counter("judging labels"),
    )
    known = forecast(read_record(folder.path)) if folder.config.exists() else None
    return dataclasses.replace(findings, judgement=judgement, forecast=known)
