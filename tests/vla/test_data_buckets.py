"""Text in buckets: few shapes, and the loss that there is without."""

import pytest
import torch

from backbone.paligemma import PALIGEMMA_TINY, PaliGemma, TextBatch
from vla.batch import Batch
from vla.config import DataConfig, TrainConfig
from vla.data.buckets import bucketed
from vla.pi0 import PI0_TINY, Pi0

ROOM = 48
LENGTHS = ([3, 5], [8, 1], [9, 2], [16, 4], [17, 30], [31, 32], [2, 2], [47, 48])


def policy_batch(lengths: list[int], columns: int = ROOM) -> Batch:
    generator = torch.Generator().manual_seed(sum(lengths))
    expert, side, rows = PI0_TINY.expert, PI0_TINY.backbone.vision.resolution, len(lengths)
    valid = torch.arange(columns) < torch.tensor(lengths)[:, None]
    return Batch(
        images=torch.randint(0, 256, (rows, 1, 3, side, side), generator=generator).byte(),
        image_valid=torch.ones(rows, 1, dtype=torch.bool),
        tokens=torch.randint(4, 200, (rows, columns), generator=generator) * valid,
        token_valid=valid,
        state=torch.randn(rows, expert.state_dim, generator=generator),
        actions=torch.randn(rows, expert.horizon, expert.action_dim, generator=generator),
        action_valid=torch.ones(rows, expert.horizon, dtype=torch.bool),
    )


def test_many_lengths_become_few_shapes():
    shapes = [bucketed(policy_batch(lengths), 16).tokens.shape[1] for lengths in LENGTHS]
    assert shapes == [16, 16, 16, 16, 32, 32, 16, 48]
    exact = {bucketed(policy_batch(lengths), 1).tokens.shape[1] for lengths in LENGTHS}
    assert exact == {5, 8, 9, 16, 30, 32, 2, 48}


def test_none_leaves_a_batch_as_it_is():
    batch = policy_batch([3, 5])
    assert bucketed(batch, None) is batch


@pytest.mark.parametrize("lengths", [[3, 5], [17, 30], [47, 48]])
@pytest.mark.parametrize("columns", [48, 50])  # 50: the multiple of 16 above is longer
def test_the_loss_of_actions_is_the_same(lengths, columns):
    torch.manual_seed(0)
    model = Pi0(PI0_TINY).double()
    batch = policy_batch(lengths, columns)
    noise = torch.randn(2, 1, PI0_TINY.expert.horizon, PI0_TINY.expert.action_dim)
    t = torch.full((2, 1), 0.3)
    one, other = model(batch, noise, t), model(bucketed(batch, 16), noise, t)
    assert other.item() == pytest.approx(one.item(), rel=1e-6)


def test_the_loss_of_text_is_the_same_also_where_columns_are_added():
    torch.manual_seed(0)
    model, side = PaliGemma(PALIGEMMA_TINY).eval(), PALIGEMMA_TINY.vision.resolution
    valid = torch.arange(24) < torch.tensor([[20], [11]])
    batch = TextBatch(
        images=torch.zeros(2, 1, 3, side, side, dtype=torch.uint8),
        image_valid=torch.ones(2, 1, dtype=torch.bool),
        tokens=torch.randint(4, 200, (2, 24)) * valid,
        token_valid=valid,
        suffix=valid & (torch.arange(24) >= 6),
    )
    longer = bucketed(batch, 32)
    assert longer.tokens.shape == (2, 32)
    assert longer.counted is None
    assert not longer.token_valid[:, 24:].any()
    assert model(longer).item() == pytest.approx(model(batch).item(), rel=1e-5)


@pytest.mark.slow
def test_a_policys_batches_come_in_buckets(image_dataset, tmp_path):
    config = TrainConfig(
        output_dir=tmp_path,
        steps=1,
        batch_size=4,
        model=PI0_TINY,
        data=DataConfig(root=image_dataset, allow_short_episodes=True, held_out=0),
        text_bucket=8,
    )
    job = config.job()
    batches = [job.batch(step)[0].inputs[0] for step in range(8)]
    assert {b.tokens.shape[1] % 8 for b in batches} == {0}
    assert max(b.tokens.shape[1] for b in batches) < 48
    with pytest.raises(ValueError, match="text_bucket is 0; give tokens, 1 or more"):
        TrainConfig(
            output_dir=tmp_path,
            steps=1,
            batch_size=1,
            model=PI0_TINY,
            data=config.data,
            text_bucket=0,
        )
