"""`vla bench vlm` at toy size: both models say the same, and the arithmetic of its figures."""

import json

import pytest
import torch

from backbone.generate import generate
from backbone.paligemma import PALIGEMMA_3B_224, PALIGEMMA_TINY, PaliGemma
from vla import cli
from vla.bench import ceilings
from vla.bench.huggingface import same_inputs, same_model
from vla.bench.vlm import TEXT, Speed, VLMBench, bench_vlm, random_model, random_prompt

CPU = torch.device("cpu")


def run(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "vlm", *arguments])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


@pytest.fixture(scope="module")
def model():
    return random_model(PALIGEMMA_TINY, CPU, torch.float32)


def test_both_models_share_their_weights_and_say_the_same(model):
    theirs = same_model(model)
    ours = {parameter.data_ptr() for parameter in model.parameters()}
    assert {parameter.data_ptr() for parameter in theirs.parameters()} == ours
    prompt = random_prompt(model)
    inputs = same_inputs(prompt, model)
    said = theirs.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert (
        said[:, inputs["input_ids"].shape[1] :].tolist()
        == generate(model, prompt, 8, eos=None).tokens.tolist()
    )


def test_random_weights_are_as_large_as_they_are_said_to_be(model):
    for parameter in model.parameters():
        expected = 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
        assert 0.5 < parameter.std() / expected < 1.5
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_work_is_counted_as_papers_count_it():
    """Two FLOPs per weight and token; PaliGemma-3B reads 5 GB for a token."""
    with torch.device("meta"):
        model = PaliGemma(PALIGEMMA_3B_224).bfloat16()
    stack = 18 * (2048 * (2048 + 256 + 256) + 2048 * 2048 + 3 * 2048 * 16384 + 2 * 2048) + 2048
    table = 257_152 * 2048
    cache = 2 * 18 * 256 * 280
    assert ceilings.decode_bytes(model, 280) == 2 * (stack + table + cache)
    flops = ceilings.prefill_flops(model, 16)
    attention = 4 * 272**2 * 2048 * 18
    vision = flops - 2 * 272 * stack - attention - 2 * table
    assert 0.2e12 < vision < 0.25e12  # SigLIP So400m has 0.41 B parameters and reads 256 patches


def test_ratios_and_shares():
    bench = VLMBench(
        Speed(2.0, 0.5), Speed(4.0, 0.4), 10**9, 256, 16, 3e12, 4e9, 2e12, 1e10, "CPU", "bf16", 2
    )
    assert bench.ratios == Speed(0.5, 1.25)
    assert bench.shares == Speed(0.75, 0.8)
    lines = str(bench).splitlines()
    assert lines[2].split() == ["prefill", "2000.0", "ms", "4000.0", "ms", "0.50", "75%"]
    assert lines[3].split() == ["token", "500.0", "ms", "400.0", "ms", "1.25", "80%"]


def test_the_command_prints_json(capsys):
    small = ["--size", "small", "--eager", "--repeats", "1", "--tokens", "3"]
    status, out, _ = run([*small, "--json"], capsys)
    said = json.loads(out)
    assert status == 0
    assert (said["patches"], said["text"], said["dtype"]) == (36, TEXT, "bfloat16")
    assert said["ratios"]["token"] == said["ours"]["token"] / said["theirs"]["token"]
    assert said["shares"]["prefill"] == pytest.approx(
        said["flops"] / said["ours"]["prefill"] / said["matmul"]
    )


def test_mistakes_are_told(capsys):
    assert "expected a whole number above 0" in run(["--repeats", "0"], capsys)[2]
    assert "unknown device 'abacus'" in run(["--size", "small", "--device", "abacus"], capsys)[2]
    with pytest.raises(ValueError, match="2 tokens or more, got 1 and 1"):
        bench_vlm(PALIGEMMA_TINY, 8, device=CPU, repeats=1, tokens=1)
