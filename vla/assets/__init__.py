"""Files that ship with the package."""

from importlib.resources import files
from pathlib import Path

PALIGEMMA_TABLETOP = Path(str(files(__name__))) / "paligemma_tabletop"
"""A small PaliGemma that sees and names what lies on the tabletop; README.md there is its card."""

PALIGEMMA_TABLETOP_FINE = Path(str(files(__name__))) / "paligemma_tabletop_fine"
"""One with finer patches, which tells shapes apart too: for crowded tables."""

MASK_CODEC_TABLETOP = Path(str(files(__name__))) / "mask_codec_tabletop" / "mask_codec.safetensors"
"""Masks of the tabletop's things as codes and back."""
