"""`fastast bench`."""

from __future__ import annotations

import argparse
from typing import Any

from fastast.commands.run_options import add_run_options, chosen_options
from fastast.config_file import resolve
from fastast.gates.registry import GATES
from fastast.options import check_choice


def add_parser(commands: Any) -> None:
    """Adds the command and its arguments."""
    parser = commands.add_parser(
        "bench",
        help="compare gates with random selection and dense training, over several seeds",
        usage="fastast bench --data DIR --out DIR [--gates A,B] [options]",
        description="Runs every gate and its matched baselines: random at its share, dense at its forward units, time "
        "and joules. It also takes the options of train: --help-all shows them. Exit code 0 although runs failed, "
        "1 if all did.",
        epilog="example:\n  fastast bench --data D --gates random,memory --epochs 5 --out runs/bench\n"
        "The same command continues a bench that was stopped.\n",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--gates", metavar="A,B", default=",".join(GATES), help="gates to compare (default all)")
    parser.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        default=3,
        help="number of seeds, counted from --seed; fewer than 3 tell nothing apart (default 3)",
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="folder of the bench")
    parser.add_argument(
        "--budget",
        metavar="TIME",
        default=None,
        help="time that the whole bench may take, for example 30m: the epochs are reduced from --epochs until it fits",
    )
    parser.add_argument(
        "--dry-run", action="store_true", default=False, help="print the plan and an estimate of its time, run nothing"
    )
    add_run_options(parser, leave_out=("gate", "out", "max_time", "budget"))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Runs the bench; options are checked before torch is imported, which takes seconds."""
    options = {name: value for name, value in chosen_options(args).items() if name not in ("out", "budget")}
    for gate in filter(None, map(str.strip, args.gates.split(","))):
        check_choice("--gates", "gate", gate, GATES)
        resolve({**options, "gate": gate})
    from fastast.bench.experiment import Bench
    from fastast.loggers.console import Reporter

    bench = Bench(
        options,
        gates=args.gates,
        num_seeds=args.seeds,
        out=args.out,
        budget=args.budget,
        argv=argv,
        reporter=Reporter(),
    )
    return bench.run(dry_run=args.dry_run)
