"""The other ways to build a PaliGemma, each held against the plain one or drawn out."""

import dataclasses
import json

import pytest
import torch
from torch import Tensor, nn

from backbone.design import Design
from backbone.gemma import Block, set_dropout
from backbone.masks import block_mask, prefix_lm
from backbone.paligemma import PALIGEMMA_TINY, MLPConnector, PaliGemma, PaliGemmaConfig, TextBatch
from backbone.pretrained import load_pretrained, read_config, save_pretrained
from backbone.siglip import SigLIPConfig, raw_patches
from backbone.tokenizer import Tokenizer
from vla.convert import convert

SIDE = PALIGEMMA_TINY.vision.resolution
LENGTHS = (9, 6)  # valid text tokens of each row
ANSWERS = (4, 2)


def built(config: PaliGemmaConfig = PALIGEMMA_TINY, **design) -> PaliGemma:
    torch.manual_seed(0)
    model = PaliGemma(dataclasses.replace(config, design=Design(**design))).eval()
    for part in model.projector.modules():  # a connector that says something
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.2)
    return model


def batch(side: int = SIDE) -> TextBatch:
    generator = torch.Generator().manual_seed(1)
    index = torch.arange(10)
    valid = torch.stack([index < n for n in LENGTHS])
    start = torch.stack([index >= n - a for n, a in zip(LENGTHS, ANSWERS, strict=True)])
    return TextBatch(
        images=torch.rand(2, 2, 3, side, side, generator=generator) * 2 - 1,
        image_valid=torch.tensor([[True, True], [True, False]]),
        tokens=torch.randint(4, 200, (2, 10), generator=generator),
        token_valid=valid,
        suffix=valid & start,
    )


def picture(causal: str) -> list[str]:
    """Two patches, BOS and newline, an answer of two."""
    block = prefix_lm(2, torch.tensor([[False, False, True, True]]), causal)
    mask = block_mask(block, block, torch.ones_like(block, dtype=torch.bool))[0, 0]
    return ["".join("1" if seen else "." for seen in row) for row in mask]


def test_only_the_answer_is_causal_in_paligemma():
    assert picture("answer") == [
        "1111..",
        "1111..",
        "1111..",
        "1111..",
        "11111.",
        "111111",
    ]


def test_a_causal_prompt_sees_all_patches_and_itself_in_order():
    assert picture("text") == [
        "11....",
        "11....",
        "111...",
        "1111..",
        "11111.",
        "111111",
    ]


def test_all_causal_is_a_plain_language_model():
    assert picture("all") == [
        "1.....",
        "11....",
        "111...",
        "1111..",
        "11111.",
        "111111",
    ]


@pytest.mark.parametrize("causal", ["answer", "text", "all"])
def test_answers_decoded_with_a_cache_have_the_logits_of_training(causal):
    model, data = built(causal=causal), batch()
    with torch.no_grad():
        whole = model.logits(data)
        for row, (length, answer) in enumerate(zip(LENGTHS, ANSWERS, strict=True)):
            one = TextBatch(**{k: v[row : row + 1] for k, v in vars(data).items() if v is not None})
            head = length - answer
            _, cache = model.prefill(
                one.images, one.image_valid, one.tokens[:, :head], one.token_valid[:, :head]
            )
            said, _ = model.decode(one.tokens[:, head:length], cache)
            torch.testing.assert_close(said[0], whole[row, head:length], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("causal", "moved"), [("answer", True), ("text", False), ("all", False)])
def test_what_a_prompt_token_sees_depends_on_the_design(causal, moved):
    model, data = built(causal=causal), batch()
    tokens = data.tokens.clone()
    tokens[0, 4] += 1  # the last of the prompt's
    with torch.no_grad():
        before, after = model.logits(data), model.logits(dataclasses.replace(data, tokens=tokens))
    assert torch.equal(before[0, :4], after[0, :4]) is not moved
    assert not torch.equal(before[0, 4], after[0, 4])


