"""Masks as 16 codes and back: the VQ-VAE behind PaliGemma's `<seg>` tokens.

    mask 64×64 ─ 4 × (conv, stride 2) ─ 2 residual blocks ─ 1×1 ─→ 4×4 vectors ─ nearest codes ─→
    codes 4×4 ─ their vectors ─ 1×1 ─ 2 residual blocks ─ 4 × (transposed conv, stride 2) ─→ mask

The architecture and the training are those of "All in Tokens" (Ning et al., arXiv 2301.02229), the
weights that PaliGemma was trained with are `vae-oid.npz` in big_vision; `load_codec` reads them,
and others, which `backbone.mask_codec_training` makes. A mask is the part of a picture's mask
within a thing's box, stretched to 64 × 64: `cut` and `paste`.

B batch, D width of a code's vector, K codes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from backbone.detections import Box
from backbone.weights import Shape, file_weights, load_tensors, load_weights

MASK_SIZE = 64
GRID = 4


@dataclass(frozen=True)
class MaskCodecConfig:
    """codes: K. code_width: D. widths: channels after each halving of the mask, and back.

    The defaults are those of `vae-oid.npz`.
    """

    codes: int = 128
    code_width: int = 512
    widths: tuple[int, int, int, int] = (16, 32, 64, 128)
    residual_blocks: int = 2


# Learns simple shapes in a minute of one core, see `mask_codec_training.train`.
SMALL_MASK_CODEC = MaskCodecConfig(code_width=32, widths=(8, 16, 32, 64), residual_blocks=1)


class MaskCodec(nn.Module):
    """Encodes and decodes masks; `codebook` float [K, D] holds a vector for each code.

    The codebook is a buffer: it follows the encoder by running averages, not by gradients.
    """

    codebook: Tensor

    def __init__(self, config: MaskCodecConfig | None = None):
        super().__init__()
        self.config = config = config or MaskCodecConfig()
        self.encoder = _encoder(config)
        self.decoder = _decoder(config)
        self.register_buffer("codebook", torch.randn(config.codes, config.code_width))

    def features(self, masks: Tensor) -> Tensor:
        """What the encoder says of masks, before it is rounded to codes.

        masks: bool, or float in [0, 1], [B, 64, 64]. Returns float [B, 16, D], row by row.
        Raises ValueError for another shape.
        """
        if masks.ndim != 3 or masks.shape[1:] != (MASK_SIZE, MASK_SIZE):
            raise ValueError(f"expected masks [B, 64, 64], got {list(masks.shape)}; use `cut`")
        x = self.encoder(signed(masks).to(self.codebook.dtype).unsqueeze(1))  # [B, D, 4, 4]
        return x.flatten(2).transpose(1, 2)

    def nearest(self, features: Tensor) -> Tensor:
        """The code whose vector is closest: [..., D] to int64 [...]."""
        return (self.codebook.square().sum(1) - 2 * features @ self.codebook.T).argmin(-1)

    def encode(self, masks: Tensor) -> Tensor:
        """Masks (as for `features`) to codes int64 [B, 16]."""
        return self.nearest(self.features(masks))

    def draw(self, vectors: Tensor) -> Tensor:
        """Vectors [B, 16, D] to masks float [B, 64, 64]: about 1 inside and -1 outside, unbounded.

        The outline is where they cross 0.
        """
        grid = vectors.transpose(1, 2).unflatten(2, (GRID, GRID))  # [B, D, 4, 4]
        return self.decoder(grid).squeeze(1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes int [B, 16] to the share of mask at each pixel, float [B, 64, 64] in [0, 1].

        Raises ValueError for another shape, or for codes that the codebook does not have.
        """
        count = self.config.codes
        if codes.ndim != 2 or codes.shape[1] != GRID * GRID:
            raise ValueError(f"expected codes [B, 16], got {list(codes.shape)}")
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < count:
            low, high = int(codes.min()), int(codes.max())
            raise ValueError(f"codes are numbered 0 to {count - 1}, got {low} to {high}")
        return (self.draw(self.codebook[codes]) * 0.5 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def outline(self, codes: np.ndarray) -> np.ndarray:
        """Codes int [B, 16] to float32 [B, 64, 64], above 0 inside the mask: what masks are scored
        by (big_vision's evaluator)."""
        vectors = self.codebook[torch.from_numpy(codes).to(self.codebook.device)]
        return self.draw(vectors).float().cpu().numpy()


def signed(masks: Tensor) -> Tensor:
    """[0, 1] or bool to [-1, 1], the range that encoder and decoder work in."""
    return 2 * masks.float() - 1


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


# The positions of layers in these two are their names in vae-oid.npz.


def _encoder(config: MaskCodecConfig) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in zip((1, *config.widths), config.widths, strict=False):
        layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
    layers += [_Residual(config.widths[-1]) for _ in range(config.residual_blocks)]
    return nn.Sequential(*layers, nn.Conv2d(config.widths[-1], config.code_width, 1))


def _decoder(config: MaskCodecConfig) -> nn.Sequential:
    widths = config.widths[::-1]
    layers: list[nn.Module] = [nn.Conv2d(config.code_width, widths[0], 1), nn.ReLU()]
    layers += [_Residual(widths[0]) for _ in range(config.residual_blocks)]
    for before, after in zip((widths[0], *widths), widths, strict=False):
        layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 1))


# Weights


CODEC = "mask_codec.safetensors"  # of this package, beside a PaliGemma's weights
VAE_OID = "vae-oid.npz"  # big_vision's


def codec_beside(weights: Path | str) -> Path | None:
    """The mask codec in the folder of a PaliGemma, given by that folder or a file in it.

    Ours where there are two.
    """
    folder = Path(weights) if Path(weights).is_dir() else Path(weights).parent
    return next((p for p in (folder / CODEC, folder / VAE_OID) if p.is_file()), None)


