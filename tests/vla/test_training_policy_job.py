"""Demonstrations become batches, batches a policy; what does not fit is refused with a remedy."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from backbone.paligemma import PaliGemma
from backbone.pretrained import save_pretrained
from backbone.tokenizer import Tokenizer
from vla.config import DataConfig, OptimConfig, TrainConfig
from vla.data.demonstrations import split
from vla.data.stats import norm_stats
from vla.model import Model, build
from vla.pi0 import PI0_TINY, Pi0
from vla.policy import Policy
from vla.training.job import Microbatch
from vla.training.loop import train
from vla.training.optimiser import freeze, make_optimiser
from vla.training.policy_job import init_weights, policy_job, policy_start
from vla.training.start import begin
from vla.training.update import update

CPU = torch.device("cpu")


def config(root: Path, output_dir: Path = Path("unused"), **fields) -> TrainConfig:
    values = {
        "output_dir": output_dir,
        "model": PI0_TINY,
        "data": DataConfig(root, held_out=0.3, prompt_length=12),
        "steps": 4,
        "batch_size": 4,
        "tensorboard": False,
        "device": "cpu",
    }
    return TrainConfig(**values | fields)


def equal(a: Microbatch, b: Microbatch) -> bool:
    """Whether two micro-batches hold the same samples with the same noise and times."""
    batches = zip(vars(a.inputs[0]).values(), vars(b.inputs[0]).values(), strict=True)
    rest = zip(a.inputs[1:], b.inputs[1:], strict=True)
    return a.samples == b.samples and all(torch.equal(x, y) for x, y in (*batches, *rest))


def test_a_batch_has_the_shapes_that_the_model_asks_for(video_dataset):
    job = policy_job(config(video_dataset, draws=3, accumulate=2))
    microbatches = job.batch(0)
    assert [m.size for m in microbatches] == [2, 2]
    batch, noise, t = microbatches[0].inputs
    assert batch.images.shape == (2, 2, 3, 32, 32)
    assert batch.actions.shape == (2, 4, 4)
    assert noise.shape == (2, 3, 4, 4)
    assert noise.dtype == t.dtype == torch.float32
    assert t.shape == (2, 3)
    assert job.begun()(*microbatches[0].inputs).shape == ()


def test_a_step_is_a_pure_function_and_accumulation_only_divides_it(video_dataset):
    job = policy_job(config(video_dataset))
    again = policy_job(config(video_dataset, accumulate=2))
    assert equal(job.batch(5)[0], job.batch(5)[0])
    assert not equal(job.batch(5)[0], job.batch(6)[0])
    whole, parts = job.batch(3)[0], again.batch(3)
    assert [*parts[0].samples, *parts[1].samples] == list(whole.samples)
    noise = torch.cat([part.inputs[1] for part in parts])
    assert torch.equal(noise, whole.inputs[1])


def test_held_out_episodes_are_neither_trained_on_nor_in_the_statistics(video_dataset, tmp_path):
    run = config(video_dataset)
    job = policy_job(run)
    chosen, held_out = split(3, 0.3, run.seed)
    assert (len(chosen), len(held_out)) == (2, 1)
    trained = {s.split()[2] for step in range(10) for s in job.batch(step)[0].samples}
    assert trained == {str(episode) for episode in chosen}
    assert job.held_out is not None
    validated = {s.split()[2] for m in job.held_out() for s in m.samples}
    assert validated == {str(episode) for episode in held_out}
    job.save(job.begun(), tmp_path)
    saved = Policy.from_pretrained(tmp_path).processor.stats
    np.testing.assert_array_equal(saved.state.mean, norm_stats(video_dataset, chosen).state.mean)


def test_validation_is_the_same_at_every_call_and_visits_no_sample_twice(video_dataset):
    job = policy_job(config(video_dataset, batch_size=2, eval_batches=2))
    assert job.held_out is not None
    first, second = list(job.held_out()), list(job.held_out())
    assert all(equal(a, b) for a, b in zip(first, second, strict=True))
    names = [s for m in first for s in m.samples]
    assert len(names) == len(set(names)) == 4  # eval_batches × batch_size of 4, 5 or 7 frames


def test_without_held_out_episodes_there_is_no_validation(video_dataset):
    assert (
        policy_job(config(video_dataset, data=DataConfig(video_dataset, held_out=0))).held_out
        is None
    )


def test_one_batch_can_be_learned_by_heart(video_dataset):
    """With fixed noise and times the loss falls by a factor of ten."""
    run = config(video_dataset, optim=OptimConfig(lr=3e-3, warmup=5))
    job = policy_job(run)
    batch = job.batch(0)
    freeze(job.begun(), job.unreached)
    optimiser = make_optimiser(job.model, run.optim)
    losses = [
        update(job.model, optimiser, batch, step=k, device=CPU, clip=1.0).outcome().loss
        for k in range(80)
    ]
    assert losses[-1] < 0.1 * losses[0]


def test_training_leaves_a_policy_that_acts(video_dataset, tmp_path):
    folder = train(config(video_dataset, tmp_path / "run", draws=2))
    policy = Policy.from_pretrained(folder)
    item = {
        "observation.images.top": np.full((24, 32, 3), 99, np.uint8),
        "observation.images.wrist": np.full((24, 32, 3), 99, np.uint8),
        "observation.state": np.zeros(3, np.float32),
        "task": "push the red cube",
    }
    chunk = policy.act(item)
    assert chunk.shape == (4, 2)
    assert np.isfinite(chunk).all()
    inside = Policy.from_pretrained(tmp_path / "run/checkpoints/4/policy")
    np.testing.assert_array_equal(inside.act(item), chunk)


def test_a_policy_resumes_exactly(video_dataset, tmp_path):
    optim = OptimConfig(lr=1e-3, warmup=2, decay_steps=6)
    fields = {"optim": optim, "accumulate": 2, "log_every": 1}
    train(config(video_dataset, tmp_path / "whole", steps=6, **fields))
    train(config(video_dataset, tmp_path / "parts", steps=3, **fields))
    train(config(video_dataset, tmp_path / "parts", steps=6, **fields), resume=True)
    whole, parts = (
        Policy.from_pretrained(tmp_path / name / "policy").model.state_dict()
        for name in ("whole", "parts")
    )
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


# --- init -----------------------------------------------------------------------------------------


def started(**fields) -> Model:
    """The model that such a run starts from."""
    run = config(Path("unused"), **fields)
    with torch.device("meta"):
        model = build(run.model)
    begin(model, policy_start(run, model)(model), CPU)
    return model


def test_a_paligemma_fills_the_backbone_and_leaves_the_expert_random(tmp_path):
    pretrained = PaliGemma(PI0_TINY.backbone)
    torch.nn.init.normal_(pretrained.projector.get_parameter("weight"))
    save_pretrained(pretrained, Tokenizer.small(), tmp_path)
    random, model = started(), started(init=tmp_path)
    for name, p in pretrained.named_parameters():
        assert torch.equal(model.backbone.get_parameter(name), p)
    for name, p in model.expert.named_parameters():
        assert torch.equal(p, random.expert.get_parameter(name))


def test_parts_can_start_anew_beside_others_that_do_not(tmp_path):
    pretrained = PaliGemma(PI0_TINY.backbone)
    save_pretrained(pretrained, Tokenizer.small(), tmp_path)
    random, model = started(), started(init=tmp_path, fresh=("backbone.vision",))
    for name, p in model.backbone.vision.named_parameters():
        assert torch.equal(p, random.backbone.vision.get_parameter(name))
    for name, p in pretrained.language.named_parameters():
        assert torch.equal(model.backbone.language.get_parameter(name), p)
    with pytest.raises(ValueError, match=r"no parameter under 'backbone\.visoin'; did you mean"):
        started(init=tmp_path, fresh=("backbone.visoin",))


def test_a_policy_fills_the_whole_model(video_dataset, tmp_path):
    job = policy_job(config(video_dataset))
    job.save(job.begun(), tmp_path)
    job = policy_job(config(video_dataset, init=tmp_path, seed=9))
    job.begun()
    saved = Policy.from_pretrained(tmp_path).model
    for name, p in saved.named_parameters():
        assert torch.equal(job.model.get_parameter(name), p)


def test_an_init_of_other_sizes_is_refused(tmp_path):
    small = replace(PI0_TINY.backbone, vision=replace(PI0_TINY.backbone.vision, depth=2))
    save_pretrained(PaliGemma(small), Tokenizer.small(), tmp_path)
    with pytest.raises(ValueError, match=r"has other sizes than the config's model: .*depth=2"):
        init_weights(Pi0(PI0_TINY), tmp_path)


def test_an_init_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not a model: .*config\.json is missing"):
        init_weights(Pi0(PI0_TINY), tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="has model_type 'bert', expected 'vla-pi0' or"):
        init_weights(Pi0(PI0_TINY), tmp_path)


def test_a_nan_in_the_demonstrations_would_be_named(video_dataset):
    """The dataset check refuses NaN, so it is put in behind its back."""
    job = policy_job(config(video_dataset))
    microbatch = job.batch(0)[0]
    microbatch.inputs[0].actions[1] = math.nan
    optimiser = make_optimiser(job.begun(), OptimConfig())
    with pytest.raises(ValueError, match=r"at step 0 is not finite.*episode \d frame \d"):
        update(job.model, optimiser, [microbatch], step=0, device=CPU).outcome()
