"""The one mask rule, drawn out: rows are queries, columns keys, 1 = may attend."""

import pytest
import torch

from backbone.masks import block_ids, block_mask, positions


def picture(mask: torch.Tensor) -> list[str]:
    return ["".join("1" if seen else "." for seen in row) for row in mask]


def draw(blocks: list[int], valid: list[int] | None = None) -> list[str]:
    block = torch.tensor([blocks])
    seen = torch.ones_like(block) if valid is None else torch.tensor([valid])
    return picture(block_mask(block, block, seen.bool())[0, 0])


def test_causal_mask_picture():
    assert draw([0, 1, 2, 3]) == [
        "1...",
        "11..",
        "111.",
        "1111",
    ]


def test_prefix_lm_mask_picture():
    assert draw([0, 0, 0, 1, 2]) == [
        "111..",
        "111..",
        "111..",
        "1111.",
        "11111",
    ]


def test_pi0_mask_picture():
    # three prefix tokens, the state, three actions
    assert draw([0, 0, 0, 1, 2, 2, 2]) == [
        "111....",
        "111....",
        "111....",
        "1111...",
        "1111111",
        "1111111",
        "1111111",
    ]


def test_padding_is_hidden_from_everyone():
    # a padded prompt token and an absent camera: columns 1 and 3
    assert draw([0, 0, 0, 0, 1, 2, 2], valid=[1, 0, 1, 0, 1, 1, 1]) == [
        "1.1....",
        "1.1....",
        "1.1....",
        "1.1....",
        "1.1.1..",
        "1.1.111",
        "1.1.111",
    ]


def test_cached_decoding_mask_is_the_bottom_of_the_whole_one():
    keys = torch.tensor([[0, 0, 0, 1, 2, 3]])
    valid = torch.tensor([[True, False, True, True, True, True]])
    assert picture(block_mask(keys[:, 4:], keys, valid)[0, 0]) == [
        "1.111.",
        "1.1111",
    ]
    whole = block_mask(keys, keys, valid)
    assert torch.equal(block_mask(keys[:, 4:], keys, valid), whole[:, :, 4:])


def test_actions_on_a_cached_prefix_mask_picture():
    prefix, suffix = torch.zeros(1, 3, dtype=torch.int64), torch.tensor([[1, 2, 2]])
    keys = torch.cat([prefix, suffix], dim=1)
    valid = torch.tensor([[True, True, False, True, True, True]])
    assert picture(block_mask(suffix, keys, valid)[0, 0]) == [
        "11.1..",
        "11.111",
        "11.111",
    ]


@pytest.mark.parametrize("seed", range(5))
def test_block_mask_equals_openpis_cumulative_sum_rule(seed):
    generator = torch.Generator().manual_seed(seed)
    opens = torch.randint(0, 2, (3, 11), generator=generator)
    valid = torch.randint(0, 2, (3, 11), generator=generator).bool()
    block = block_ids(opens)
    mask = block_mask(block, block, valid)
    assert mask.shape == (3, 1, 11, 11)
    for b in range(3):
        for i in range(11):
            for j in range(11):
                opened_by_i, opened_by_j = opens[b, : i + 1].sum(), opens[b, : j + 1].sum()
                expected = bool(opened_by_j <= opened_by_i) and bool(valid[b, j])
                assert mask[b, 0, i, j].item() is expected


def test_positions_skip_padding_on_either_side_and_in_the_middle():
    valid = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 0, 1, 0, 1]]).bool()
    assert positions(valid).tolist() == [[0, 1, 2, 2, 2], [-1, -1, 0, 1, 2], [0, 0, 1, 1, 2]]
    start = torch.tensor([[10], [20], [30]])
    assert positions(valid, start)[:, -1].tolist() == [12, 22, 32]
