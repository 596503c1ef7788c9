"""A SigLIP and a Gemma put together: towers as published, projection zero, new rows drawn."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from published import GOLDEN, apart, big_vision_arrays, with_config
from safetensors.torch import load_file, save_file

from backbone.numerics import BIG_VISION
from backbone.stage0 import from_parts

VOCAB = 120 + 1024 + 128
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "patch_size": 14,
    "image_size": 56,
}
TEXT = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 16}


@pytest.fixture
def siglip(tmp_path):
    """As `SiglipModel` saves it: the tower that is wanted, and another."""
    folder = tmp_path / "siglip"
    folder.mkdir()
    config = {"model_type": "siglip", "vision_config": VISION}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(GOLDEN / "siglip_hf/model.safetensors")
    text = {"text_model.head.weight": torch.zeros(2, 2), "logit_scale": torch.zeros(1)}
    save_file({**tensors, **text}, folder / "model.safetensors")
    return folder


@pytest.fixture
def gemma(tmp_path):
    folder = tmp_path / "gemma"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma", **TEXT}))
    shutil.copy(GOLDEN / "gemma_hf/model.safetensors", folder)
    return folder


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_hugging_face_parts(siglip, gemma, caplog):
    caplog.set_level(logging.INFO)
    model = from_parts(siglip, gemma, drawn(), vocab=VOCAB)
    eyes, words = load_file(siglip / "model.safetensors"), load_file(gemma / "model.safetensors")
    with torch.no_grad():
        inputs = np.load(GOLDEN / "siglip_hf/inputs.npz")["images"]
        images = torch.from_numpy(inputs).permute(0, 3, 1, 2) / 127.5 - 1
        stored = np.load(GOLDEN / "siglip_hf/outputs.npz")["last_hidden_state"]
        torch.testing.assert_close(
            model.vision(images), torch.from_numpy(stored), atol=1e-5, rtol=1e-4
        )
        assert not model.embed_images(images[:, None]).any()  # the projection is zero
    rows = model.embedding.weight.detach()
    assert torch.equal(rows[:120], words["model.embed_tokens.weight"])
    new = rows[120:]
    assert new.shape == (1152, 64)
    assert abs(new.std().item() - 0.02) < 2e-4
    assert abs(new.mean().item()) < 2e-4
    again = from_parts(siglip, gemma, drawn(), vocab=VOCAB)
    other = from_parts(siglip, gemma, drawn(1), vocab=VOCAB)
    assert torch.equal(again.embedding.weight, rows)
    assert not torch.equal(other.embedding.weight[120:], new)
    name = "model.layers.2.mlp.down_proj.weight"
    assert torch.equal(model.language.blocks[2].mlp.down_proj.weight, words[name])  # pyright: ignore
    name = "vision_model.encoder.layers.1.mlp.fc1.bias"
    assert torch.equal(model.vision.blocks[1].fc1.bias, eyes[name])  # pyright: ignore
    assert model.config.numerics == BIG_VISION
    left_out = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert any("text_model.head.weight left out: the text tower" in line for line in left_out)
    assert any("vision_model.head.probe left out: the pooling head" in line for line in left_out)
    assert any("logit_scale left out: of the contrastive loss" in line for line in left_out)


def test_padding_rows_of_a_gemma_are_left_out(siglip, gemma):
    tensors = load_file(gemma / "model.safetensors")
    rows = torch.cat([tensors["model.embed_tokens.weight"], torch.full((8, 64), 9.0)])
    save_file({**tensors, "model.embed_tokens.weight": rows}, gemma / "model.safetensors")
    model = from_parts(siglip, gemma, drawn(), vocab=VOCAB)
    assert model.embedding.weight.shape[0] == VOCAB
    assert not (model.embedding.weight == 9).any()


@pytest.mark.parametrize("form", ["stacked", "apart"])
def test_big_vision_parts_are_those_of_the_whole_file(tmp_path, form):
    arrays = big_vision_arrays()
    eyes = {k: v for k, v in arrays.items() if "/img/" in k and "/img/head/" not in k}
    words = {k.replace("/llm/", "/"): v for k, v in arrays.items() if "/llm/" in k}
    if form == "apart":
        eyes = apart(eyes)
        words = {
            k.replace("params/", "transformer/").replace("mlp/linear", "mlp/linear/w"): v
            for k, v in apart(words, "layer_{i}").items()
        }
    unused = {"params/txt/embedding": np.zeros(2), "params/img/MAPHead_0/probe": np.zeros(2)}
    np.savez(tmp_path / "siglip.npz", **eyes, **unused, **{"params/t": np.zeros(1)})  # pyright: ignore
    np.savez(tmp_path / "gemma.npz", **words)  # pyright: ignore
    vocab = 160 + 1152
    model = from_parts(tmp_path / "siglip.npz", tmp_path / "gemma.npz", drawn(), vocab=vocab)
    found = model.vision.blocks[1].fc2.weight  # pyright: ignore
    key = "params/img/Transformer/encoderblock/MlpBlock_0/Dense_1/kernel"
    assert torch.equal(found, torch.from_numpy(arrays[key][1].T))  # pyright: ignore
    found = model.language.blocks[2].mlp.down_proj.weight  # pyright: ignore
    assert torch.equal(found, torch.from_numpy(arrays["params/llm/layers/mlp/linear"][2].T))  # pyright: ignore


def test_wrong_parts_are_named(siglip, gemma, tmp_path):
    with pytest.raises(ValueError, match="model_type 'gemma', expected 'siglip' or 'siglip_vis"):
        from_parts(gemma, gemma, drawn(), vocab=VOCAB)
    with pytest.raises(ValueError, match="model_type 'siglip', expected 'gemma' or 'gemma2'"):
        from_parts(siglip, siglip, drawn(), vocab=VOCAB)
    with pytest.raises(ValueError, match="has 120 rows, expected 256000 of text"):
        from_parts(siglip, gemma, drawn())
    with pytest.raises(FileNotFoundError, match="nothing at"):
        from_parts(siglip, tmp_path / "nowhere", drawn(), vocab=VOCAB)
    with_config(gemma, intermediate_size=128)
    with pytest.raises(ValueError, match="intermediate_size is 128, the weights' is 96"):
        from_parts(siglip, gemma, drawn(), vocab=VOCAB)
    save_file({"strange": torch.zeros(1)}, siglip / "model.safetensors")
    with pytest.raises(ValueError, match=r"is not whole; it lacks .*unknown in it: strange"):
        from_parts(siglip, gemma, drawn(), vocab=VOCAB)
