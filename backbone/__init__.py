"""PaliGemma: images and text in, hidden states, KV cache and text out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backbone.kv_cache import KVCache
    from backbone.paligemma import PaliGemma, PaliGemmaConfig, TextBatch
    from backbone.vlm import VLM

__all__ = ["VLM", "KVCache", "PaliGemma", "PaliGemmaConfig", "TextBatch"]

_HOMES = {
    "VLM": "backbone.vlm",
    "KVCache": "backbone.kv_cache",
    "PaliGemma": "backbone.paligemma",
    "PaliGemmaConfig": "backbone.paligemma",
    "TextBatch": "backbone.paligemma",
}


def __getattr__(name: str) -> Any:
    """Imported on first use, so that reading a file's header (backbone/sources) needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
