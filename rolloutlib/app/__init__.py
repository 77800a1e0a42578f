"""The explorer as a page for the reader's own pictures: `python -m rolloutlib.app`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["desk", "kept", "server"])
