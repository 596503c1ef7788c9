"""Loading holds the weights and little more, whatever the file's dtype and layout."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from backbone.gemma import GemmaConfig
from backbone.paligemma import PaliGemma, PaliGemmaConfig
from backbone.pretrained import save_config
from backbone.siglip import SigLIPConfig
from backbone.sources.layouts import PaliGemmaDepths, huggingface_names

ROOT = Path(__file__).parents[2]
CONFIG = PaliGemmaConfig(  # 104 M parameters: 209 MB in bfloat16
    SigLIPConfig(width=256, depth=4, mlp=1024, heads=4, patch=14, resolution=224),
    GemmaConfig(width=768, depth=8, mlp=3072, heads=6, head_dim=128),
    vocab=48_000,
)


def random_weights(dtype):
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        parameters = dict(PaliGemma(CONFIG).named_parameters())
    return {
        name: torch.randn(p.shape, generator=generator).to(dtype) for name, p in parameters.items()
    }


def huggingface(folder: Path, dtype) -> Path:
    folder.mkdir()
    names = huggingface_names(PaliGemmaDepths(4, 8))
    save_file({names[k]: t for k, t in random_weights(dtype).items()}, folder / "model.safetensors")
    config = {
        "model_type": "paligemma",
        "text_config": {"model_type": "gemma", "head_dim": 128},
        "vision_config": {"num_attention_heads": 4},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def ours(folder: Path, dtype) -> Path:
    folder.mkdir()
    save_file(random_weights(dtype), folder / "model.safetensors")
    save_config(CONFIG, folder)
    return folder


def big_vision(path: Path, dtype) -> Path:
    assert dtype == torch.float32
    rng, (v, g) = np.random.default_rng(0), (CONFIG.vision, CONFIG.language)
    heads, head = v.heads, v.width // v.heads
    attention = "MultiHeadDotProductAttention_0/"
    block = {
        **{f"LayerNorm_{i}/{part}": (v.width,) for i in (0, 1) for part in ("scale", "bias")},
        **{f"{attention}{x}/kernel": (v.width, heads, head) for x in ("query", "key", "value")},
        **{f"{attention}{x}/bias": (heads, head) for x in ("query", "key", "value")},
        f"{attention}out/kernel": (heads, head, v.width),
        f"{attention}out/bias": (v.width,),
        "MlpBlock_0/Dense_0/kernel": (v.width, v.mlp),
        "MlpBlock_0/Dense_0/bias": (v.mlp,),
        "MlpBlock_0/Dense_1/kernel": (v.mlp, v.width),
        "MlpBlock_0/Dense_1/bias": (v.width,),
    }
    layer = {
        "attn/q_einsum/w": (g.heads, g.width, g.head_dim),
        "attn/kv_einsum/w": (2, 1, g.width, g.head_dim),
        "attn/attn_vec_einsum/w": (g.heads, g.head_dim, g.width),
        "mlp/gating_einsum": (2, g.width, g.mlp),
        "mlp/linear": (g.mlp, g.width),
        "pre_attention_norm/scale": (g.width,),
        "pre_ffw_norm/scale": (g.width,),
    }
    shapes = {
        "img/embedding/kernel": (14, 14, 3, v.width),
        "img/embedding/bias": (v.width,),
        "img/pos_embedding": (1, v.tokens, v.width),
        "img/Transformer/encoder_norm/scale": (v.width,),
        "img/Transformer/encoder_norm/bias": (v.width,),
        "img/head/kernel": (v.width, g.width),
        "img/head/bias": (g.width,),
        "llm/embedder/input_embedding": (CONFIG.vocab, g.width),
        "llm/final_norm/scale": (g.width,),
        **{f"img/Transformer/encoderblock/{k}": (v.depth, *s) for k, s in block.items()},
        **{f"llm/layers/{k}": (g.depth, *s) for k, s in layer.items()},
    }
    arrays = {f"params/{k}": rng.random(s, np.float32) for k, s in shapes.items()}
    np.savez(path, **arrays)  # pyright: ignore
    return path


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux")
@pytest.mark.parametrize(
    ("write", "stored", "dtype", "most"),
    [
        (huggingface, torch.bfloat16, "bfloat16", 1.15),
        (huggingface, torch.float32, "bfloat16", 1.3),
        (ours, torch.float32, "float32", 1.15),
        (big_vision, torch.float32, "bfloat16", 1.3),
    ],
)
def test_peak_memory_is_the_weights_and_little_more(tmp_path, write, stored, dtype, most):
    path = write(tmp_path / "weights.npz", stored)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("loading.py")), str(path), dtype]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    print(told)
    assert told["bytes"] > 2e8
    assert told["peak"] > 0.9 * told["bytes"]  # or it was not measured
    assert told["peak"] < most * told["bytes"]
