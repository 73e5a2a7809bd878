"""Sets of defaults, by field name of `TrainConfig`; whatever else is chosen overrides them."""

from __future__ import annotations

from typing import Any

# What learns the demo set in the time that somebody who tries fastast will wait.
DEMO: dict[str, Any] = {
    "arch": "resnet18",
    "image_size": 48,
    "epochs": 8.0,
    "batch_size": 32,
    "lr": 0.02,
    "min_crop": 0.5,
}

# docs/fine-tuning.md says which figures they rest on. What is not here has its usual default.
PRESETS: dict[str, dict[str, Any]] = {
    "finetune": {
        "weights": "imagenet",  # new classes get a probe, and with it a small learning rate and frozen statistics
        "lr": None,  # that of the probe, not of the demo
        "batch_size": 32,  # few pictures, many steps: all our figures of fine-tuning are of this size
        "budget": "4ep",  # the probe takes a third of one
    },
    "scratch": {
        "weights": "none",
        "train_size": "auto",  # more points for the same work than any gate
        "budget": "16ep",
    },
}
