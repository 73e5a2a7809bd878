"""Options and values of earlier versions, and what to use instead."""

from __future__ import annotations

_PROXY = "was removed with the proxy gate; use --gate memory, whose scores cost nothing, or --gate forward"

_OPTIONS = {
    "proxy_size": _PROXY,
    "proxy_arch": _PROXY,
    "proxy_bn_every": _PROXY,
    "clip_weights": "was removed; --explore E bounds the weights of --unbiased by rate / E",
    "target_schedule": "was removed; --target holds for all gated epochs, --warmup-epochs and --anneal add dense ones",
    "read": "was removed; leave it out, since files are always read with pread",
    "tensorboard": "was replaced; use --log tensorboard",
    "thumbnails": "was removed with the proxy gate; leave it out (packs that hold thumbnails can still be read)",
}
_VALUES = {
    ("gate", "proxy"): "was removed, as it was never better than random; use memory or forward",
    ("significance", "loss+entropy"): "was removed; use loss+std, the published score, or el2n",
}


def removed_option(name: str) -> str | None:
    """What became of an option, by field name; None for one that was never removed."""
    return _OPTIONS.get(name)


def removed_value(name: str, value: object) -> str | None:
    """What became of a value of an option, by field name; None for one that was never removed."""
    return _VALUES.get((name, value)) if isinstance(value, str) else None
