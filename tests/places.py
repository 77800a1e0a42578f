"""Where the repository's files are."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
DATA = ROOT / "data"