@pytest.mark.parametrize(("causal", "moved"), [("answer", True), ("text", True), ("all", False)])
def test_whether_a_patch_sees_those_after_it_depends_on_the_design(causal, moved):
    model, data = built(causal=causal), batch()
    found = []
    for change in (False, True):
        with torch.no_grad():
            x, valid = model.embed_prefix(
                data.images, data.image_valid, data.tokens, data.token_valid
            )
            if change:
                x[:, 3] += 1
            block = prefix_lm(x.shape[1] - 10, data.suffix, causal)
            found.append(model.language(x, block, valid)[0])
    assert torch.equal(found[0][:, :3], found[1][:, :3]) is not moved  # pyright: ignore


def test_windows_are_encoded_by_themselves_one_row_after_the_other():
    model, data = built(windows=2), batch(2 * SIDE)
    assert (model.config.resolution, model.config.image_tokens) == (2 * SIDE, 4 * 16)
    plain = built()
    with torch.no_grad():
        found = model.embed_images(data.images)
        parts = [
            plain.embed_images(data.images[:, :1, :, y : y + SIDE, x : x + SIDE])
            for y in (0, SIDE)
            for x in (0, SIDE)
        ]
        torch.testing.assert_close(found[:, :64], torch.cat(parts, 1))
        assert model.logits(data).shape == (2, 10, PALIGEMMA_TINY.vocab)