def load_codec(path: Path | str) -> MaskCodec:
    """A mask codec, float32: big_vision's .npz, or a safetensors file of this package's.

    The shapes in a safetensors file tell the codec's sizes. Raises FileNotFoundError if there is no
    such file, ValueError if it is not whole, or holds no codec or more than one.
    """
    path = Path(path)
    if path.suffix == ".npz":
        return load_vae_oid(path).eval()
    if not path.is_file():
        raise FileNotFoundError(f"no mask codec at {path}; expected {CODEC} or {VAE_OID}")
    codec = MaskCodec(_told(file_weights(path).shapes, path))
    load_weights(codec, path)
    return codec.eval()


def _told(shapes: Mapping[str, Shape], path: Path) -> MaskCodecConfig:
    """The sizes that a codec's shapes tell."""
    halvings = [shapes.get(f"encoder.{i}.weight", ()) for i in (0, 2, 4, 6)]
    codebook = shapes.get("codebook", ())
    if len(codebook) != 2 or not all(halvings):
        raise ValueError(f"{path} holds no mask codec; expected {CODEC} or {VAE_OID}")
    a, b, c, d = (shape[0] for shape in halvings)
    blocks = sum(re.fullmatch(r"encoder\.\d+\.net\.0\.weight", name) is not None for name in shapes)
    return MaskCodecConfig(*codebook, widths=(a, b, c, d), residual_blocks=blocks)


CODEBOOK_KEY = "_vq_vae._embedding"
TRAINING_KEYS = ("_vq_vae._ema_cluster_size", "_vq_vae._ema_w")  # averages of a finished training


def load_vae_oid(path: Path | str) -> MaskCodec:
    """The mask codec of PaliGemma, float32, from big_vision's `vae-oid.npz`.

    Raises FileNotFoundError if there is no such file, ValueError if it is not an .npz, or a key is
    missing, extra or of another shape; the message lists all of them.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no mask codec at {path}; expected big_vision's vae-oid.npz")
    try:
        with ZipFile(path):  # np.load takes other files too
            arrays = dict(np.load(path, allow_pickle=False))
    except (BadZipFile, ValueError) as error:
        raise ValueError(f"{path} is not a whole .npz file ({error}); copy it again") from error
    codec = MaskCodec()
    load_tensors(codec, _renamed(arrays), source=str(path))
    return codec


def _renamed(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    kept = {key: array for key, array in arrays.items() if key not in TRAINING_KEYS}
    return {
        "codebook" if key == CODEBOOK_KEY else key: torch.from_numpy(array.astype(np.float32))
        for key, array in kept.items()
    }


# Between a picture and the 64 × 64 pixels of a box


def cut(mask: np.ndarray, box: Box) -> np.ndarray:
    """The part of a picture's mask within `box`, stretched to 64 × 64, as big_vision makes targets.

    Edges are rounded to pixels, at least one pixel is kept, and a box that leaves the picture is
    cut at its edge.

    Args:
        mask: bool [H, W].

    Returns float32 [64, 64] in [0, 1], bilinear with antialiasing.
    """
    if mask.ndim != 2 or mask.dtype != np.bool_ or 0 in mask.shape:
        raise ValueError(f"expected a bool mask [H, W], got {mask.dtype} {list(mask.shape)}")
    height, width = mask.shape
    x0, y0, x1, y1 = box.pixels((height, width))
    top, bottom = _span(y0, y1, height)
    left, right = _span(x0, x1, width)
    return _resize(mask[top:bottom, left:right].astype(np.float32), MASK_SIZE, MASK_SIZE)


def paste(
    mask: np.ndarray, box: Box, image_size: tuple[int, int], threshold: float = 0.5
) -> np.ndarray:
    """The mask of a whole picture: `mask` stretched into `box`, False outside.

    As big_vision's evaluator does it: edges in pixels are truncated, the mask is resized bilinearly
    and compared with a threshold afterwards. It does so with values in [-1, 1]: for its exact
    outline give `MaskCodec.draw`'s and threshold 0.

    Args:
        mask: float [64, 64] (any size will do), `MaskCodec.decode`'s for a threshold of 0.5.
        image_size: (height, width) in pixels.

    Returns bool [height, width], True where the mask is above the threshold. All False where the
    box has no whole pixel.
    """
    if mask.ndim != 2:
        raise ValueError(f"expected one mask [64, 64], got shape {list(mask.shape)}")
    height, width = image_size
    left, top, right, bottom = (int(edge) for edge in box.pixels(image_size))
    whole = np.zeros((height, width), dtype=bool)
    if right <= left or bottom <= top:
        return whole
    inside = _resize(mask.astype(np.float32), bottom - top, right - left) > threshold
    y0, y1 = _within(top, bottom, height)
    x0, x1 = _within(left, right, width)
    whole[y0:y1, x0:x1] = inside[y0 - top : y1 - top, x0 - left : x1 - left]
    return whole


def _span(low: float, high: float, size: int) -> tuple[int, int]:
    start = min(max(round(low), 0), size - 1)
    return start, max(min(round(high), size), start + 1)


def _within(low: int, high: int, size: int) -> tuple[int, int]:
    """The part of [low, high) that lies in [0, size), empty if none does."""
    start = min(max(low, 0), size)
    return start, max(min(high, size), start)


def _resize(values: np.ndarray, height: int, width: int) -> np.ndarray:
    picture = Image.fromarray(np.ascontiguousarray(values))  # mode F
    return np.array(picture.resize((width, height), Image.Resampling.BILINEAR))
