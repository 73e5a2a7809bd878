"""`fastast bench`."""

from __future__ import annotations

import argparse
from typing import Any

from fastast.bench.arms import SET_BY_MATRIX, check_runs, parse_arms, parse_budgets
from fastast.commands.run_options import add_run_options, chosen_options

ARMS, BUDGETS = "dense;random;memory", "1,2,4ep"

EXAMPLES = """\
example:
  fastast bench --data D --arms "dense;random:target=0.3;memory:target=0.3" --budgets 0.5,1,2ep --out runs/bench
The same command continues a bench that was stopped; more arms, budgets or seeds join it.
"""

ELSEWHERE = {
    "gates": 'is --arms now, with what differs between them: --arms "dense;random;memory:target=0.1"',
    "gate": 'is set for each run; name the gates in --arms, for example --arms "dense;memory:target=0.1"',
    "epochs": "is set for each run; name what each may spend in --budgets, for example --budgets 1,2,4ep",
    "budget": "is set for each run, by --budgets 1,2,4ep; the time that the whole bench may take is --time 30m",
}


def add_parser(commands: Any) -> None:
    """Adds the command and its arguments."""
    parser = commands.add_parser(
        "bench",
        help="find out what the same accuracy costs with several gates or options, over several seeds",
        usage="fastast bench --data DIR --out DIR [--arms A;B] [--budgets X,Y] [options]",
        description="Trains every arm with every budget and seed, and says what the accuracy of dense training costs "
        "with each of them. The options of train hold for all arms: --help-all shows them. Exit code 0 although runs "
        "failed, 1 if all did.",
        epilog=EXAMPLES,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--arms",
        metavar="A;B",
        default=ARMS,
        help="gates to compare, each with the options in which it differs, as GATE:option=value,option; dense is the "
        f'baseline (default "{ARMS}")',
    )
    parser.add_argument(
        "--budgets",
        metavar="X,Y",
        default=BUDGETS,
        help="what a run may spend: epochs' worth of dense work (0.5,1,2ep), times (5m,10m) or GPU "
        f"energies (100kJ,200kJ); costs are interpolated between them (default {BUDGETS})",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        default=3,
        help="number of seeds, counted from --seed; fewer than 3 tell nothing apart (default 3)",
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="folder of the bench")
    parser.add_argument(
        "--time",
        metavar="TIME",
        default=None,
        help="time that the whole bench may take, for example 30m: all budgets shrink by one factor until it fits",
    )
    parser.add_argument(
        "--dry-run", action="store_true", default=False, help="print the plan and an estimate of its time, run nothing"
    )
    add_run_options(parser, leave_out=SET_BY_MATRIX)
    for name, instead in ELSEWHERE.items():
        parser.add_removed(name, instead)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Runs the bench; options are checked before torch is imported, which takes seconds."""
    options = {name: value for name, value in chosen_options(args).items() if name not in SET_BY_MATRIX}
    arms, budgets = parse_arms(args.arms), parse_budgets(args.budgets)
    check_runs(options, arms, budgets)
    from fastast.bench.experiment import Bench
    from fastast.loggers.console import Reporter

    bench = Bench(
        options,
        arms=arms,
        budgets=budgets,
        num_seeds=args.seeds,
        out=args.out,
        time=args.time,
        argv=argv,
        reporter=Reporter(),
    )
    return bench.run(dry_run=args.dry_run)
