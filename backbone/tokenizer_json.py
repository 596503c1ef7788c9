"""Gemma's and PaliGemma's tokenizer.json as a SentencePiece model with the same ids.

Hugging Face's file is the original model spelled out: pieces with their ids, the merges that their
scores stand for, and the tokens that are never split. Written back as a SentencePiece model it
encodes alike, so that there is one tokenizer here and no second library.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE_NAME = "tokenizer.json"
IMAGE = "<image>"  # stands for a patch in Hugging Face's rows; no text of the model has it
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")  # ids 0 to 3
TAB, TAB_BYTE = "\t", "<0x09>"
# sentencepiece_model.proto: `ModelProto.SentencePiece.Type`
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def sentencepiece_model(path: Path) -> bytes:
    """The serialised SentencePiece model that `path`, a tokenizer.json, was made from.

    Raises ValueError if the file is no JSON, or its tokenizer is of another kind than Gemma's.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        pieces = _pieces(values)
        model, added = values["model"], values.get("added_tokens", [])
        _check_kind(values, path)
        scores = _scores(model)
        kept = {token["content"] for token in added}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a tokenizer.json of Gemma's kind ({error}); give the tokenizer.model"
        ) from error
    lowest = float(-len(pieces))
    body = [
        _piece(piece, 0.0 if kind != NORMAL else scores.get(piece, lowest), kind)
        for i, piece in enumerate(pieces)
        for kind in [_kind(i, piece, kept)]
    ]
    return b"".join([*body, _message(2, _trainer(len(pieces))), _message(3, _NORMALIZER)])


def _check_kind(values: Mapping[str, Any], path: Path) -> None:
    model = values["model"]
    if model.get("type", "BPE") != "BPE" or not model.get("byte_fallback"):
        raise ValueError(f"expected BPE with byte fallback, found {model.get('type')!r}")
    normalizer = values.get("normalizer") or {}
    spaces = normalizer.get("type") == "Replace" and normalizer.get("content") == "▁"
    if not spaces:
        raise ValueError(f"expected spaces replaced by ▁ and no more, found {normalizer}")


def _pieces(values: Mapping[str, Any]) -> list[str]:
    """Every piece in the order of its id, `<image>` left out where it is the last."""
    ids: dict[str, int] = dict(values["model"]["vocab"])
    ids |= {token["content"]: token["id"] for token in values.get("added_tokens", [])}
    pieces = sorted(ids, key=ids.__getitem__)
    if [ids[piece] for piece in pieces] != list(range(len(pieces))):
        raise ValueError("its ids are not numbered one by one")
    if pieces and pieces[-1] == IMAGE:
        pieces.pop()
    if tuple(pieces[:4]) != SPECIAL:
        raise ValueError(f"expected the ids 0 to 3 to be {SPECIAL}, found {tuple(pieces[:4])}")
    if TAB in ids and TAB_BYTE not in ids:  # Hugging Face writes this one byte as itself
        pieces[ids[TAB]] = TAB_BYTE
    return pieces


def _scores(model: Mapping[str, Any]) -> dict[str, float]:
    """Of every piece that pairs merge into: the earlier, the higher."""
    scores: dict[str, float] = {}
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        scores.setdefault(left + right, -float(rank))
    return scores


def _kind(i: int, piece: str, added: set[str]) -> int:
    if i < len(SPECIAL):
        return UNKNOWN if piece == "<unk>" else CONTROL
    if _BYTE.fullmatch(piece):
        return BYTE
    return USER_DEFINED if piece in added else NORMAL


def _trainer(count: int) -> bytes:
    """`TrainerSpec` with what Gemma's was trained with."""
    bpe, true = 2, 1
    fields = {3: bpe, 4: count, 25: true, 26: true, 35: true, 40: 3, 41: 2, 42: 1, 43: 0}
    names = {45: "<unk>", 46: "<bos>", 47: "<eos>", 48: "<pad>"}
    numbers = b"".join(_varint(field << 3) + _varint(value) for field, value in fields.items())
    return numbers + b"".join(_message(field, name.encode()) for field, name in names.items())


def _message(field: int, body: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(body)) + body


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _piece(text: str, score: float, kind: int) -> bytes:
    """`ModelProto.pieces` (field 1) with text (1), score (2, float32) and type (3)."""
    body = _message(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind])
    return _message(1, body)


# `NormalizerSpec`: name "identity", no dummy prefix (3), whitespace kept (4) and escaped (5)
_NORMALIZER = _message(1, b"identity") + b"\x18\x00\x20\x00\x28\x01"
