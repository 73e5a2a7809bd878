"""`fastast train`."""

from __future__ import annotations

import argparse
import os
from typing import Any

from fastast.commands.run_options import add_run_options, chosen_options
from fastast.config.config_file import resolve
from fastast.distributed.environment import find_world
from fastast.run_folder import RunFolder

EXAMPLES = """\
examples:
  fastast train                                   draw a demo set and train a small network on it
  fastast train --data imagenette                 ResNet-50 on class folders train/ and val/
  fastast train --data D --gate forward --selection hard --target 0.1    Adaptive Sparse Training as published
  fastast train --data D --gate dense             the baseline: every sample reaches backward
  fastast train --data D --budget 8h50m           train for as long as there is; also 5ep (epochs' work), 500kJ
  fastast train --data D --preset finetune        few pictures: start from ImageNet weights
  fastast train --out runs/a --resume             continue a run that was stopped, or killed
  fastast train --data D --out runs/a --resume --max-time 8h50m    start or continue, and stop in time

The gate decides which samples reach backward. Where dense training costs 3 forwards a sample, `memory`, the default,
costs 3a for the share a that it trains: after a dense epoch, those that still had something to teach. It finds a in
what it remembers. `forward` scores every sample by a forward pass and costs 1 + 3a: at 10 % it cannot beat 2.3x.
"""


def add_parser(commands: Any) -> None:
    """Adds the command and its arguments."""
    parser = commands.add_parser(
        "train",
        help="train a classifier on folders of pictures",
        usage="fastast train [--data DIR] [--out DIR] [options]",
        description="Trains an image classifier on folders of JPEG or PNG pictures. Most runs need only these options; "
        "--help-all shows the others too.",
        epilog=EXAMPLES,
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
    parser.advanced.add("force")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Trains; options and folders are checked before torch is imported, which takes seconds."""
    options = chosen_options(args)
    continues = args.resume is not None and "out" in options and RunFolder(options["out"]).holds_run()
    if args.resume in (None, "auto") and not continues:
        config = resolve(options)
        if find_world().size == 1:  # several ranks must agree on what is wrong
            from fastast.data.dataset import require_folder

            for folder in filter(None, (config.data, config.val_dir, *(config.train_dir or "").split(","))):
                require_folder(os.path.abspath(folder))
    from fastast.loggers.console import Reporter
    from fastast.session.session import train

    return train(options, resume=args.resume, force=args.force, argv=argv, reporter=Reporter())
