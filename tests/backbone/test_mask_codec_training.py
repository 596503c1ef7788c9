"""Training the mask codec: the parts against closed forms, and that the whole of it learns."""

import pytest
import torch
import torch.nn.functional as F
from mask_shapes import shapes

from backbone.mask_codec import SMALL_MASK_CODEC, MaskCodec, MaskCodecConfig, signed
from backbone.mask_codec_training import (
    CodebookAverage,
    codec_loss,
    follow,
    start_codebook,
    train,
    train_step,
)

TINY = MaskCodecConfig(codes=32, code_width=8, widths=(8, 8, 16, 32), residual_blocks=0)


def random_batches(size):
    generator = torch.Generator().manual_seed(1)
    masks = shapes(2048, seed=0)
    while True:
        yield masks[torch.randint(len(masks), (size,), generator=generator)]


def trained(config, steps, batch):
    torch.manual_seed(0)
    codec = MaskCodec(config)
    generator = torch.Generator().manual_seed(0)
    losses = list(train(codec, random_batches(batch), steps, generator))
    return codec, losses


@torch.no_grad()
def mean_iou(codec, masks):
    drawn = codec.decode(codec.encode(masks)) > 0.5
    return ((drawn & masks).sum((1, 2)) / (drawn | masks).sum((1, 2))).mean().item()


def test_a_tiny_codec_learns_shapes_in_seconds():
    codec, losses = trained(TINY, steps=130, batch=16)
    unseen = shapes(64, seed=1)
    assert mean_iou(codec, unseen) > 0.75
    assert len(codec.encode(unseen).unique()) > 16
    start, end = (sum(x.reconstruction for x in part) for part in (losses[36:46], losses[-10:]))
    assert end < 0.7 * start


@pytest.mark.slow
def test_the_small_codec_learns_shapes_well():
    codec, _ = trained(SMALL_MASK_CODEC, steps=300, batch=32)
    assert mean_iou(codec, shapes(64, seed=1)) > 0.9


def test_gradients_pass_the_codes_and_draw_the_encoder_towards_them():
    """With codes as if not there, the decoder's gradient reaches the features unchanged."""
    torch.manual_seed(0)
    codec = MaskCodec(TINY)
    masks = shapes(4, seed=0)
    features = codec.features(masks).detach().requires_grad_()
    codes = codec.nearest(features.detach())
    codec_loss(codec, masks, features, codes, commitment=0.25).total.backward()

    vectors = codec.codebook[codes].requires_grad_()
    F.mse_loss(codec.draw(vectors), signed(masks)).backward()
    assert vectors.grad is not None
    pull = 0.25 * 2 * (features - vectors).detach() / features.numel()
    torch.testing.assert_close(features.grad, vectors.grad + pull)


def test_codes_follow_the_features_that_chose_them_and_idle_ones_move():
    codec = MaskCodec(MaskCodecConfig(codes=3, code_width=2, widths=(1, 1, 1, 1)))
    codec.codebook.copy_(torch.tensor([[0.0, 0.0], [10.0, 10.0], [99.0, 99.0]]))
    generator = torch.Generator().manual_seed(0)
    average = CodebookAverage(
        torch.tensor([1.0, 1.0, 0.01]), torch.tensor([[0.0, 0], [4, 4], [1, 1]])
    )
    features = torch.tensor([[1.0, 2.0], [3.0, 2.0]])
    after = follow(codec, average, features, torch.tensor([0, 0]), 0.5, generator)
    # Code 0: count 0.5·1 + 0.5·2, sum 0.5·0 + 0.5·(4, 4). Code 1 keeps its mean. Code 2 is idle.
    torch.testing.assert_close(codec.codebook[0], torch.tensor([2.0, 2.0]) / 1.5)
    torch.testing.assert_close(codec.codebook[1], torch.tensor([4.0, 4.0]))
    assert codec.codebook[2].tolist() in features.tolist()
    torch.testing.assert_close(after.count, torch.tensor([1.5, 0.5, 1.0]))


def test_a_step_leaves_the_codebook_consistent_and_the_optimiser_out_of_it():
    codec = MaskCodec(TINY)
    assert "codebook" not in dict(codec.named_parameters())
    optimizer = torch.optim.Adam(codec.parameters())
    generator = torch.Generator().manual_seed(0)
    masks = shapes(8, seed=0)
    average = start_codebook(codec, masks, generator)
    loss, average = train_step(codec, optimizer, average, masks, generator)
    assert loss.total > loss.reconstruction > 0
    assert 1 <= loss.used <= 32
    torch.testing.assert_close(codec.codebook, average.total / average.count[:, None])


def test_training_says_when_it_cannot_be_done():
    codec = MaskCodec(TINY)
    generator = torch.Generator().manual_seed(0)
    masks = [shapes(1, seed=0)] * 2
    with pytest.raises(ValueError, match="asked for 3 steps, but the masks ended after 2 batches"):
        list(train(codec, masks, 3, generator, warm_up=1))
    with pytest.raises(ValueError, match="3 steps, of which 40 without codes"):
        list(train(codec, masks, 3, generator))


def test_training_takes_no_more_masks_than_it_has_steps():
    masks = iter([shapes(1, seed=i) for i in range(3)])
    generator = torch.Generator().manual_seed(0)
    losses = list(train(MaskCodec(TINY), masks, 2, generator, warm_up=1))
    assert [loss.used > 0 for loss in losses] == [False, True]
    assert len(list(masks)) == 1
