"""Packages that only a part of rolloutlib needs, and the extra that installs each."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Inside the block, a package that is not installed is an ImportError that names its extra.

    >>> with needs("video"):
    ...     import a_package_that_is_missing
    Traceback (most recent call last):
        ...
    ImportError: a_package_that_is_missing is not installed: pip install 'rolloutlib[video]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{error.name} is not installed: pip install 'rolloutlib[{extra}]'", name=error.name
        ) from error


@contextmanager
def without_iris() -> Iterator[None]:
    """Inside the block, jsonschema, which nbformat imports, does without its format "iri".

    It would build the grammar of these identifiers, which no notebook has, for a second.
    """
    name = "rfc3987_syntax"
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None
    try:
        yield
    finally:
        del sys.modules[name]
