"""Every published layout of a PaliGemma loads to the same model, or is refused with the reason."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from published import (
    GOLDEN,
    TOKENS,
    apart,
    as_bfloat16,
    big_vision_arrays,
    flat,
    huggingface_folder,
    sharded,
    today,
    with_config,
    with_tensors,
    without_vision_model,
)
from safetensors.torch import load_file, save_file

from backbone import VLM
from backbone.numerics import BIG_VISION, HUGGING_FACE
from backbone.paligemma import (
    PALIGEMMA2_3B_224,
    PALIGEMMA2_10B_224,
    PALIGEMMA2_28B_224,
    PALIGEMMA_3B_224,
    PALIGEMMA_3B_896,
    PaliGemma,
    TextBatch,
)
from backbone.pretrained import load_model, read_config
from backbone.sources.headers import npz_header
from backbone.sources.layouts import PaliGemmaDepths, huggingface_names
from backbone.tokenizer import Tokenizer

IMAGE_TOKEN = 157


def assert_same(ours: PaliGemma, theirs: PaliGemma):
    assert ours.config == theirs.config
    own = ours.state_dict()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(own[name], tensor), name


def pictures(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)[:, None] / 127.5 - 1


def assert_near(ours: torch.Tensor, theirs: np.ndarray):
    """To 5e-5 of the stored logits' size."""
    scale = float(np.sqrt((theirs**2).mean()))
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=5e-5, atol=5e-5 * scale)


@pytest.mark.parametrize("version", ["", "2"])
@pytest.mark.parametrize("change", [None, flat, today, without_vision_model])
def test_logits_of_every_generation_of_names_are_hugging_faces(tmp_path, version, change):
    folder = huggingface_folder(tmp_path / "model", version)
    model = load_model(with_tensors(folder, change) if change else folder)
    inputs = np.load(GOLDEN / f"hf_paligemma{version}/inputs.npz")
    outputs = np.load(GOLDEN / f"hf_paligemma{version}/outputs_f32.npz")
    ids, valid = inputs["right/input_ids"], inputs["right/attention_mask"] == 1
    text = ids != IMAGE_TOKEN

    def of_text(x):
        return torch.from_numpy(x[text].reshape(len(x), -1))

    batch = TextBatch(
        images=pictures(inputs["images"]),
        image_valid=torch.ones(len(ids), 1, dtype=torch.bool),
        tokens=of_text(ids),
        token_valid=of_text(valid),
        suffix=of_text(inputs["right/token_type_ids"] == 1),
    )
    with torch.no_grad():
        logits = model.logits(batch)
    assert_near(logits[batch.token_valid], outputs["right/logits"][text & valid])
    assert model.config.numerics == HUGGING_FACE


@pytest.mark.parametrize("version", ["", "2"])
def test_logits_of_big_vision_files_are_big_visions(version):
    source = GOLDEN / f"big_vision_paligemma{version}"
    config = read_config(source / "params_f32.npz")
    if version:  # its file does not tell the cap of its attention: released models have 50
        assert (config.language.attention_cap, config.language.window) == (50.0, None)
        config = replace(config, language=replace(config.language, attention_cap=5.0))
    model = load_model(source / "params_f32.npz", config=config)
    inputs, outputs = np.load(source / "inputs.npz"), np.load(source / "outputs_f32.npz")
    tokens = torch.from_numpy(inputs["text"]).long()
    batch = TextBatch(
        images=pictures(inputs["image"]),
        image_valid=torch.ones(len(tokens), 1, dtype=torch.bool),
        tokens=tokens,
        token_valid=torch.ones_like(tokens, dtype=torch.bool),
        suffix=torch.from_numpy(inputs["mask_ar"]) == 1,
    )
    with torch.no_grad():
        assert_near(model.logits(batch), outputs["text_logits"])
    assert model.config.numerics == BIG_VISION


# --- Hugging Face ---------------------------------------------------------------------------------


