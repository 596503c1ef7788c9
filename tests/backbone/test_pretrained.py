"""A PaliGemma goes into a folder and comes back the same, or is refused."""

import json

import pytest
import torch

from backbone.initialise import in_order
from backbone.paligemma import PALIGEMMA_TINY, PaliGemma
from backbone.pretrained import load_pretrained, save_pretrained
from backbone.tokenizer import Tokenizer


@pytest.fixture
def folder(tmp_path):
    save_pretrained(PaliGemma(PALIGEMMA_TINY), Tokenizer.small(), tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_model_comes_back_bit_for_bit(tmp_path):
    model = PaliGemma(PALIGEMMA_TINY)
    save_pretrained(model, Tokenizer.small(), tmp_path)
    loaded, tokenizer = load_pretrained(tmp_path)
    assert loaded.config == model.config
    assert tokenizer.vocab_size == model.config.vocab
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_a_folder_of_another_kind_is_refused(folder):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "model_type": "gpt2"}))
    with pytest.raises(ValueError, match="model_type 'gpt2', expected 'vla-paligemma'"):
        load_pretrained(folder)


def test_numerics_of_another_version_are_named(folder):
    values = json.loads((folder / "config.json").read_text())
    values["numerics"]["round_twice"] = True
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="numerics round_twice, known here are round_rope"):
        load_pretrained(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        load_pretrained(tmp_path / "nowhere")


def test_weights_of_another_size_are_refused_with_both_shapes(folder):
    values = json.loads((folder / "config.json").read_text())
    values["language"]["mlp"] = 80
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"model \[80, 32\], file \[64, 32\]"):
        load_pretrained(folder)


def test_neighbouring_places_start_alike():
    model, tokenizer = PaliGemma(PALIGEMMA_TINY), Tokenizer.small()
    before = model.embedding.weight.detach()
    parameters = ((name, p.detach().clone()) for name, p in model.named_parameters())
    rows = dict(in_order(parameters, None, tokenizer.loc(0)))["embedding.weight"]
    locs = rows[tokenizer.loc(0) : tokenizer.loc(0) + 1024]

    def likeness(a, b):
        return torch.cosine_similarity(locs[a], locs[b], dim=0)

    assert likeness(500, 501) > 0.99
    assert likeness(500, 501) > likeness(500, 540) > likeness(500, 900)
    assert torch.equal(rows[: tokenizer.loc(0)], before[: tokenizer.loc(0)])
    assert torch.allclose(locs.norm(dim=1), locs[0].norm(), atol=1e-4)
