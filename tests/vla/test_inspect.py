"""`vla inspect` tells what stands in a folder from headers alone, without torch."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from foreign import (
    GOLDEN,
    lerobot_folder,
    openpi_jax_folder,
    openpi_pytorch_folder,
    rewrite,
)
from safetensors.torch import load_file, save_file

from action_expert.expert import ActionExpertConfig
from backbone.gemma import (
    GEMMA2_2B,
    GEMMA2_9B,
    GEMMA2_27B,
    GEMMA_2B,
    GEMMA_300M,
    GemmaConfig,
)
from backbone.paligemma import PALIGEMMA_3B_448
from backbone.pretrained import save_pretrained
from backbone.sources.sizes import STACKS
from backbone.sources.write import write_safetensors
from backbone.tokenizer import Tokenizer
from vla.data.stats import NormStats
from vla.description import describe
from vla.layouts import Depths, port_names
from vla.model import build
from vla.pi0 import PI0, PI0_SMALL, PI0_TINY
from vla.pi05 import PI05
from vla.policy import Policy
from vla.policy_config import PolicyConfig
from vla.processor import Processor


def run(*arguments):
    command = [sys.executable, "-X", "importtime", "-m", "vla", "inspect", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_answers_without_torch(tmp_path):
    folder = lerobot_folder("pi0", tmp_path / "policy")
    done = run(folder)
    assert done.returncode == 0
    assert f"{folder}: π0 (56 wide, 3 deep + 40 wide, 3 deep), written by LeRobot" in done.stdout
    assert "  cameras      base_0_rgb, left_wrist_0_rgb, right_wrist_0_rgb\n" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "vla.description" in imported
    assert not imported & {"torch", "transformers", "lerobot"}


def test_json_has_every_number(tmp_path):
    done = run(lerobot_folder("pi05", tmp_path / "policy"), "--json")
    told = json.loads(done.stdout)
    assert told["origin"] == "LeRobot"
    assert told["model"] == "π0.5"
    assert told["numerics"] == "LeRobot"
    assert told["parameters"]["total"] == 222_688
    assert told["dtypes"] == {"float32": 222_688}
    assert sum(told["dead_weight"].values()) == 4 * 112 * (56 + 40)
    assert told["robot"] == {
        "cameras": ["base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"],
        "state": 9,
        "action": 7,
        "relative_actions": [],
        "statistics": "q01 and q99",
        "horizon": 6,
        "steps": 10,
        "prompt_length": 96,
    }


def test_a_jax_checkpoint_is_described_without_torch(tmp_path):
    done = run(openpi_jax_folder(tmp_path / "checkpoint", ("droid", "arm")), "--asset", "droid")
    assert done.returncode == 0
    assert "written by openpi JAX" in done.stdout
    assert "32 wide, 2 deep, 4 heads, 28 px" in done.stdout
    assert "problem: the actions in a chunk are not told" in done.stdout
    assert "\n  numerics     openpi JAX\n" in done.stdout


def test_a_paligemma_is_described_without_torch():
    done = run(GOLDEN / "big_vision_paligemma2/params_f32.npz")
    assert done.returncode == 0
    assert "PaliGemma (64 wide, 3 deep) 56, written by big_vision" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "transformers"}


def test_several_assets_are_told_as_a_problem(tmp_path):
    folder = openpi_pytorch_folder(tmp_path / "policy", ("droid", "arm"))
    told = describe(folder)
    assert any("2 robots; choose one with asset=: arm, droid" in p for p in told.problems)
    assert describe(folder, "arm").robot["statistics"] == "q01 and q99"  # pyright: ignore


def of_full_size(folder, model):
    """A LeRobot folder of the released sizes whose weights take no room on disk."""
    lerobot_folder("pi05" if model is PI05 else "pi0", folder)
    with torch.device("meta"):
        parameters = dict(build(model).named_parameters())
    depths = Depths(27, 18, 18, model is PI05)
    names = {ours: f"model.{theirs}" for ours, theirs in port_names(depths).items()}
    shapes = {names[ours]: (tuple(p.shape), "bfloat16") for ours, p in parameters.items()}
    head = "model.paligemma_with_expert.gemma_expert.lm_head.weight"
    shapes[head] = ((257_152, 1024), "bfloat16")
    path = folder / "model.safetensors"
    path.unlink()

    size = 0
    header = {}
    for name, (shape, _) in shapes.items():
        end = size + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [size, end]}
        size = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)
    return folder


@pytest.mark.parametrize(
    ("model", "name", "total"),
    [
        (PI0, "π0 (gemma_2b + gemma_300m)", 3_238_048_528),
        (PI05, "π0.5 (gemma_2b + gemma_300m)", 3_353_433_872),
    ],
)
def test_released_sizes_have_names_and_counts(tmp_path, model, name, total):
    told = describe(of_full_size(tmp_path / "policy", model))
    assert told.variant == name
    assert told.parameters["total"] == total
    assert told.parameters["vision"] == 412_442_352
    assert told.dtypes == {"bfloat16": total}
    assert sum(told.dead_weight.values()) == 2 * 257_152 * 1024
    assert told.sizes["vision"]["heads"] == 16
    assert told.sizes["vision"]["resolution"] == 224
    assert "parameters   " + f"{total / 1e9:.3g} B (vision 412 M, language 2.51 B" in str(told)
    assert "dead weight  527 MB in " in str(told)


def test_our_own_policy(tmp_path):
    stats = {"mean": [0.0, 1.0], "std": [1.0, 0.0]}
    path = tmp_path / "stats.json"
    path.write_text(json.dumps({"norm_stats": {"state": stats, "actions": stats}}))
    config = PolicyConfig(PI0_TINY, ("top",), 2, 2, relative_dims=(1,))
    processor = Processor(config, NormStats.load(path), Tokenizer.small())
    policy = Policy(build(PI0_TINY), processor)
    policy.save_pretrained(tmp_path / "policy")
    told = describe(tmp_path / "policy")
    assert (told.origin, told.model, told.variant) == ("this package", "π0", "π0 (tiny + tiny)")
    assert told.parameters["total"] == sum(p.numel() for p in policy.model.parameters())
    assert told.numerics == "openpi JAX"
    assert told.problems == ()  # a dimension that never moved is not scaled here
    assert told.robot is not None
    assert told.robot["relative_actions"] == [1]


def test_a_paligemma_of_each_origin(tmp_path):
    from vla.convert import convert

    convert(openpi_jax_folder(tmp_path / "jax", ()), tmp_path / "vlm", "huggingface")
    hugging_face = describe(tmp_path / "vlm")
    assert (hugging_face.origin, hugging_face.model) == ("Hugging Face", "PaliGemma")
    assert hugging_face.sizes["vision"]["heads"] == 4
    assert hugging_face.sizes["language"]["heads"] == 8
    assert hugging_face.robot is None

    params = np.load(GOLDEN / "openpi_jax_pi0/params.npz")
    vlm = {
        key.replace("PaliGemma/", "params/"): params[key]
        for key in params
        if key.startswith("PaliGemma/") and not ("/llm/" in key and "_1/" in key)
    }
    np.savez(tmp_path / "weights.npz", **vlm)
    big_vision = describe(tmp_path / "weights.npz")
    assert big_vision.origin == big_vision.numerics == "big_vision"
    assert big_vision.sizes == hugging_face.sizes
    assert big_vision.parameters == hugging_face.parameters

    model = build(PI0_SMALL).backbone
    save_pretrained(model, Tokenizer.small(), tmp_path / "ours")
    ours = describe(tmp_path / "ours")
    assert (ours.origin, ours.variant) == ("this package", "PaliGemma (small) 72")
    assert ours.parameters["total"] == sum(p.numel() for p in model.parameters())
    assert ours.tokenizer == str(tmp_path / "ours/tokenizer.model")


def test_the_variants_written_down_are_those_of_the_models():
    known = {
        "gemma_2b": GEMMA_2B,
        "gemma_300m": GEMMA_300M,
        "gemma2_2b": GEMMA2_2B,
        "gemma2_9b": GEMMA2_9B,
        "gemma2_27b": GEMMA2_27B,
        "small": PI0_SMALL.backbone.language,
        "small expert": PI0_SMALL.expert.gemma,
        "tiny": PI0_TINY.backbone.language,
    }
    for name, config in known.items():
        for size, value in vars(STACKS[name]).items():
            assert getattr(config, size) == value
    assert PALIGEMMA_3B_448.language == GEMMA_2B
    assert ActionExpertConfig(GemmaConfig(1, 1, 1)).horizon == 50


def test_problems_are_told_and_do_not_stop_the_description(tmp_path):
    folder = lerobot_folder("pi0", tmp_path / "policy")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.extra"] = torch.zeros(2)
    save_file(tensors, folder / "model.safetensors")
    for file in folder.glob("policy_p*_step_*.safetensors"):
        stats = load_file(file)
        stats["observation.state.std"][3] = 0
        save_file(stats, file)
    problems = "\n".join(describe(folder).problems)
    assert "std is 0 in state[3]" in problems
    assert "weights that no π0 or π0.5 has: model.extra" in problems
    assert "number of vision heads is not told" in problems
    assert "no tokenizer.model or tokenizer.json" in problems


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: rewrite(f / "config.json", lambda c: c.update(type="act")), "of type 'act'"),
        (
            lambda f: (f / "policy_preprocessor.json").unlink(),
            "policy_preprocessor.json is missing",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b"xx"), "not a whole safetensors file"),
        (lambda f: (f / "model.safetensors").unlink(), "no weights at"),
        (lambda f: (f / "config.json").write_text('{"model_type": "llama"}'), "model_type 'llama'"),
    ],
)
def test_what_is_broken_is_said_in_one_line(tmp_path, change, message):
    folder = lerobot_folder("pi0", tmp_path / "policy")
    change(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        describe(folder)
    assert "\n" not in str(error.value)


def test_files_and_paths_that_hold_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        describe(tmp_path / "nowhere")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match=r"lacks img/Transformer.*it holds x"):
        describe(tmp_path / "other.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "other.npz").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"not a whole .npz file"):
        describe(tmp_path / "cut.npz")
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="a single file; give the folder"):
        describe(tmp_path / "x.safetensors")


def test_a_tensor_is_written_only_as_it_was_announced(tmp_path):
    shapes = {"x": ((2,), "float32")}
    with pytest.raises(ValueError, match="expected x"):
        write_safetensors(tmp_path / "x", shapes, [("x", torch.zeros(3))], {})