def test_shards_and_the_tied_head_change_nothing(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    whole = load_model(huggingface_folder(tmp_path / "whole"))
    assert_same(load_model(sharded(huggingface_folder(tmp_path / "shards"))), whole)

    both = huggingface_folder(tmp_path / "both")
    with_tensors(both, lambda t: {**t, "lm_head.weight": t[TOKENS].clone()})
    assert_same(load_model(both), whole)
    assert "lm_head.weight left out: the output head, a copy" in caplog.text
    assert "PaliGemma of Hugging Face, with its numerics" in caplog.text

    head = huggingface_folder(tmp_path / "head")
    with_tensors(head, lambda t: {k.replace(TOKENS, "lm_head.weight"): v for k, v in t.items()})
    assert_same(load_model(head), whole)


def test_rows_beyond_the_vocabulary_are_cut_off(tmp_path):
    folder = huggingface_folder(tmp_path / "model")
    rows = torch.arange(257_216.0)[:, None].expand(-1, 64).bfloat16().contiguous()
    with_tensors(folder, lambda t: {**t, TOKENS: rows})
    with_config(folder, "text_config", vocab_size=257_216)
    model = load_model(folder, dtype="bfloat16")
    assert model.config.vocab == 257_152
    assert torch.equal(model.embedding.weight, rows[:257_152])
    with_config(folder, "text_config", vocab_size=257_152)  # both are told of the same weights
    assert load_model(folder, dtype="bfloat16").config.vocab == 257_152


def test_sizes_left_out_of_config_come_from_the_shapes(tmp_path):
    folder = huggingface_folder(tmp_path / "model")
    whole = load_model(folder)
    names = ("intermediate_size", "hidden_size", "num_attention_heads", "num_key_value_heads")
    with_config(folder, "text_config", **dict.fromkeys(names))
    with_config(folder, "vision_config", intermediate_size=None, image_size=None)
    assert_same(load_model(folder), whole)


@pytest.mark.parametrize(
    ("part", "name", "wrong", "right"),
    [
        ("text_config", "intermediate_size", 24_576, 96),
        ("text_config", "num_attention_heads", 8, 4),
        ("text_config", "model_type", "gemma2", "'gemma'"),
        ("text_config", "vocab_size", 161, 160),
        ("vision_config", "image_size", 224, 56),
        ("vision_config", "num_hidden_layers", 27, 2),
    ],
)
def test_a_config_that_contradicts_the_weights_is_refused(tmp_path, part, name, wrong, right):
    folder = with_config(huggingface_folder(tmp_path / "model"), part, **{name: wrong})
    said = f"{part}.{name} is {wrong!r}, the weights' is {right}"
    with pytest.raises(ValueError, match=said):
        load_model(folder)


def published(config, folder: Path, *, text=(), vision=()) -> Path:
    """A folder of released sizes whose weights take no room on disk, as converters wrote it."""
    folder.mkdir()
    with torch.device("meta"):
        shapes = {k: list(p.shape) for k, p in PaliGemma(config).named_parameters()}
    shapes["embedding.weight"][0] = 257_216
    depths = PaliGemmaDepths(27, config.language.depth, config.language.post_norms)
    names = huggingface_names(depths)
    header, size = {}, 0
    for ours, shape in shapes.items():
        (name,) = flat({names[ours]: torch.empty(0)})
        end = size + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [size, end]}
        size = end
    data = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(data).to_bytes(8, "little") + data)
        file.truncate(8 + len(data) + size)
    values = {
        "model_type": "paligemma",
        "projection_dim": config.language.width,
        "text_config": {"vocab_size": 257_216, **dict(text)},
        "vision_config": {"num_attention_heads": 16, "patch_size": 14, **dict(vision)},
    }
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    ("config", "text", "vision"),
    [
        (PALIGEMMA_3B_224, {"model_type": "gemma", "num_key_value_heads": 1}, {}),
        (PALIGEMMA_3B_896, {"model_type": "gemma"}, {"image_size": 896}),
        (PALIGEMMA2_3B_224, {"model_type": "gemma2"}, {}),
        (PALIGEMMA2_10B_224, {"model_type": "gemma2", "num_attention_heads": 16}, {}),
        (PALIGEMMA2_28B_224, {"model_type": "gemma2", "query_pre_attn_scalar": 144}, {}),
    ],
)
def test_released_sizes_are_recognised(tmp_path, config, text, vision):
    found = read_config(published(config, tmp_path / "model", text=text, vision=vision))
    window = 4096 if config.language.post_norms else None  # which big_vision never had
    language = replace(config.language, window=window)
    assert found == replace(config, language=language, numerics=HUGGING_FACE)


