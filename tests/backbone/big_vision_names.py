"""big_vision's PaliGemma at toy size: its stored parameters under our names."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backbone.gemma import GemmaConfig
from backbone.numerics import BIG_VISION
from backbone.paligemma import PaliGemma, PaliGemmaConfig
from backbone.siglip import SigLIPConfig
from backbone.weights import load_tensors

GOLDEN = Path(__file__).parents[1] / "golden"


def read_arrays(path: Path) -> dict[str, Tensor]:
    with np.load(path) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def read_config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def load(folder: Path) -> PaliGemma:
    """The model of a golden folder, float32."""
    model = PaliGemma(read_sizes(folder))
    load_tensors(model, renamed(read_parameters(folder), model.config), source=str(folder))
    return model.eval()


def read_parameters(folder: Path) -> dict[str, Tensor]:
    """big_vision's own names and shapes, without `params/`."""
    stored = read_arrays(folder / "params_f32.npz")
    return {key.removeprefix("params/"): value for key, value in stored.items()}


def read_sizes(folder: Path) -> PaliGemmaConfig:
    config = read_config(folder)
    img, llm = config["img"], config["llm"]
    return PaliGemmaConfig(
        SigLIPConfig(
            width=img["width"],
            depth=img["depth"],
            mlp=img["mlp_dim"],
            heads=img["num_heads"],
            patch=img["patch_size"],
            resolution=img["image_size"],
        ),
        GemmaConfig(
            width=llm["width"],
            depth=llm["depth"],
            mlp=llm["mlp_dim"],
            heads=llm["num_heads"],
            kv_heads=llm["num_kv_heads"],
            head_dim=llm["head_dim"],
            post_norms=llm.get("post_norms", False),
            attention_cap=llm.get("attn_logits_softcap"),
            logit_cap=llm.get("final_logits_softcap"),
        ),
        vocab=llm["vocab_size"],
        numerics=BIG_VISION,
    )


def renamed(p: dict[str, Tensor], sizes: PaliGemmaConfig) -> dict[str, Tensor]:
    """Our names and shapes; differentiable."""
    block, llm = "img/Transformer/encoderblock", "llm/layers"
    named = {
        "vision.embedding.weight": p["img/embedding/kernel"].permute(3, 2, 0, 1),
        "vision.embedding.bias": p["img/embedding/bias"],
        "vision.embedding.position": p["img/pos_embedding"][0],
        "vision.norm.weight": p["img/Transformer/encoder_norm/scale"],
        "vision.norm.bias": p["img/Transformer/encoder_norm/bias"],
        "projector.weight": p["img/head/kernel"].T,
        "projector.bias": p["img/head/bias"],
        "embedding.weight": p["llm/embedder/input_embedding"],
        "language.norm.weight": p["llm/final_norm/scale"],
    }
    width = sizes.vision.width
    for i in range(sizes.vision.depth):
        ours = f"vision.blocks.{i}"
        for norm, theirs in (("attention_norm", "LayerNorm_0"), ("mlp_norm", "LayerNorm_1")):
            named[f"{ours}.{norm}.weight"] = p[f"{block}/{theirs}/scale"][i]
            named[f"{ours}.{norm}.bias"] = p[f"{block}/{theirs}/bias"][i]
        for layer, theirs in (("fc1", "Dense_0"), ("fc2", "Dense_1")):
            named[f"{ours}.{layer}.weight"] = p[f"{block}/MlpBlock_0/{theirs}/kernel"][i].T
            named[f"{ours}.{layer}.bias"] = p[f"{block}/MlpBlock_0/{theirs}/bias"][i]
        attention = f"{block}/MultiHeadDotProductAttention_0"
        for x, theirs in (("q", "query"), ("k", "key"), ("v", "value"), ("out", "out")):
            kernel = p[f"{attention}/{theirs}/kernel"][i].reshape(width, width)
            named[f"{ours}.{x}_proj.weight"] = kernel.T
            named[f"{ours}.{x}_proj.bias"] = p[f"{attention}/{theirs}/bias"][i].flatten()
    norms = {"pre_attention_norm": "attention_norm", "pre_ffw_norm": "mlp_norm"}
    if sizes.language.post_norms:
        norms |= {"post_attention_norm": "post_attention_norm", "post_ffw_norm": "post_mlp_norm"}
    for i in range(sizes.language.depth):
        ours = f"language.blocks.{i}"
        for theirs, norm in norms.items():
            named[f"{ours}.{norm}.weight"] = p[f"{llm}/{theirs}/scale"][i]
        k, v = p[f"{llm}/attn/kv_einsum/w"][i]
        for x, kernel in (("q", p[f"{llm}/attn/q_einsum/w"][i]), ("k", k), ("v", v)):
            named[f"{ours}.attention.{x}_proj.weight"] = kernel.transpose(1, 2).flatten(0, 1)
        out = p[f"{llm}/attn/attn_vec_einsum/w"][i]
        named[f"{ours}.attention.o_proj.weight"] = out.flatten(0, 1).T
        gate, up = p[f"{llm}/mlp/gating_einsum"][i]
        named[f"{ours}.mlp.gate_proj.weight"] = gate.T
        named[f"{ours}.mlp.up_proj.weight"] = up.T
        named[f"{ours}.mlp.down_proj.weight"] = p[f"{llm}/mlp/linear"][i].T
    return {key: value.contiguous() for key, value in named.items()}
