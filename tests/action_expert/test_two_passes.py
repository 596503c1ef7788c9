"""Reading the prefix once and attending to its cache is the joint pass, gradients included."""

import dataclasses

import joint
import pytest
import torch
from joint import assert_equal, gradients

from action_expert.flow import interpolate
from backbone.masks import block_mask
from vla.pi0 import PI0_TINY

LAST = f"backbone.language.blocks.{PI0_TINY.backbone.language.depth - 1}"
# Of the backbone's last block only keys and values reach the actions.
WITHOUT_GRADIENT = {
    f"{LAST}.attention.q_proj.weight",
    f"{LAST}.attention.o_proj.weight",
    f"{LAST}.mlp_norm.weight",
    f"{LAST}.mlp.gate_proj.weight",
    f"{LAST}.mlp.up_proj.weight",
    f"{LAST}.mlp.down_proj.weight",
    "backbone.language.norm.weight",
}


@pytest.fixture(params=["model", "model05"])
def either(request):
    """π0, then π0.5."""
    return request.getfixturevalue(request.param)


def test_velocity_of_two_passes_equals_the_joint_pass(model, batch, noise, t):
    with torch.no_grad():
        expected = joint.velocity(model, batch, noise, t)
        ours = model.expert(noise, t, batch.state, model.prefill(batch))
    assert expected.std() > 0.1
    assert_equal(ours, expected)


def test_loss_and_every_gradient_equal_the_joint_pass(model, batch, noise, t):
    expected_loss = joint.loss(model, batch, noise, t)
    loss = model(batch, noise[:, None], t[:, None])
    assert_equal(loss, expected_loss)
    expected = gradients(model, expected_loss)
    ours = gradients(model, loss)
    for name, gradient in expected.items():
        mine = ours[name]
        if mine is None:
            assert gradient is None or not gradient.any(), name
        else:
            assert gradient is not None, name
            assert gradient.any(), name
            assert_equal(mine, gradient, name)


def test_exactly_the_dead_parameters_of_the_last_block_get_no_gradient(model, batch, noise, t):
    ours = gradients(model, model(batch, noise[:, None], t[:, None]))
    assert {name for name, gradient in ours.items() if gradient is None} == WITHOUT_GRADIENT


def test_sampling_equals_the_joint_pass_at_every_step(either, batch, noise):
    x = noise
    with torch.no_grad():
        for k in range(10):
            now = torch.full((3,), 1 - k / 10, dtype=torch.float64)
            x = x - 0.1 * joint.velocity(either, batch, x, now)
    assert_equal(either.sample_actions(batch, noise, steps=10), x)


def test_draws_that_share_a_prefix_equal_separate_ones(either, batch, noise, t):
    draws = torch.stack([noise, noise.flip(1), -noise], dim=1)
    times = torch.stack([t, t.flip(0), t / 2], dim=1)
    together = either(batch, draws, times)
    apart = [either(batch, draws[:, k : k + 1], times[:, k : k + 1]) for k in range(3)]
    assert_equal(together, torch.stack(apart).mean())


def test_what_absent_cameras_and_padded_tokens_hold_does_not_change_actions(model, batch, noise):
    expected = model.sample_actions(batch, noise, steps=3)
    images = torch.where(batch.image_valid[:, :, None, None, None], batch.images, 0.7)
    tokens = torch.where(batch.token_valid, batch.tokens, 77)
    other = dataclasses.replace(batch, images=images, tokens=tokens)
    assert not torch.equal(other.tokens, batch.tokens)
    assert_equal(model.sample_actions(other, noise, steps=3), expected)


def test_padding_does_not_change_actions(model, batch, noise):
    padded = model.sample_actions(batch, noise, steps=3)
    for row in range(3):
        one, cameras, tokens = slice(row, row + 1), batch.image_valid[row], batch.token_valid[row]
        alone = dataclasses.replace(
            batch,
            images=batch.images[one, cameras],
            image_valid=batch.image_valid[one, cameras],
            tokens=batch.tokens[one, tokens],
            token_valid=batch.token_valid[one, tokens],
            state=batch.state[one],
        )
        assert_equal(model.sample_actions(alone, noise[one], steps=3), padded[one])


def test_real_cameras_prompts_states_and_times_do_change_actions(model, batch, noise, t):
    with torch.no_grad():
        base = model.expert(noise, t, batch.state, model.prefill(batch))
        for change in (
            {"images": batch.images.flip(1)},
            {"tokens": batch.tokens.flip(1)},
            {"token_valid": torch.ones_like(batch.token_valid)},
            {"image_valid": torch.ones_like(batch.image_valid)},
            {"state": torch.zeros_like(batch.state)},
        ):
            other = dataclasses.replace(batch, **change)
            moved = model.expert(noise, t, other.state, model.prefill(other)) - base
            assert moved.abs().max() > 1e-3 * base.std(), change.keys()
        moved = model.expert(noise, t + 0.01, batch.state, model.prefill(batch)) - base
        assert moved.abs().max() > 1e-3 * base.std()


def test_steps_past_an_episodes_end_do_not_train(model, batch, noise, t):
    expected = model(batch, noise[:, None], t[:, None])
    # Other actions there, and the noise that leaves x_t, which the network reads, as it was.
    actions = torch.where(batch.action_valid[..., None], batch.actions, 100.0)
    ratio = ((1 - t) / t)[:, None, None]
    late = noise - ratio * (actions - batch.actions)
    torch.testing.assert_close(interpolate(actions, late, t), interpolate(batch.actions, noise, t))
    moved = dataclasses.replace(batch, actions=actions)
    assert_equal(model(moved, late[:, None], t[:, None]), expected)


def test_detached_cache_leaves_the_backbone_without_gradient(model, batch, noise, t):
    velocity = model.expert(noise, t, batch.state, model.prefill(batch).detach())
    ours = gradients(model, velocity.square().mean())
    assert all(g is None for name, g in ours.items() if name.startswith("backbone."))
    assert all(g is not None for name, g in ours.items() if name.startswith("expert."))


def test_the_suffix_mask_is_the_bottom_of_pi0s(model, batch, noise, t):
    cache = model.prefill(batch)
    block = cache.next_block + torch.tensor([[0, 1, 1, 1, 1]])
    keys = torch.cat([cache.block, block], dim=1)
    valid = torch.cat([cache.valid, torch.ones_like(block).bool()], dim=1)
    row = block_mask(block, keys, valid)[2, 0].int()
    patches = PI0_TINY.backbone.vision.tokens
    assert row[:, : 2 * patches].all()
    tail = ["".join(map(str, r)) for r in row[:, 2 * patches :].tolist()]
    assert tail == ["11000010000", *["11000011111"] * 4]


def test_a_loss_without_actions_is_refused(model, batch):
    with pytest.raises(ValueError, match="a loss needs actions"):
        model(dataclasses.replace(batch, actions=None))