# --- big_vision -----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["", "2"])
def test_stacked_apart_bare_and_compressed_arrays_are_the_same_model(tmp_path, version):
    arrays = big_vision_arrays(version)
    whole = load_model(GOLDEN / f"big_vision_paligemma{version}/params_f32.npz")
    bare = {key.removeprefix("params/"): a for key, a in arrays.items()}
    forms = {
        "apart": apart(arrays),
        "layer": apart(bare, "layer_{i}"),
        "bare": bare,
        "trained": {**arrays, "opt/0/mu": np.zeros(3), "chrono/steps": np.zeros(1)},
        "fortran": {key: np.asfortranarray(a) for key, a in arrays.items()},
    }
    for name, form in forms.items():
        np.savez(tmp_path / f"{name}.npz", **form)
        assert_same(load_model(tmp_path / f"{name}.npz"), whole)
    np.savez_compressed(tmp_path / "compressed.npz", **arrays)  # pyright: ignore
    assert_same(load_model(tmp_path / "compressed.npz"), whole)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_half_precisions_load_bit_for_bit(tmp_path, save):
    arrays = big_vision_arrays()
    whole = load_model(GOLDEN / "big_vision_paligemma/params_f32.npz")
    save(tmp_path / "bf16.npz", **{k: as_bfloat16(a) for k, a in arrays.items()})
    assert npz_header(tmp_path / "bf16.npz")["params/img/head/bias"].dtype == "bfloat16"
    assert_same(load_model(tmp_path / "bf16.npz", dtype="bfloat16"), whole.to(torch.bfloat16))
    save(tmp_path / "f16.npz", **{k: a.astype(np.float16) for k, a in arrays.items()})
    model = load_model(tmp_path / "f16.npz", dtype="float16")
    expected = arrays["params/llm/layers/mlp/gating_einsum"][1, 1].T.astype(np.float16)
    found = model.language.blocks[1].mlp.up_proj.weight  # pyright: ignore
    assert torch.equal(found, torch.from_numpy(expected))  # pyright: ignore


def test_an_mlp_stored_the_other_way_round_is_turned(tmp_path):
    arrays = big_vision_arrays()
    key = "params/llm/layers/mlp/gating_einsum"
    turned = {**arrays, f"{key}/w": arrays[key].swapaxes(-1, -2)}
    turned["params/llm/layers/mlp/linear/w"] = turned.pop("params/llm/layers/mlp/linear")
    del turned[key]
    np.savez(tmp_path / "weights.npz", **turned)
    whole = load_model(GOLDEN / "big_vision_paligemma/params_f32.npz")
    assert_same(load_model(tmp_path / "weights.npz"), whole)


# --- resolution and tokenizer ---------------------------------------------------------------------


