"""Which pictures are nearly the same: perceptual hashes, thumbnails, and an image encoder.

Each picture is looked at whole and in nine crops that keep 95 % of its sides; two pictures are
compared as the whole of either with all ten of the other, and the best comparison counts.

bits       of 256 that differ in pHash, the signs of a greyscale picture's low frequencies against
           their median, by the library `imagehash`
likeness   of thumbnails of 16 × 16 pixels in colour: the cosine around their mean colours
cosine     of an image encoder's embeddings around the mean of a set's

Unlike pictures differ in about 128 bits. The hash is the first sieve, and the thumbnails tell what
it mixes up: pictures of few shapes or of smooth light, whose higher frequencies are mostly noise.

PaliGemma's authors removed training pictures near those of their evaluation sets (arXiv 2407.07726,
section 3.2.5), by a method that they cite and thresholds that they don't give. These are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from backbone.image import prepare
from backbone.paligemma import PaliGemma

__all__ = ["Match", "Prints", "Search", "distances", "embeddings", "groups", "matches", "prints"]

SIDE, THUMB = 16, 16
WORDS = SIDE * SIDE // 64
CROP = 0.05
CHUNK = 256  # pictures compared at once
BATCH = 32  # pictures embedded at once


@dataclass(frozen=True)
class Search:
    """Pictures are duplicates that differ in at most `bits` and have at least `likeness`; or in at
    most `doubtful` bits, and have the likeness `sure` or, where a model is asked, the `cosine`.
    """

    bits: int = 44
    likeness: float = 0.9
    doubtful: int = 80
    sure: float = 0.985
    cosine: float = 0.98

    def __post_init__(self):
        if not 0 <= self.bits <= self.doubtful <= SIDE * SIDE:
            raise ValueError(
                f"expected 0 <= bits <= doubtful <= {SIDE * SIDE}, got {self.bits} and "
                f"{self.doubtful}"
            )
        for name in ("likeness", "sure", "cosine"):
            if not -1 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it lies in [-1, 1]")


@dataclass(frozen=True)
class Prints:
    """What N pictures are compared by.

    hashes: uint64 [N, 10, 4]. thumbs: uint8 [N, 10, 16·16·3]. embeddings: float32 [N, D], of a
    model, where there is one.
    """

    hashes: np.ndarray
    thumbs: np.ndarray
    embeddings: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.hashes)


@dataclass(frozen=True)
class Match:
    """Picture `ours` is near picture `other` of another set. cosine: where it was asked for."""

    ours: int
    other: int
    bits: int
    likeness: float
    cosine: float | None = None


def prints(pictures: Sequence[np.ndarray], model: PaliGemma | None = None) -> Prints:
    """pictures: uint8 RGB [H, W, 3], at least one."""
    both = [_print(picture) for picture in pictures]
    embedded = None if model is None else embeddings(model, pictures)
    return Prints(np.stack([h for h, _ in both]), np.stack([t for _, t in both]), embedded)


def joined(parts: Sequence[Prints]) -> Prints:
    """The prints of several lots of pictures as those of one."""
    embedded = [p.embeddings for p in parts if p.embeddings is not None]
    return Prints(
        np.concatenate([p.hashes for p in parts]),
        np.concatenate([p.thumbs for p in parts]),
        np.concatenate(embedded) if embedded else None,
    )


def _print(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import imagehash

    whole = Image.fromarray(picture)
    views = [whole, *_crops(whole)]
    bits = [imagehash.phash(view, hash_size=SIDE).hash.ravel() for view in views]
    thumbs = [
        np.asarray(view.resize((THUMB, THUMB), Image.Resampling.BOX)).ravel() for view in views
    ]
    return np.packbits(np.stack(bits), axis=1).view(np.uint64), np.stack(thumbs)


def _crops(whole: Image.Image) -> list[Image.Image]:
    dx, dy = whole.width * CROP, whole.height * CROP
    crops = []
    for x in (0, 0.5, 1):
        for y in (0, 0.5, 1):
            left, top = round(x * dx), round(y * dy)
            right, bottom = round(whole.width - dx + x * dx), round(whole.height - dy + y * dy)
            crops.append(whole.crop((left, top, max(right, left + 1), max(bottom, top + 1))))
    return crops


def distances(ours: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Differing bits, int [N, M], of hashes uint64 [N, 10, 4] and [M, 10, 4]."""
    found = np.full((len(ours), len(others)), SIDE * SIDE)
    for a, b in ((ours[:, :1], others), (ours, others[:, :1])):
        for i in range(a.shape[1]):
            for j in range(b.shape[1]):
                differing = np.zeros_like(found)
                for word in range(WORDS):
                    differing += np.bitwise_count(a[:, i, word, None] ^ b[None, :, j, word])
                np.minimum(found, differing, out=found)
    return found


