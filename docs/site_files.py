"""A hook of MkDocs: the site's pages are files of the repository, at their places in it.

So README and the pages beside the code are pages of the site without a copy, and a link between two files is the same
on the site, in an editor and on a code host. `mkdocs build --strict` then checks the links of all of them.
"""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

SHOWN = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "CITATION.cff",
    "docs/*.md",
    "docs/*.svg",
    "fastast/gates/README.md",
    "tests/README.md",
    "benchmarks/*.ipynb",
    "benchmarks/recipes/**/*",
    "benchmarks/results/*",
    "docker/*",
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replaces the files of the folder `docs` by the shown ones of the repository; the theme's own stay."""
    root = Path(config.config_file_path).parent
    own = [file for file in files if not str(file.abs_src_path).startswith(config.docs_dir)]
    paths = sorted({path for pattern in SHOWN for path in root.glob(pattern) if path.is_file()})
    return Files(own + [_page(path.relative_to(root).as_posix(), config, path) for path in paths])


def _page(name: str, config: MkDocsConfig, path: Path) -> File:
    return File.generated(config, name, abs_src_path=str(path))