def test_another_resolution_resamples_the_positions_alone(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = huggingface_folder(tmp_path / "model")
    small, large = load_model(folder), load_model(folder, resolution=112)
    assert large.config.vision.resolution == 112
    positions = large.get_parameter("vision.embedding.position").unflatten(0, (8, 8))
    corners = small.get_parameter("vision.embedding.position").unflatten(0, (4, 4))
    torch.testing.assert_close(positions[::7, ::7], corners[::3, ::3])
    assert torch.equal(large.vision.blocks[1].fc1.weight, small.vision.blocks[1].fc1.weight)  # pyright: ignore
    assert "position embeddings resampled from 56 to 112 pixels" in caplog.text
    with pytest.raises(ValueError, match=r"resolution \(100\) to be a multiple of patch"):
        load_model(folder, resolution=100)


def test_a_vlm_needs_a_tokenizer_that_fits(tmp_path):
    folder = huggingface_folder(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer .* give PaliG"):
        VLM.from_pretrained(folder)
    with pytest.raises(ValueError, match="has 2176 ids but the model only 160 rows"):
        VLM.from_pretrained(folder, tokenizer=Tokenizer.small())
    rows = torch.randn(2176, 64)
    with_tensors(folder, lambda t: {**t, TOKENS: rows})
    with_config(folder, "text_config", vocab_size=2176)
    vlm = VLM.from_pretrained(folder, tokenizer=Tokenizer.small())
    assert vlm.model.embedding.weight.dtype == torch.bfloat16
    Tokenizer.small().save(folder)
    vlm = VLM.from_pretrained(folder, dtype="float32", resolution=28)
    assert torch.equal(vlm.model.embedding.weight, rows)
    assert vlm.tokenizer.vocab_size == 2176


# --- what is refused ------------------------------------------------------------------------------


def drop(name):
    return lambda tensors: {k: v for k, v in tensors.items() if k != name}


def test_missing_unknown_and_misshapen_weights_are_all_told(tmp_path):
    folder = huggingface_folder(tmp_path / "missing")
    name = "model.language_model.layers.1.self_attn.q_proj.weight"
    with_tensors(folder, lambda t: {**drop(name)(t), "model.extra.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match=rf"lacks {name}; unknown in it: model.extra.weight"):
        load_model(folder)
    folder = huggingface_folder(tmp_path / "extra")
    with_tensors(folder, lambda t: {**t, "model.extra.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"nothing was loaded.*not in the model: model\.extra"):
        load_model(folder)
    folder = huggingface_folder(tmp_path / "misshapen")
    with_tensors(folder, lambda t: {**t, name: torch.zeros(32, 64)})
    with pytest.raises(ValueError, match=r"blocks\.1\.attention.* model \[64, 64\], file \[32, 64"):
        load_model(folder)
    folder = huggingface_folder(tmp_path / "twice")
    with_tensors(folder, lambda t: {**t, **flat({name: t[name].clone()})})
    with pytest.raises(ValueError, match="two names of the same weight"):
        load_model(folder)


def test_weights_that_are_no_floats_are_refused(tmp_path):
    folder = huggingface_folder(tmp_path / "model")
    name = "model.multi_modal_projector.linear.weight"
    with_tensors(folder, lambda t: {**t, name: t[name].to(torch.int8)})
    with pytest.raises(ValueError, match=f"{name} is int8, expected one of float32"):
        load_model(folder)


def test_files_that_are_cut_short_or_absent_are_named(tmp_path):
    folder = huggingface_folder(tmp_path / "cut")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a whole safetensors file"):
        load_model(folder)
    shards = sharded(huggingface_folder(tmp_path / "shards"))
    (shards / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no weights at .*model-00002-of-00002"):
        load_model(shards)
    archive = (GOLDEN / "big_vision_paligemma/params_f32.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(archive[:-1000])
    with pytest.raises(ValueError, match=r"cut\.npz is not a whole \.npz file"):
        load_model(tmp_path / "cut.npz")
    with pytest.raises(FileNotFoundError, match="no PaliGemma at"):
        load_model(tmp_path / "nowhere")


def test_sizes_that_a_header_lies_about_are_refused(tmp_path):
    folder = huggingface_folder(tmp_path / "model")
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data.replace(b'"shape":[160,64]', b'"shape":[161,64]', 1))
    with pytest.raises(ValueError, match=r"\[161, 64\] float32 takes 41216 bytes, .*40960"):
        load_model(folder)


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_arrays_of_objects_are_never_opened(tmp_path):
    trap = np.array([Trap(tmp_path / "sprung")], dtype=object)
    np.savez(tmp_path / "weights.npz", **{**big_vision_arrays(), "params/x": trap})
    with pytest.raises(ValueError, match=r"pickled Python objects \(params/x\)"):
        load_model(tmp_path / "weights.npz")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"model_type": "llama"},
            "'llama', expected 'vla-paligemma' or 'paligemma'",
        ),
        ({"model_type": "clip"}, "has model_type 'clip'"),
        ({"model_type": "gemma2"}, r"Gemma 2 alone: .* backbone\.stage0\.from_parts"),
        ({"model_type": "vla-pi0"}, r"a policy of this package: load it with vla\.policy\.Policy"),
        ({"type": "pi0"}, r"of a LeRobot policy \('pi0'\)"),
    ],
)
def test_folders_of_other_models_say_what_they_are(tmp_path, config, said):
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=said):
        load_model(tmp_path)


def test_an_output_head_of_its_own_is_refused(tmp_path):
    folder = with_config(huggingface_folder(tmp_path / "model"), tie_word_embeddings=False)
    with pytest.raises(ValueError, match="tie_word_embeddings false"):
        load_model(folder)


def test_the_weights_of_a_clip_under_paligemmas_config_are_refused(tmp_path):
    folder = huggingface_folder(tmp_path / "model")
    with_tensors(folder, lambda _: {"text_model.embeddings.weight": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match=r"does not hold a whole PaliGemma; .*text_model\.embed"):
        load_model(folder)
    assert load_file(folder / "model.safetensors")
