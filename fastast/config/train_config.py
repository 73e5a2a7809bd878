"""The options of a training run: one dataclass, one line of doc with the unit for each field.

The command line, its `--help`, TOML files and `config.json` are all made from these fields.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from fastast.config.config_checks import check_config
from fastast.config.options import checked_value, command_words, option
from fastast.config.presets import PRESETS
from fastast.config.train_sizes import train_sizes
from fastast.gates.registry import AUTO, GATES
from fastast.loggers.available import LOGGERS
from fastast.phases import PROBE

SIGNIFICANCE = tuple(dict.fromkeys(kind for entry in GATES.values() for kind in entry.significance))

STALL_TIMEOUT_S = 1800.0


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """Everything that decides a run. `None` means "chosen for this machine or data", as the doc line says.

    Raises:
        InputError: a value is outside its range; the message names the option and a value that works.
    """

    # What to train on
    data: str | None = option(
        None,
        "folder with train/ and val/ class folders, a public set as unpacked, or a pack; default: a drawn demo set",
        kind=str,
        metavar="DIR|PACK",
    )
    train_dir: str | None = option(
        None,
        "training class folders, comma-separated; instead of --data, where it does not find the two splits by itself",
        kind=str,
        metavar="A[,B...]",
    )
    val_dir: str | None = option(
        None, "validation class folders; with --train-dir, or with --data where it has none", kind=str, metavar="C"
    )
    val_split: float | None = option(
        None,
        "share of the training pictures held out for validation, in (0, 1), seeded and stratified; where there is no "
        "validation folder",
        kind=float,
        metavar="F",
    )
    out: str | None = option(
        None,
        "run folder to write; name it to continue the run later; default runs/<date-time>-<arch>-<gate>",
        kind=str,
        metavar="DIR",
    )

    # The network
    arch: str = option(
        "resnet50",
        "torchvision classifier by name, timm/NAME where timm is installed, or module:function called with "
        "num_classes=; resnet18 is smaller and faster",
        metavar="NAME",
    )
    weights: str = option(
        "none",
        "what to start from: none, imagenet (torchvision's best, or timm's; a module:function gets weights= too), or a "
        ".pt/.pth/.safetensors file; with few pictures, start from imagenet",
        metavar="none|imagenet|FILE",
    )
    preset: str | None = option(
        None,
        "defaults for a purpose, which every other option overrides: "
        + "; ".join(f"{name}: {' '.join(command_words(options))}" for name, options in PRESETS.items()),
        kind=str,
        choices=PRESETS,
    )
    start: str | None = option(
        None,
        "the head of a network with --weights: probe fits it to the network's features before any training, by one "
        "forward of each picture, which also tells the gate what to choose; random leaves it as it was initialised; "
        "default probe where the weights are for other classes",
        kind=str,
        choices=(PROBE, "random"),
    )
    freeze: str | None = option(
        None,
        "part of the network (as torch names it, for example layer2 of a ResNet) up to whose end nothing trains, which "
        "saves its backward: for fine-tuning on few pictures",
        kind=str,
        metavar="STAGE",
    )
    freeze_bn: str = option(
        "auto",
        "on: batch normalisation keeps the statistics of --weights, whatever pictures train; auto: on after a probe",
        choices=("auto", "on", "off"),
    )
    image_size: int = option(
        224, "side of the training and evaluation crop, pixels; half the side costs about a quarter", metavar="PX"
    )
    train_size: str | None = option(
        None,
        "training pictures grow from A to B pixels over the first three quarters of the run, for less work; auto: from "
        "0.57 to 0.86 of --image-size, at which the network is evaluated (below 64, to that size); default that size "
        "throughout",
        kind=str,
        metavar="A:B|auto",
    )

    # The schedule
    epochs: float | None = option(
        None,
        "passes over the training set, warm-up included; fractions are allowed; default 40 without --budget",
        kind=float,
        metavar="N",
    )
    budget: str | None = option(
        None,
        "what the run may spend, instead of --epochs: 5ep (the work of five dense epochs), 8h50m or 40m (from the "
        "command's start to its verdict), 500kJ or 0.15kWh (GPU energy)",
        kind=str,
        metavar="AMOUNT",
    )
    batch_size: int | None = option(
        None,
        "samples per optimizer step on each device; lower it when memory runs out; default 64 on CPU, 256 on GPU",
        kind=int,
        metavar="N",
    )
    optimizer: str = option(
        "sgd",
        "sgd: with Nesterov momentum, for convolutional networks; adamw: for transformers, ConvNeXt and short runs",
        choices=("sgd", "adamw"),
    )
    lr: float | None = option(
        None,
        "peak learning rate; lower it if the loss diverges; default 0.1 x batch/256, with --weights 0.08 x batch/256, "
        "after a probe 0.008 x batch/256; for adamw 0.001 x sqrt(batch/256), with --weights 0.00005 x sqrt(batch/256)",
        kind=float,
        metavar="LR",
    )
    lr_warmup: float = option(
        0.05,
        "share of the planned work over which the learning rate rises to its peak; longer for large batches",
        metavar="F",
    )
    momentum: float = option(0.9, "Nesterov momentum of SGD, the first beta of AdamW; seldom changed", metavar="M")
    weight_decay: float | None = option(
        None,
        "decay of weights, none of norms and biases; default 0.0001 (an L2 penalty) for sgd, 0.05 (decoupled) for "
        "adamw",
        kind=float,
        metavar="WD",
    )
    label_smoothing: float = option(
        0.1, "share of the label spread over all classes, in the training loss only; 0: plain", metavar="F"
    )
    ema: str = option(
        "off",
        "auto: averages the weights as the run goes, and keeps the average if it is better on the validation pictures "
        "at its end",
        choices=("auto", "off"),
    )
    class_weights: str = option(
        "none",
        "balanced: each class has the same part in the training loss, however many pictures it has; for classes of "
        "unlike size that matter alike",
        choices=("none", "balanced"),
    )
    min_crop: float = option(
        0.25,
        "smallest share of a picture's area in a training crop; raise it for small pictures or short runs",
        metavar="F",
    )
    no_flip: bool = option(
        False, "never mirror training pictures: for digits, text, left and right in medicine, maps and the like"
    )

    eval_every: str = option(
        "auto",
        "epochs' worth of dense training between two evaluations, which are made at ends of epochs; auto: they take "
        "5 % of the work, at least three are made where there are as many epochs, always one at the end",
        metavar="auto|EPOCHS",
    )

    # The gate
    gate: str = option(
        "memory",
        "which samples reach backward: " + "; ".join(f"{name}: {info.help}" for name, info in GATES.items()),
        choices=GATES,
    )
    selection: str = option(
        "soft",
        "hard: score > threshold (the published rule); soft: score > threshold * uniform, which learns more",
        choices=("soft", "hard"),
    )
    target: float | str = option(
        None,
        "share of offered samples that reach backward, in (0, 1]; less is faster and learns less; auto: the gate finds "
        "it in its scores as the network learns; default auto for memory and forward, else 0.1",
        kind=float,
        metavar="SHARE|auto",
        words=(AUTO,),
    )
    explore: float = option(
        0.0,
        "share of offered samples selected whatever the score, below --target, so that none is forgotten",
        metavar="SHARE",
    )
    unbiased: bool = option(False, "weigh each trained sample by rate / its selection probability (soft selection)")
    prune: float = option(
        0.5,
        "infobatch: share of the samples with a loss below the mean that an epoch leaves out, in [0, 1)",
        metavar="R",
    )
    warmup_epochs: float | None = option(
        None,
        "dense epochs before the gate starts (fractions allowed); memory and infobatch get their first scores there; "
        "default 1, after a probe 0",
        kind=float,
        metavar="N",
    )
    anneal: float = option(0.0, "dense epochs at the end of the run (fractions allowed)", metavar="N")
    significance: str | None = option(
        None,
        "what memory and forward select by: "
        + "; ".join(f"{name}: {', '.join(info.significance)}" for name, info in GATES.items() if info.significance)
        + "; default the first",
        kind=str,
        choices=SIGNIFICANCE,
    )

    # Stopping and continuing
    checkpoint_every: float = option(
        10.0,
        "minutes between checkpoints within an epoch (fractions allowed); 0: at epoch ends only",
        metavar="MINUTES",
    )
    max_time: str | None = option(
        None,
        "stop with a checkpoint and exit code 3 after this long, for example 8h50m, 45m or 90s; for limited sessions",
        kind=str,
        metavar="TIME",
    )
    stall_timeout: float = option(
        STALL_TIMEOUT_S,
        "seconds without a batch, waits for data that went away included, after which the run ends; 0: never",
        metavar="S",
    )

    # The ledger
    dense_calibration: int = option(
        0,
        "dense steps before the gate at least, to measure dense joules per sample (50 are left out, 30 s are needed)",
        metavar="STEPS",
    )
    power_limit: float | str | None = option(
        None,
        "power limit of each GPU during the run, watts; auto: that of the least energy per picture at no more than 5 % "
        "less speed, found in the first dense steps; needs root, CAP_SYS_ADMIN or Zeus' daemon",
        kind=float,
        metavar="W|auto",
        words=(AUTO,),
    )
    lock_clocks: int | None = option(
        None,
        "highest SM clock of each GPU during the run, MHz; needs the same rights",
        kind=int,
        metavar="MHZ",
    )
    price_per_kwh: float | None = option(
        None, "adds what the GPU energy cost, in the currency of the price", kind=float, metavar="P"
    )
    gco2_per_kwh: float | None = option(
        None, "adds the CO2 of the GPU energy, in grams, at this many grams per kWh", kind=float, metavar="G"
    )

    # The machine
    seed: int = option(
        0,
        "seed of weights, order, crops and selection; repeat a run with others to see how far results vary",
        metavar="N",
    )
    device: str = option("auto", "where to train; auto: on a GPU if there is one", choices=("auto", "cuda", "cpu"))
    precision: str = option(
        "auto",
        "number format of the network; auto: bf16 where the hardware has it, else fp16 on CUDA, fp32 on CPU",
        choices=("auto", "fp32", "fp16", "bf16"),
    )
    compile: str = option(
        "auto",
        "torch.compile; auto: on CUDA where a trial compiles; reduce-overhead: on, and with CUDA graphs",
        choices=("auto", "on", "off", "reduce-overhead"),
    )
    decode: str = option(
        "auto",
        "where pictures are decoded when training on a GPU; auto: there, and on the CPU what it can take on",
        choices=("auto", "gpu", "cpu"),
    )
    deterministic: bool = option(
        False, "on a GPU, only use decoders and kernels that give the same bits every time (slower)"
    )
    nproc: str | None = option(
        None,
        "processes to start on this machine, one for each GPU: a number, or auto for all GPUs; default one",
        kind=str,
        metavar="N|auto",
    )
    threads: int | None = option(
        None, "decoder threads; default the cores this process may use, at most 32", kind=int, metavar="N"
    )
    log_every: int = option(10, "offered batches between two step lines of metrics.jsonl", metavar="N")
    log: str | None = option(
        None,
        f"also send the lines of metrics.jsonl to loggers that are installed, comma-separated: {', '.join(LOGGERS)}",
        kind=str,
        metavar="A[,B]",
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            setattr(self, field.name, checked_value(field, getattr(self, field.name)))
        if self.weight_decay is None:
            self.weight_decay = 1e-4 if self.optimizer == "sgd" else 0.05
        if self.target is None:
            self.target = GATES[self.gate].default_target
        if self.budget is None and self.epochs is None:
            self.epochs = 40.0
        if self.weights == "none" or self.start is not None:
            self.settle_start(new_head=False)
        check_config(self)

    def settle_start(self, *, new_head: bool) -> None:
        """Sets `start`, and what follows from it where it was left open.

        Args:
            new_head: `weights` are for other classes.
        """
        if self.start is None:
            self.start = PROBE if new_head else "random"
        if self.warmup_epochs is None:
            self.warmup_epochs = 0.0 if self.start == PROBE else 1.0

    @property
    def keeps_statistics(self) -> bool:
        """Whether batch normalisation keeps the statistics of the weights."""
        return self.freeze_bn == "on" or (self.freeze_bn == "auto" and self.start == PROBE)

    @property
    def train_sizes(self) -> tuple[int, ...]:
        """Sides of the training pictures, pixels, in the order in which a run uses them."""
        return train_sizes(self.train_size, self.image_size)
