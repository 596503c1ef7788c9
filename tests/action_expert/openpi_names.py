"""openpi's JAX parameters, π0's and π0.5's, under our names.

Each array is read on its own, so gradients stored under the same names can be read too.
openpi stacks layers in the first dimension and writes matrices as [in, out], ours are [out, in].
"""

from collections.abc import Iterator

import torch
from torch import Tensor

IMAGE = "PaliGemma/img/Transformer/encoderblock/"
LANGUAGE = "PaliGemma/llm/layers/"
# suffix of openpi's name: the 2B model has none, the action expert has _1
STACKS = {"": "backbone.language", "_1": "expert.gemma"}


def our_tensors(params: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x for key, value in params.items() for name, x in _ours(key, value)}


def _ours(key: str, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    if key.startswith(IMAGE):
        for i, layer in enumerate(x):
            yield _image_layer(key.removeprefix(IMAGE), layer, f"backbone.vision.blocks.{i}")
    elif key.startswith(LANGUAGE):
        for i, layer in enumerate(x):
            yield from _language_layer(key.removeprefix(LANGUAGE), layer, i)
    elif key in SINGLE:
        name, change = SINGLE[key]
        yield name, change(x)
    else:  # the expert's own linear layers, at the top level
        module, kind = key.split("/")
        yield (
            f"expert.{module}.{'weight' if kind == 'kernel' else 'bias'}",
            x.T if x.ndim > 1 else x,
        )


def _same(x: Tensor) -> Tensor:
    return x


SINGLE = {
    "PaliGemma/img/embedding/kernel": (
        "backbone.vision.embedding.weight",
        lambda x: x.permute(3, 2, 0, 1),
    ),
    "PaliGemma/img/embedding/bias": ("backbone.vision.embedding.bias", _same),
    "PaliGemma/img/pos_embedding": ("backbone.vision.embedding.position", lambda x: x[0]),
    "PaliGemma/img/Transformer/encoder_norm/scale": ("backbone.vision.norm.weight", _same),
    "PaliGemma/img/Transformer/encoder_norm/bias": ("backbone.vision.norm.bias", _same),
    "PaliGemma/img/head/kernel": ("backbone.projector.weight", lambda x: x.T),
    "PaliGemma/img/head/bias": ("backbone.projector.bias", _same),
    "PaliGemma/llm/embedder/input_embedding": ("backbone.embedding.weight", _same),
    "PaliGemma/llm/final_norm/scale": ("backbone.language.norm.weight", _same),
    "PaliGemma/llm/final_norm_1/scale": ("expert.gemma.norm.weight", _same),
    "PaliGemma/llm/final_norm_1/Dense_0/kernel": (
        "expert.gemma.norm.modulation.weight",
        lambda x: x.T,
    ),
    "PaliGemma/llm/final_norm_1/Dense_0/bias": ("expert.gemma.norm.modulation.bias", _same),
}

IMAGE_MODULES = {
    "LayerNorm_0": "attention_norm",
    "LayerNorm_1": "mlp_norm",
    "MlpBlock_0/Dense_0": "fc1",
    "MlpBlock_0/Dense_1": "fc2",
    "MultiHeadDotProductAttention_0/query": "q_proj",
    "MultiHeadDotProductAttention_0/key": "k_proj",
    "MultiHeadDotProductAttention_0/value": "v_proj",
    "MultiHeadDotProductAttention_0/out": "out_proj",
}


def _image_layer(key: str, x: Tensor, block: str) -> tuple[str, Tensor]:
    module, kind = key.rsplit("/", 1)
    name = f"{block}.{IMAGE_MODULES[module]}"
    if kind != "kernel":
        return f"{name}.{'bias' if kind == 'bias' else 'weight'}", x.flatten()
    x = x.flatten(0, 1) if module.endswith("/out") else x.flatten(1)  # join heads and head size
    return f"{name}.weight", x.T


def _language_layer(key: str, x: Tensor, i: int) -> Iterator[tuple[str, Tensor]]:
    suffix = "_1" if "_1/" in key else ""
    block = f"{STACKS[suffix]}.blocks.{i}"
    match key.replace("_1/", "/"):
        case "attn/q_einsum/w":  # [heads, D, H]
            yield f"{block}.attention.q_proj.weight", x.transpose(1, 2).flatten(0, 1)
        case "attn/kv_einsum/w":  # [2, kv heads, D, H]
            yield f"{block}.attention.k_proj.weight", x[0].transpose(1, 2).flatten(0, 1)
            yield f"{block}.attention.v_proj.weight", x[1].transpose(1, 2).flatten(0, 1)
        case "attn/attn_vec_einsum/w":  # [heads, H, D]
            yield f"{block}.attention.o_proj.weight", x.flatten(0, 1).T
        case "mlp/gating_einsum":  # [2, D, mlp]
            yield f"{block}.mlp.gate_proj.weight", x[0].T
            yield f"{block}.mlp.up_proj.weight", x[1].T
        case "mlp/linear":
            yield f"{block}.mlp.down_proj.weight", x.T
        case "pre_attention_norm/scale":
            yield f"{block}.attention_norm.weight", x
        case "pre_ffw_norm/scale":
            yield f"{block}.mlp_norm.weight", x
        case "pre_attention_norm/Dense_0/kernel":
            yield f"{block}.attention_norm.modulation.weight", x.T
        case "pre_attention_norm/Dense_0/bias":
            yield f"{block}.attention_norm.modulation.bias", x
        case "pre_ffw_norm/Dense_0/kernel":
            yield f"{block}.mlp_norm.modulation.weight", x.T
        case "pre_ffw_norm/Dense_0/bias":
            yield f"{block}.mlp_norm.modulation.bias", x
        case _:
            raise ValueError(f"no name of ours for {key}")


def squared_norm(tensors: dict[str, Tensor]) -> Tensor:
    return torch.stack([x.double().square().sum() for x in tensors.values()]).sum()
