"""The commands: parse, call, print."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from fastast._version import __version__
from fastast.arguments import add_run_options, given_options
from fastast.config import GATES
from fastast.errors import InputError, ToldElsewhere

# Faults of a path that the user named.
PATH_ERRORS = {
    *(errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOENT),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
}

PLANNED_STOPS = {3, 128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGUSR1}

TRAIN_EXAMPLES = """\
examples:
  fastast train                                   draw a demo set and train a small network on it
  fastast train --data imagenette                 ResNet-50 on class folders train/ and val/
  fastast train --data D --arch resnet18 --image-size 64 --epochs 3 --gate forward --target 0.3
  fastast train --data D --gate dense             the baseline: every sample reaches backward
  fastast train --data D --weights imagenet --lr 0.002 --epochs 10
  fastast train --out runs/a --resume             continue a run that was stopped, or killed
  fastast train --data D --out runs/a --resume --max-time 8h50m    start or continue, and stop in time

The gate decides which samples reach backward. At a target share a, `forward` (which scores every sample by a
forward pass) costs 1 + 3a forwards per sample where dense training costs 3: at 10 % it cannot beat 2.3x.
"""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (`{self.prog} --help` lists the options)\n")


def build_parser() -> Parser:
    """The command line of fastast."""
    parser = Parser(prog="fastast", description="Fast, honest sparse training of image classifiers.")
    parser.add_argument("--version", action="version", version=f"fastast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_bench(commands)
    _add_evaluate(commands)
    _add_report(commands)
    _add_pack(commands)
    _add_doctor(commands)
    _add_meter(commands)
    return parser


def _add_train(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="train a classifier on folders of pictures",
        description="Trains an image classifier on folders of JPEG or PNG pictures.",
        epilog=TRAIN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    add_run_options(parser)
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        default=None,
        metavar="auto|FILE",
        help="continue the run in --out (or start it, or show it if finished), or continue from a checkpoint file",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        default=False,
        help="with --resume: continue although options have changed; the summary says what",
    )
    parser.set_defaults(run=_train)


def _train(args: argparse.Namespace, argv: list[str]) -> int:
    from fastast.console import Reporter
    from fastast.train.session import train

    reporter = Reporter()
    return train(
        given_options(args), toml_path=args.config, resume=args.resume, force=args.force, argv=argv, reporter=reporter
    )


def _add_bench(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="gates beside the baselines that keep them honest, seed by seed",
        description="Runs every gate and its matched baselines: random at its share, dense at its forward units, time "
        "and joules. Takes the options of train. Exit code 0 although single runs failed, 1 if not one came out.",
        epilog="example:\n  fastast bench --data D --gates random,memory --epochs 5 --out runs/bench\n"
        "The same command continues a bench that was stopped.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--gates", metavar="A,B", default=",".join(GATES), help="gates to compare (default all)")
    parser.add_argument("--seeds", type=int, metavar="N", default=3, help="number of seeds, from --seed on (default 3)")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder of the bench")
    parser.add_argument(
        "--budget", metavar="TIME", default=None, help="fit the epochs, at most --epochs, so that all of it takes this"
    )
    parser.add_argument("--dry-run", action="store_true", default=False, help="print the plan and an estimate of time")
    add_run_options(parser, leave_out=("gate", "out", "max_time"))
    parser.set_defaults(run=_bench)


def _bench(args: argparse.Namespace, argv: list[str]) -> int:
    from fastast.bench.command import run_bench
    from fastast.console import Reporter

    return run_bench(
        {name: value for name, value in given_options(args).items() if name != "out"},
        toml_path=args.config,
        gates=args.gates,
        num_seeds=args.seeds,
        out=args.out,
        budget=args.budget,
        dry_run=args.dry_run,
        argv=argv,
        reporter=Reporter(),
    )


def _add_evaluate(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="accuracy of a trained network on a folder of pictures",
        description="Prints top-1 and top-5 accuracy; with --out writes path, label, prediction and probability.",
    )
    parser.add_argument("model", metavar="RUN|FILE", help="a run folder, or a .safetensors/.pt/.pth file of weights")
    parser.add_argument("--data", required=True, metavar="D", help="class folders, or a folder that holds val/")
    parser.add_argument("--arch", metavar="A", help="the network; needed for a file outside a run folder")
    parser.add_argument(
        "--image-size", type=int, metavar="PX", help="evaluation crop, pixels; default the run's, or 224"
    )
    parser.add_argument("--out", metavar="preds.csv", help="write one line for each picture")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="pictures at a time (default 64)")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="where to run (default auto)")
    parser.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace, argv: list[str]) -> int:
    from fastast.console import Reporter
    from fastast.train.predict import evaluate_model

    return evaluate_model(
        args.model,
        data=args.data,
        arch=args.arch,
        image_size=args.image_size,
        out=args.out,
        batch_size=args.batch_size,
        device=args.device,
        reporter=Reporter(),
    )


def _add_report(commands: Any) -> None:
    parser = commands.add_parser(
        "report",
        help="one page about a run, or about several side by side",
        description="Writes a self-contained HTML page: accuracy, activation, the three savings, power, pictures.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--out", metavar="FILE", help="the page; default report.html in the run, or comparison.html")
    parser.set_defaults(run=_report)


def _report(args: argparse.Namespace, argv: list[str]) -> int:
    from fastast.report.page import run_report

    return run_report(args.runs, args.out)


def _add_pack(commands: Any) -> None:
    parser = commands.add_parser(
        "pack",
        help="pack folders of pictures into tar shards that are read faster",
        description="Packs class folders into WebDataset-style tar shards with an index; `--data` takes the result. "
        "A pack that was interrupted is completed by the same command.",
        epilog="examples:\n  fastast pack imagenette packed\n  fastast pack --verify packed",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SRC", help="folders as --data takes them; with --verify alone, a pack")
    parser.add_argument("out", metavar="OUT", nargs="?", help="the folder of the pack")
    parser.add_argument("--max-side", type=int, metavar="PX", help="re-encode larger pictures down to this longer side")
    parser.add_argument("--shard-size", type=float, default=1024, metavar="MB", help="megabytes a shard (default 1024)")
    parser.add_argument("--quality", type=int, default=95, metavar="Q", help="quality of re-encoded JPEGs (default 95)")
    parser.add_argument("--verify", action="store_true", help="read the pack back and check all of it")
    parser.add_argument("--workers", type=int, metavar="N", help="threads; default the cores this process may use")
    parser.set_defaults(run=_pack)


def _pack(args: argparse.Namespace, argv: list[str]) -> int:
    from fastast.console import Reporter
    from fastast.packing.packer import run_pack

    reporter = Reporter()
    return run_pack(
        args.source,
        args.out,
        max_side=args.max_side,
        shard_size_mb=args.shard_size,
        quality=args.quality,
        verify=args.verify,
        workers=args.workers,
        progress=reporter.counter("packing"),
        say=reporter.note,
    )


def _add_meter(commands: Any) -> None:
    parser = commands.add_parser(
        "meter",
        help="joules, watts and seconds of any command",
        description="Runs a command and reports the energy it took, as `perf stat` reports time.",
        epilog="example:\n  fastast meter --plot power.png -- python train.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures")
    parser.add_argument("--plot", metavar="FILE", help="draw power over time (.png or .svg)")
    parser.add_argument(
        "--interval", type=float, default=0.05, metavar="S", help="seconds between samples (default 0.05)"
    )
    parser.add_argument("--price-per-kwh", type=float, metavar="P", help="add the cost, in the currency of P")
    parser.add_argument("--gco2-per-kwh", type=float, metavar="G", help="add grams of CO2, at G grams per kWh")
    parser.add_argument(
        "measured", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="the command and its arguments"
    )
    parser.set_defaults(run=_meter)


def _meter(args: argparse.Namespace, argv: list[str]) -> int:
    from fastast.energy.command import run_meter

    command = args.measured[1:] if args.measured[:1] == ["--"] else args.measured
    return run_meter(
        command,
        args.json,
        args.plot,
        interval_s=args.interval,
        price_per_kwh=args.price_per_kwh,
        gco2_per_kwh=args.gco2_per_kwh,
    )


def _add_doctor(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="what this machine can do, and what to fix",
        description="Checks GPU, driver, NVML, DALI, compiler and precision, and names the remedy for what is missing.",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print the checks as JSON")
    how.add_argument(
        "--quick",
        action="store_true",
        help="a health check: packages, the driver's libraries, the current folder; disturbs no measurement",
    )
    parser.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace, argv: list[str]) -> int:
    if args.quick:
        from fastast.doctor_quick import run_quick_doctor

        return run_quick_doctor()
    from fastast.doctor import run_doctor

    return run_doctor(as_json=args.json)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit code: 0 done, 2 bad usage or input, 3 stopped at --max-time, 128 + n stopped by signal n.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    code = _run(parser.parse_args(arguments), arguments)
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return code
    # torchrun takes any code but 0 for a failure, and would start a stopped run again.
    path = os.environ.get("FASTAST_EXIT_FILE")  # of `--nproc`
    if path and code:
        with open(path, "w", encoding="ascii") as file:
            file.write(str(code))
    return 0 if path or code in PLANNED_STOPS else code


def _run(args: argparse.Namespace, arguments: list[str]) -> int:
    try:
        return args.run(args, arguments)
    except ToldElsewhere:
        return 2
    except InputError as error:
        return _fail(args.command, str(error))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" writing {error.filename}" if error.filename else ""
            return _fail(args.command, f"no space left on the device{where}; free some, then continue with --resume")
        if error.errno in PATH_ERRORS:
            return _fail(args.command, f"{error.filename}: {os.strerror(error.errno or 0)}; name another path")
        raise
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
            raise
        return _fail(args.command, "the GPU is out of memory; use a smaller --batch-size or --image-size")
    except ImportError as error:
        if (error.name or "").split(".")[0] not in ("nvidia", "torch", "torchvision"):
            raise
        return _fail(args.command, f"{error}; `fastast doctor` says what is missing")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _fail(command: str, message: str) -> int:
    # Names and values from files may hold line breaks and terminal codes.
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
    print(f"fastast {command}: error: {shown}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
