"""Gemma 2's window, an option: even blocks look back over so many tokens, odd ones over all."""

from dataclasses import replace

import pytest
import torch
from hf_reference import TOY2, our_name
from transformers import Gemma2Config, Gemma2Model

from backbone.gemma import Gemma, TextEmbedding
from backbone.weights import load_tensors

WINDOW = 3
SIZES = replace(TOY2.language, depth=4, window=WINDOW)


def drawn(mask: torch.Tensor) -> list[str]:
    return ["".join("#" if seen else "." for seen in row) for row in mask]


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    config = Gemma2Config.from_dict(
        {
            "vocab_size": 160,
            "hidden_size": SIZES.width,
            "intermediate_size": SIZES.mlp,
            "num_hidden_layers": SIZES.depth,
            "num_attention_heads": SIZES.heads,
            "num_key_value_heads": SIZES.kv_heads,
            "head_dim": SIZES.head_dim,
            "query_pre_attn_scalar": SIZES.head_dim,
            "attn_logit_softcapping": SIZES.attention_cap,
            "sliding_window": WINDOW,
            "attn_implementation": "eager",
        }
    )
    model = Gemma2Model(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:  # zeros would hide which norm is which
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def ours(theirs):
    tensors = {our_name(f"language_model.{k}", TOY2): v for k, v in theirs.state_dict().items()}
    embedding = TextEmbedding(160, SIZES.width)
    load_tensors(embedding, {"weight": tensors.pop("embedding.weight")}, source="toy Gemma 2")
    language = Gemma(SIZES)
    own = {name.removeprefix("language."): value for name, value in tensors.items()}
    load_tensors(language, own, source="toy Gemma 2")
    return embedding, language.eval()


def test_it_is_drawn_over_text_and_over_a_prefix():
    language = Gemma(SIZES)
    valid = torch.ones(1, 6, dtype=torch.bool)
    x = torch.zeros(1, 6, SIZES.width)
    (near, every), _, _ = language.geometry(x, torch.arange(6)[None], valid, None)
    assert drawn(near[0, 0]) == ["#.....", "##....", "###...", ".###..", "..###.", "...###"]
    assert drawn(every[0, 0]) == ["#.....", "##....", "###...", "####..", "#####.", "######"]
    prefix = torch.tensor([[0, 0, 0, 0, 1, 2]])
    (near, _), _, _ = language.geometry(x, prefix, valid, None)
    assert drawn(near[0, 0]) == ["####.."] * 4 + ["..###.", "...###"]


def test_hidden_states_of_text_are_hugging_faces(theirs, ours):
    embedding, language = ours
    tokens = torch.randint(0, 160, (2, 9), generator=torch.Generator().manual_seed(1))
    valid = torch.ones_like(tokens, dtype=torch.bool)
    with torch.no_grad():
        expected = theirs(input_ids=tokens).last_hidden_state
        hidden, _ = language(embedding(tokens), torch.arange(9).expand_as(tokens), valid)
        wide = Gemma(replace(SIZES, window=None))
        wide.load_state_dict(language.state_dict())
        unlimited, _ = wide(embedding(tokens), torch.arange(9).expand_as(tokens), valid)
    torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(unlimited[:, :WINDOW], hidden[:, :WINDOW])
    assert (unlimited - hidden).abs().max() > 0.01


def test_decoding_token_by_token_gives_the_same(ours):
    embedding, language = ours
    tokens = torch.randint(0, 160, (1, 9), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        whole, _ = language(embedding(tokens), torch.arange(9)[None], torch.ones(1, 9).bool())
        cache, rows = None, []
        for i in range(9):
            block = torch.tensor([[i]])
            row, new = language(
                embedding(tokens[:, i : i + 1]), block, torch.ones(1, 1).bool(), cache
            )
            cache = new if cache is None else cache.append(new)
            rows.append(row)
    torch.testing.assert_close(torch.cat(rows, 1), whole, atol=1e-5, rtol=1e-5)
