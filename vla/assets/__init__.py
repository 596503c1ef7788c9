"""Files that ship with the package."""

from importlib.resources import files
from pathlib import Path

PALIGEMMA_TABLETOP = Path(str(files(__name__))) / "paligemma_tabletop"
"""A small PaliGemma that can see and name what lies on the tabletop; its card is README.md there."""
