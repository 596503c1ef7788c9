"""Weights and statistics survive the way from one format to another, bit for bit."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from foreign import (
    GOLDEN,
    LETTERS,
    OPENPI_CONFIGS,
    lerobot_folder,
    made_up_stats,
    openpi_jax_folder,
    openpi_pytorch_folder,
    rewrite,
)
from lerobot_reference import load_lerobot
from safetensors import safe_open
from safetensors.torch import load_file

from backbone.pretrained import load_model, load_pretrained
from backbone.tokenizer import Tokenizer
from vla.convert import EVERYWHERE, convert, huggingface_config
from vla.data.stats import NormStats
from vla.description import describe
from vla.layouts import VLM, port_key
from vla.model import build
from vla.pi0 import PI0_TINY
from vla.pi05 import PI05_TINY
from vla.policy import Policy
from vla.policy_config import PolicyConfig
from vla.processor import Processor
from vla.sources.origin import policy_files


def live(folder):
    """Everything but the heads that no action depends on."""
    tensors = load_file(folder / "model.safetensors")
    return {k: v for k, v in tensors.items() if not k.endswith("lm_head.weight")}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("kind", ["pi0", "pi05"])
def test_from_lerobot_to_openpi_and_back(tmp_path, kind):
    first = lerobot_folder(kind, tmp_path / "first")
    convert(first, tmp_path / "openpi", "openpi-pytorch")
    convert(tmp_path / "openpi", tmp_path / "second", "lerobot")
    assert_same(live(first), live(tmp_path / "second"))
    before, after = policy_files(first), policy_files(tmp_path / "second")
    assert before.stats is not None
    assert after.stats is not None
    np.testing.assert_allclose(after.stats.actions.std, before.stats.actions.std, rtol=1e-6)
    assert (after.horizon, after.state_dim, after.action_dim) == (6, 9, 7)
    assert after.prompt_length == {"pi0": 48, "pi05": 200}[kind]  # openpi's files do not say


@pytest.mark.parametrize("kind", ["pi0", "pi05"])
def test_from_lerobot_to_lerobot_nothing_changes(tmp_path, kind):
    first = lerobot_folder(kind, tmp_path / "first")
    convert(first, tmp_path / "second", "lerobot")
    assert_same(live(first), live(tmp_path / "second"))
    theirs, ours = (
        json.loads((f / "config.json").read_text()) for f in (first, tmp_path / "second")
    )
    for name, value in ours.items():
        if name != "relative_exclude_joints":
            assert theirs[name] == value, name
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        theirs, ours = (json.loads((f / name).read_text()) for f in (first, tmp_path / "second"))
        assert [s["registry_name"] for s in ours["steps"]] == [
            s["registry_name"] for s in theirs["steps"]
        ]
        for mine, other in zip(ours["steps"], theirs["steps"], strict=True):
            assert mine.get("state_file") == other.get("state_file")
            assert mine["config"].keys() == other["config"].keys()
            if "state_file" in mine:
                file = mine["state_file"]
                assert_same(load_file(first / file), load_file(tmp_path / "second" / file))


def test_a_jax_checkpoint_becomes_the_pytorch_one(tmp_path):
    jax = openpi_jax_folder(tmp_path / "jax", ("droid", "trossen"))
    convert(jax, tmp_path / "torch", "openpi-pytorch", horizon=6)
    assert {p.name for p in (tmp_path / "torch/assets").iterdir()} == {"droid", "trossen"}
    config = json.loads((tmp_path / "torch/config.json").read_text())
    assert config == json.loads((GOLDEN / "openpi_pytorch_pi0/config.json").read_text())
    with safe_open(tmp_path / "torch/model.safetensors", "pt") as file:
        assert len(file.keys()) == 107  # as openpi's own converter wrote
        (alias, kept), *_ = file.metadata().items()
        assert alias.endswith("embed_tokens.weight")
        assert kept in file.keys()  # noqa: SIM118

    options = {"config": OPENPI_CONFIGS["pi0"], "tokenizer": LETTERS, "asset": "droid"}
    ours, theirs = (
        Policy.from_pretrained(folder, **options) for folder in (tmp_path / "torch", jax)
    )
    assert_same(ours.model.state_dict(), theirs.model.state_dict())


def test_openpis_own_pytorch_file_is_written_again_the_same(tmp_path):
    first = openpi_pytorch_folder(tmp_path / "first")
    convert(first, tmp_path / "second", "openpi-pytorch")
    ours, theirs = (load_file(f / "model.safetensors") for f in (tmp_path / "second", first))
    head = "paligemma_with_expert.gemma_expert.lm_head.weight"
    assert not ours[head].any()
    assert_same({**ours, head: theirs[head]}, theirs)


def tiny_policy(folder, model, **changes):
    path = folder.with_suffix(".json")
    path.write_text(json.dumps({"norm_stats": made_up_stats(3, 2)}))
    config = PolicyConfig(model, ("wrist", "top"), 3, 2, **changes)
    torch.manual_seed(0)
    network = build(model)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    policy = Policy(network, Processor(config, NormStats.load(path), Tokenizer.small()))
    policy.save_pretrained(folder)
    return policy


def observation():
    rng = np.random.default_rng(0)
    size = PI0_TINY.backbone.vision.resolution
    return {
        "observation.images.top": rng.integers(0, 256, (size, size, 3), np.uint8),
        "observation.images.wrist": rng.integers(0, 256, (size, size, 3), np.uint8),
        "observation.state": np.array([0.1, -0.2, 0.3], np.float32),
        "task": "push the red cube",
    }


@pytest.mark.parametrize("to", ["lerobot", "vla"])
@pytest.mark.parametrize("model", [PI0_TINY, PI05_TINY])
@pytest.mark.parametrize("relative", [(), (1,)])
def test_our_policy_acts_the_same_from_another_folder(tmp_path, to, model, relative):
    policy = tiny_policy(
        tmp_path / "ours", model, relative_dims=relative, prompt_length=60, still=0.7
    )  # still: the middle state dimension is not scaled
    convert(tmp_path / "ours", tmp_path / "other", to)
    options = {} if to == "vla" else {"config": model}
    again = Policy.from_pretrained(tmp_path / "other", **options)
    assert again.config.cameras == policy.config.cameras
    assert again.config.prompt_length == 60
    noise = np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32)
    np.testing.assert_allclose(
        again.act(observation(), noise), policy.act(observation(), noise), atol=2e-4
    )


def test_the_paligemma_inside_has_hugging_faces_names_and_values(tmp_path):
    folder = openpi_jax_folder(tmp_path / "jax", ())
    convert(folder, tmp_path / "vlm", "huggingface")
    written = load_file(tmp_path / "vlm/model.safetensors")
    reference = load_file(GOLDEN / "hf_paligemma/model.safetensors")  # 2 and 3 blocks deep too
    assert {VLM + key for key in written} == {port_key(VLM + key) for key in reference}
    theirs = Policy.from_pretrained(
        folder,
        config=OPENPI_CONFIGS["pi0"],
        tokenizer=LETTERS,
        stats=NormStats.load(write_stats(tmp_path)),
    ).model.backbone.state_dict()
    name = "model.language_model.layers.2.self_attn.q_proj.weight"
    assert torch.equal(written[name], theirs["language.blocks.2.attention.q_proj.weight"])
    config = json.loads((tmp_path / "vlm/config.json").read_text())
    assert config == huggingface_config(policy_files(folder).sizes, "float32")


def write_stats(folder):
    path = folder / "stats.json"
    path.write_text(json.dumps({"norm_stats": made_up_stats(8, 7)}))
    return path


@pytest.mark.slow
def test_hugging_face_itself_loads_the_paligemma(tmp_path):
    from transformers import PaliGemmaForConditionalGeneration

    convert(openpi_jax_folder(tmp_path / "jax", ()), tmp_path / "vlm", "huggingface")
    loaded: Any = PaliGemmaForConditionalGeneration.from_pretrained(
        tmp_path / "vlm", output_loading_info=True
    )
    model, report = loaded
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    embedding = model.get_input_embeddings().weight
    held = load_file(tmp_path / "vlm/model.safetensors")
    assert torch.equal(embedding, held["model.language_model.embed_tokens.weight"])


# --- what is refused ------------------------------------------------------------------------------


def test_an_existing_destination_is_left_alone(tmp_path):
    folder = lerobot_folder("pi0", tmp_path / "policy")
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="there exists; give a new folder"):
        convert(folder, tmp_path / "there", "openpi-pytorch")
    assert not list((tmp_path / "there").iterdir())


def test_a_failure_leaves_nothing_behind(tmp_path):
    folder = lerobot_folder("pi0", tmp_path / "policy")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        convert(folder, tmp_path / "new", "openpi-pytorch")
    with pytest.raises(ValueError, match="give --horizon"):
        convert(openpi_jax_folder(tmp_path / "jax"), tmp_path / "new", "lerobot")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["jax", "policy"]


def test_what_a_format_cannot_say_is_refused(tmp_path):
    folder = lerobot_folder("pi0", tmp_path / "policy")
    rewrite(folder / "policy_preprocessor.json", lambda p: enable(p, 5))
    rewrite(folder / "policy_postprocessor.json", lambda p: enable(p, 1))
    with pytest.raises(ValueError, match="relative actions, which openpi keeps in a training"):
        convert(folder, tmp_path / "new", "openpi-pytorch")
    tiny_policy(tmp_path / "silent", PI05_TINY, discrete_state=False)
    with pytest.raises(ValueError, match="does not tell the state in its prompt"):
        convert(tmp_path / "silent", tmp_path / "new", "lerobot")
    with pytest.raises(ValueError, match="no format 'onnx'; choose one of lerobot, openpi-pytorch"):
        convert(folder, tmp_path / "new", "onnx")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"norm_stats.json; copy .*or with --stats"):
        convert(
            openpi_jax_folder(tmp_path / "jax", ()), tmp_path / "new", "openpi-pytorch", horizon=6
        )


def enable(processor, step):
    processor["steps"][step]["config"]["enabled"] = True


def test_statistics_can_be_given(tmp_path):
    jax = openpi_jax_folder(tmp_path / "jax", ())
    convert(jax, tmp_path / "new", "lerobot", horizon=6, stats=write_stats(tmp_path))
    files = policy_files(tmp_path / "new")
    assert (files.state_dim, files.action_dim) == (8, 7)
    sizes = replace(files.sizes, vision=replace(files.sizes.vision, heads=4))
    assert sizes == policy_files(jax).sizes


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of transformers, about configs of this size
@pytest.mark.parametrize("model", [PI0_TINY, PI05_TINY])
def test_lerobot_itself_acts_as_our_policy_does(tmp_path, model):
    """LeRobot assumes one key/value head and gets its vision heads from our config."""
    policy = tiny_policy(tmp_path / "ours", model, prompt_length=60, optional_cameras=True)
    convert(tmp_path / "ours", tmp_path / "lerobot", "lerobot")
    lerobot: Any = load_lerobot(tmp_path / "lerobot", model)
    batch = policy.processor.observe([observation()])
    noise = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(0))
    theirs = lerobot.predict_action_chunk(
        {
            **{
                f"observation.images.{camera}": batch.images[:, i].float() / 255
                for i, camera in enumerate(policy.config.cameras)
            },
            "observation.state": batch.state[:, :3],
            "observation.language.tokens": batch.tokens,
            "observation.language.attention_mask": batch.token_valid,
        },
        noise=noise,
    )
    ours = policy.model.sample_actions(batch, noise)[..., :2]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-4)  # time in float64 there


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_lerobots_own_pipelines_read_our_processors(tmp_path):
    from lerobot.processor import PolicyProcessorPipeline

    policy = tiny_policy(tmp_path / "ours", PI0_TINY, relative_dims=(1,))
    convert(tmp_path / "ours", tmp_path / "lerobot", "lerobot")
    post = PolicyProcessorPipeline.from_pretrained(
        tmp_path / "lerobot", config_filename="policy_postprocessor.json"
    )
    unnormalise: Any = post.steps[0]
    actions = torch.linspace(-1, 1, 8).reshape(1, 4, 2)
    theirs = unnormalise._normalize_action(actions, inverse=True)
    padded = torch.nn.functional.pad(actions, (0, 2))
    ours = policy.processor.actions(padded, np.zeros((1, 3), np.float32))
    np.testing.assert_allclose(theirs.numpy(), ours, atol=1e-5)


# --- PaliGemmas -----------------------------------------------------------------------------------


def paligemma(folder, origin, version):
    """A stored PaliGemma of Hugging Face, big_vision, or ours with its values."""
    source = GOLDEN / f"big_vision_paligemma{version}/params_f32.npz"
    if origin == "big_vision":
        return source
    convert(source, folder, "vla" if origin == "ours" else "huggingface")
    return folder


@pytest.mark.parametrize("version", ["", "2"])
@pytest.mark.parametrize("origin", ["big_vision", "ours", "huggingface"])
@pytest.mark.parametrize("to", ["huggingface", "vla"])
def test_paligemmas_keep_every_bit_through_each_format(tmp_path, version, origin, to):
    first = paligemma(tmp_path / "first", origin, version)
    convert(first, tmp_path / "second", to)
    before, after = load_model(first), load_model(tmp_path / "second")
    assert before.config.vision == after.config.vision
    if version and to == "huggingface":
        assert after.config.language.window == EVERYWHERE
    windowless = replace(after.config.language, window=before.config.language.window)
    assert windowless == before.config.language
    assert_same(before.state_dict(), after.state_dict())
    if to == "vla":
        assert after.config == before.config


def test_half_precision_and_a_tokenizer_go_along(tmp_path):
    (tmp_path / "npz").mkdir()
    with np.load(GOLDEN / "big_vision_paligemma/params_f32.npz") as file:
        arrays = {key: file[key] for key in file.files}
    key = "params/llm/embedder/input_embedding"
    arrays[key] = np.resize(arrays[key], (2176, 64))
    halves = {k: torch.from_numpy(a).bfloat16().view(torch.int16) for k, a in arrays.items()}
    stored = {k: a.numpy().view("V2") for k, a in halves.items()}
    np.savez(tmp_path / "npz/weights.npz", **stored)  # pyright: ignore
    Tokenizer.small().save(tmp_path / "npz")
    for to in ("huggingface", "vla"):
        convert(tmp_path / "npz", tmp_path / to, to)
        model, tokenizer = load_pretrained(tmp_path / to, dtype="bfloat16")
        assert tokenizer.vocab_size == 2176
        assert torch.equal(model.embedding.weight.view(torch.int16), halves[key])
        tensors = load_file(tmp_path / to / "model.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    told = describe(tmp_path / "npz/weights.npz")
    assert (told.origin, told.dtypes) == ("big_vision", {"bfloat16": told.parameters["total"]})
    assert told.tokenizer == str(tmp_path / "npz/tokenizer.model")


def test_a_paligemma_2_is_described_as_one():
    told = describe(GOLDEN / "big_vision_paligemma2/params_f32.npz")
    assert (told.model, told.sizes["language"]["kv_heads"]) == ("PaliGemma 2", 2)


def test_a_paligemma_has_no_robot(tmp_path):
    first = paligemma(tmp_path / "first", "ours", "")
    with pytest.raises(ValueError, match="without an action expert; it converts to huggingface or"):
        convert(first, tmp_path / "second", "lerobot")
    assert not (tmp_path / "second").exists()


@pytest.mark.slow
@pytest.mark.parametrize("version", ["", "2"])
def test_hugging_face_itself_gives_big_visions_logits(tmp_path, version):
    from transformers import PaliGemmaForConditionalGeneration

    source = GOLDEN / f"big_vision_paligemma{version}"
    convert(source / "params_f32.npz", tmp_path / "vlm", "huggingface")
    if version:  # the file does not tell the cap of its attention: released models have 50
        rewrite(tmp_path / "vlm/config.json", lambda c: cap(c, 5.0))
    rewrite(tmp_path / "vlm/config.json", lambda c: c.update(image_token_index=159))
    loaded: Any = PaliGemmaForConditionalGeneration.from_pretrained(
        tmp_path / "vlm", output_loading_info=True, attn_implementation="eager"
    )
    model, report = loaded
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    inputs, outputs = np.load(source / "inputs.npz"), np.load(source / "outputs_f32.npz")
    text = torch.from_numpy(inputs["text"]).long()
    images = torch.from_numpy(inputs["image"]).permute(0, 3, 1, 2) / 127.5 - 1
    suffix = torch.from_numpy(inputs["mask_ar"]).long()
    patches = torch.full((len(text), 16), 159)
    with torch.no_grad():
        logits = model(
            input_ids=torch.cat([patches, text], 1),
            pixel_values=images,
            attention_mask=torch.ones(len(text), 16 + text.shape[1]),
            token_type_ids=torch.cat([torch.zeros_like(patches), suffix], 1),
        ).logits[:, 16:]
    expected = torch.from_numpy(outputs["text_logits"])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def cap(config, value):
    config["text_config"]["attn_logit_softcapping"] = value
