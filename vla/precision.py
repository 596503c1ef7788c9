"""Weights in half precision, except those that the reference kept wide."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from action_expert.adaptive import AdaptiveRMSNorm
from action_expert.wide_linear import WideLinear
from backbone.gemma import RMSNorm
from backbone.siglip import PatchEmbedding
from vla.model import Model


def cast(model: Model, dtype: torch.dtype) -> Model:
    """Round the weights of `model` to `dtype`, in place, and return it.

    With bfloat16 the model computes in it; what its `Numerics` keep in float32 stays as it is:
    norms, patch and position embedding where 1 + weight is a float32 sum, modulations, the expert's
    own projections, all of vision.
    """
    half = dtype in (torch.bfloat16, torch.float16)
    kept = {id(p) for part in _kept(model) for p in part.parameters()} if half else set()
    for parameter in model.parameters():
        if id(parameter) not in kept:
            parameter.data = parameter.data.to(dtype)
    return model


def _kept(model: Model) -> Iterator[nn.Module]:
    numerics = model.config.backbone.numerics
    if numerics.float32_vision:
        yield from (model.backbone.vision, model.backbone.projector)
    if numerics.float32_heads:
        yield from (m for m in model.expert.children() if isinstance(m, WideLinear))
    for module in model.modules():
        small = isinstance(module, RMSNorm | PatchEmbedding) and not numerics.round_norm_scale
        if small or (isinstance(module, AdaptiveRMSNorm) and numerics.float32_modulation):
            yield module
