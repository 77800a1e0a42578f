"""The explorer as a page for the reader's own pictures: `python -m rolloutlib.app`."""
