"""Check every shape that a signature names, at run time, in all tests."""

import pytest
from beartype import BeartypeConf, beartype
from jaxtyping import config, install_import_hook


def check_types(function):
    """Beartype, but an int is a good float, as everywhere in Python."""
    return beartype(conf=BeartypeConf(is_pep484_tower=True))(function)


install_import_hook("rolloutlib", "conftest.check_types")


@pytest.fixture
def without_type_checks():
    """What a user gets, who has no type checker: the package's own errors."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