def likeness(ours: np.ndarray, others: np.ndarray) -> float:
    """Of two pictures' thumbnails, uint8 [10, 768] each: in [-1, 1]; flat ones are like nothing."""
    a, b = _centred_thumbs(ours), _centred_thumbs(others)
    return float(max((a[:1] @ b.T).max(), (a @ b[:1].T).max()))


def _centred_thumbs(thumbs: np.ndarray) -> np.ndarray:
    colours = thumbs.reshape(len(thumbs), -1, 3).astype(np.float32)
    return _unit((colours - colours.mean(1, keepdims=True)).reshape(len(thumbs), -1))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-6)


@torch.no_grad()
def embeddings(model: PaliGemma, pictures: Iterable[np.ndarray]) -> np.ndarray:
    """The image encoder's mean over patches, float32 [N, D], of uint8 RGB [H, W, 3] each."""
    size, device = model.config.resolution, next(model.parameters()).device
    fitted = [prepare(picture, size, "tf") for picture in pictures]
    found = []
    for first in range(0, len(fitted), BATCH):
        batch = torch.from_numpy(np.stack(fitted[first : first + BATCH])).permute(0, 3, 1, 2)
        wide = batch.to(device).float() / 127.5 - 1
        found.append(model.vision(wide).mean(1).float().cpu().numpy())
    return np.concatenate(found)


def matches(ours: Prints, others: Prints, search: Search) -> list[Match]:
    """For each picture of `ours` that is near some of `others`, the one that it is most like.

    Embeddings are compared around the mean of `others`, without which any two pictures seem alike.
    """
    found = []
    for first in range(0, len(ours), CHUNK):
        bits = distances(ours.hashes[first : first + CHUNK], others.hashes)
        best: dict[int, Match] = {}
        for row, j in np.argwhere(bits <= search.doubtful).tolist():
            match = _compared(ours, others, first + row, j, int(bits[row, j]))
            known = best.get(row)
            if _near(match, search) and (known is None or match.likeness > known.likeness):
                best[row] = match
        found += [best[row] for row in sorted(best)]
    return found


def _compared(ours: Prints, others: Prints, i: int, j: int, bits: int) -> Match:
    cosine = None
    if ours.embeddings is not None and others.embeddings is not None:
        mean = others.embeddings.mean(0)
        a, b = _unit(ours.embeddings[i] - mean), _unit(others.embeddings[j] - mean)
        cosine = float(a @ b)
    return Match(i, j, bits, likeness(ours.thumbs[i], others.thumbs[j]), cosine)


def _near(match: Match, search: Search) -> bool:
    if match.bits <= search.bits and match.likeness >= search.likeness:
        return True
    sure = match.likeness >= search.sure
    return sure or (match.cosine is not None and match.cosine >= search.cosine)


def groups(ours: Prints, search: Search) -> list[int]:
    """For each picture the number of the first of its group: those near it, near these, and so on.

    Without embeddings.
    """
    parent = list(range(len(ours)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    plain = Prints(ours.hashes, ours.thumbs)
    for first in range(0, len(ours), CHUNK):
        bits = distances(ours.hashes[first : first + CHUNK], ours.hashes)
        for row, j in np.argwhere(bits <= search.doubtful).tolist():
            i = first + row
            if j < i and _near(_compared(plain, plain, i, j, int(bits[row, j])), search):
                a, b = sorted((root(i), root(j)))
                parent[b] = a
    return [root(i) for i in range(len(ours))]
