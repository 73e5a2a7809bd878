"""Renders a template with style and script into one self-contained HTML file."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fastast._version import __version__
from fastast.atomic_files import write_whole
from fastast.errors import InputError

TEMPLATES = Path(__file__).with_name("templates")


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Renders a template of `templates/` with these values, whose text is escaped, and writes the file atomically.

    Returns:
        The path.

    Raises:
        InputError: the file cannot be written.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Our own file without any user value: the page's policy allows this one script, by its hash, and no requests.
    script = (TEMPLATES / "theme.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template(template).render(
        script=Markup(script),
        script_hash=digest,
        style=Markup(environment.get_template("style.css").render()),
        version=__version__,
        **values,
    )
    try:
        write_whole(path, page.encode("utf-8", "replace"))
    except OSError as error:
        raise InputError(f"{path}: {os.strerror(error.errno or 0)}; name another file with --out") from error
    return path