def test_detail_is_taken_from_images_and_their_size_kept():
    generator = torch.Generator().manual_seed(2)
    fine = torch.randint(0, 256, (1, 1, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    flat = torch.full_like(fine, 130)
    coarse, plain = built(detail=SIDE // 4), built()
    with torch.no_grad():
        torch.testing.assert_close(coarse.embed_images(flat), plain.embed_images(flat))
        same = built(detail=SIDE)
        torch.testing.assert_close(same.embed_images(fine), plain.embed_images(fine))
        shrunk = fine.float() / 127.5 - 1
        for side in (SIDE // 4, SIDE):
            shrunk = nn.functional.interpolate(shrunk[:, 0], side, mode="bilinear", antialias=True)[
                :, None
            ]
        torch.testing.assert_close(coarse.embed_images(fine), plain.embed_images(shrunk))


def test_without_an_encoder_the_connector_reads_pixels():
    config = dataclasses.replace(PALIGEMMA_TINY, vision=raw_patches(8, SIDE))
    model = built(config)
    assert not list(model.vision.parameters())
    images = batch().images
    with torch.no_grad():
        found = model.embed_images(images)
        weight: Tensor = model.projector.weight  # pyright: ignore
        patch = images[0, 0, :, 8:16, 24:32].flatten()  # the second row's last
        torch.testing.assert_close(found[0, 7], weight @ patch, rtol=1e-4, atol=1e-5)
    assert model(batch()).isfinite()


def test_no_encoder_has_the_width_of_a_patch():
    with pytest.raises(ValueError, match=r"depth is 0, no encoder: its width .* 192, not 64"):
        SigLIPConfig(width=64, depth=0, mlp=0, heads=1, patch=8, resolution=32)


def test_an_mlp_connector_starts_at_zero_too_and_is_what_it_says():
    torch.manual_seed(0)
    model = PaliGemma(dataclasses.replace(PALIGEMMA_TINY, design=Design(connector=24)))
    assert not model.embed_images(batch().images).any()
    connector = built(connector=24).projector
    assert isinstance(connector, MLPConnector)
    x = torch.randn(3, 32)
    hidden = nn.functional.gelu(x @ connector.fc1.weight.T + connector.fc1.bias, approximate="tanh")
    expected = hidden @ connector.fc2.weight.T + connector.fc2.bias
    torch.testing.assert_close(connector(x), expected)


@pytest.mark.parametrize(
    "design",
    [Design(), Design(causal="all", connector=24), Design(windows=2), Design(detail=8)],
)
def test_a_folder_keeps_its_design(design, tmp_path):
    config = dataclasses.replace(PALIGEMMA_TINY, design=design)
    model = PaliGemma(config)
    save_pretrained(model, Tokenizer.small(), tmp_path)
    again, _ = load_pretrained(tmp_path)
    assert again.config == config
    assert all(
        torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True)
    )


def test_a_folder_without_an_encoder_loads(tmp_path):
    config = dataclasses.replace(PALIGEMMA_TINY, vision=raw_patches(8, SIDE))
    save_pretrained(PaliGemma(config), Tokenizer.small(), tmp_path)
    assert load_pretrained(tmp_path)[0].config == config


def test_a_folder_of_before_has_the_plain_design_and_an_unknown_one_is_refused(tmp_path):
    save_pretrained(PaliGemma(PALIGEMMA_TINY), Tokenizer.small(), tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    del values["design"]
    path.write_text(json.dumps(values))
    assert read_config(tmp_path) == PALIGEMMA_TINY
    path.write_text(json.dumps({**values, "design": {"windoes": 2}}))
    with pytest.raises(ValueError, match="has design windoes, known here are causal, connector"):
        read_config(tmp_path)


def test_weights_of_another_connector_are_refused(tmp_path):
    save_pretrained(PaliGemma(PALIGEMMA_TINY), Tokenizer.small(), tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    values["design"]["connector"] = 24
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"missing from the file: projector\.fc1\.bias"):
        load_pretrained(tmp_path)


def test_another_format_that_cannot_say_the_design_is_refused(tmp_path):
    config = dataclasses.replace(PALIGEMMA_TINY, design=Design(causal="text"))
    save_pretrained(PaliGemma(config), Tokenizer.small(), tmp_path / "ours")
    with pytest.raises(ValueError, match=r"as huggingface can't say \({'causal': 'text'}\)"):
        convert(tmp_path / "ours", tmp_path / "theirs", "huggingface")
    convert(tmp_path / "ours", tmp_path / "again", "vla")
    assert read_config(tmp_path / "again") == config


def test_values_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"design\.windows is 0; it must be 1 or more"):
        Design(windows=0)
    with pytest.raises(ValueError, match=r"dropout is 1\.0; it is a share in \[0, 1\)"):
        set_dropout(PaliGemma(PALIGEMMA_TINY), 1.0)


# --- dropout --------------------------------------------------------------------------------------


class Nothing(nn.Module):
    """What dropout does to elements that it drops."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


@pytest.mark.parametrize("post_norms", [False, True])
def test_dropped_branches_leave_the_residual_alone(post_norms):
    """Both sites, and no third: with both branches dropped a block is the identity."""
    config = dataclasses.replace(PALIGEMMA_TINY.language, post_norms=post_norms)
    block = Block(config)
    x = torch.randn(1, 3, 32)
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    cos, sin = torch.ones(1, 1, 3, 8), torch.zeros(1, 1, 3, 8)
    assert not torch.equal(block(x, mask, cos, sin, None)[0], x)
    block.dropout = Nothing()  # pyright: ignore
    assert torch.equal(block(x, mask, cos, sin, None)[0], x)


def test_dropout_acts_in_training_alone_and_is_a_function_of_the_seed():
    model, data = built(), batch()
    plain = model(data)
    set_dropout(model, 0.3)
    assert torch.equal(model(data), plain)  # eval
    model.train()
    losses = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        losses.append(model(data).item())
    assert losses[0] == losses[1] != losses[2]
    set_dropout(model, 0.0)
    state = torch.get_rng_state()
    assert torch.equal(model(data), plain)
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_keeps_the_mean_of_what_a_branch_adds():
    model = built()
    set_dropout(model, 0.25)
    block = model.language.blocks[0]
    assert isinstance(block, Block)
    torch.manual_seed(0)
    kept = block.train().dropout(torch.ones(100_000))
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert kept.mean().item() == pytest.approx(1, abs=0.01)
