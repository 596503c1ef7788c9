"""PaliGemma: images and text in, hidden states, KV cache and text out."""

from backbone.kv_cache import KVCache
from backbone.paligemma import PaliGemma, PaliGemmaConfig, TextBatch
from backbone.vlm import VLM

__all__ = ["VLM", "KVCache", "PaliGemma", "PaliGemmaConfig", "TextBatch"]
