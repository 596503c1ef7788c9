"""Token ids: PaliGemma's layout, its small stand-in, and plain Gemma vocabularies."""

import io

import pytest
import sentencepiece as spm

from backbone.tokenizer import (
    NUM_LOC,
    NUM_SEG,
    Tokenizer,
    append_loc_and_seg,
    loc_and_seg_pieces,
)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.small()


def plain_model(vocab_size: int = 300, **changes) -> bytes:
    """A SentencePiece model made like Gemma's, without `<loc>` and `<seg>`."""
    model = io.BytesIO()
    options = {
        "pad_id": 0,
        "eos_id": 1,
        "bos_id": 2,
        "unk_id": 3,
        "byte_fallback": True,
        "split_digits": True,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "user_defined_symbols": ["<mask>", "\n"],
    }
    words = ["put the red cup on the blue plate", "open the drawer"] * 20
    spm.SentencePieceTrainer.Train(
        sentence_iterator=iter(words),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        minloglevel=2,
        **(options | changes),
    )
    return model.getvalue()


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.piece(i) for i in tokenizer.encode(text)]


def test_ids_are_laid_out_like_paligemmas(tokenizer):
    assert (tokenizer.pad, tokenizer.eos, tokenizer.bos, tokenizer.unk) == (0, 1, 2, 3)
    assert [tokenizer.piece(i) for i in range(5)] == ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    assert tokenizer.vocab_size == 2176
    assert tokenizer.loc(0) == tokenizer.vocab_size - NUM_LOC - NUM_SEG
    assert tokenizer.seg(0) == tokenizer.vocab_size - NUM_SEG
    assert tokenizer.seg(127) == tokenizer.vocab_size - 1
    assert tokenizer.piece(tokenizer.loc(347)) == "<loc0347>"
    assert tokenizer.piece(tokenizer.seg(93)) == "<seg093>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "put the red square on the blue plate",
            ["put", "▁the", "▁red", "▁square", "▁on", "▁the", "▁blue", "▁plate"],
        ),
        ("caption en", ["caption", "▁en"]),
        ("detect red square ; plate", ["detect", "▁red", "▁square", "▁;", "▁plate"]),
        ("what colour is it?", ["what", "▁colour", "▁is", "▁it", "?"]),
        ("12 3", ["1", "2", "▁", "3"]),
        ("press a button from the top", ["press", "▁a", "▁button", "▁from", "▁the", "▁top"]),
        ("<loc0001><loc1023><seg004> cup", ["<loc0001>", "<loc1023>", "<seg004>", "▁cup"]),
        ("plate\n", ["plate", "\n"]),
    ],
)
def test_common_words_are_one_piece_each(tokenizer, text, expected):
    assert pieces(tokenizer, text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "put the red square on the blue plate",
        "  two spaces  kept ",
        "line\nline\n\nline\n",
        "Grüße, 你好, 🤖 and a\ttab",
        "<loc0001><loc0002><loc0003><loc0004><seg000> cup ; <bos>",
        "",
    ],
)
def test_any_text_survives_the_round_trip(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.unk not in ids
    assert tokenizer.decode(ids) == text


def test_a_prompt_is_bos_text_and_a_newline_of_its_own(tokenizer):
    words = tokenizer.encode("caption en")
    assert tokenizer.prefix("caption en") == [2, *words, tokenizer.newline]
    assert tokenizer.prefix("caption en\n") == [2, *words, tokenizer.newline, tokenizer.newline]
    assert tokenizer.encode("\n") == [tokenizer.newline]
    assert tokenizer.encode("cup", bos=True, eos=True) == [2, *tokenizer.encode("cup"), 1]


def test_special_tokens_in_a_text_are_only_text(tokenizer):
    ids = tokenizer.encode("<bos><eos><pad>")
    assert not {tokenizer.bos, tokenizer.eos, tokenizer.pad} & set(ids)


def test_decoding_leaves_special_tokens_out_unless_asked(tokenizer):
    ids = [2, *tokenizer.encode("red cup"), tokenizer.loc(5), 1, 0, 0]
    assert tokenizer.decode(ids) == "red cup<loc0005>"
    assert tokenizer.decode(ids, skip_special=False) == "<bos>red cup<loc0005><eos><pad><pad>"


def test_a_leading_space_makes_another_token(tokenizer):
    assert pieces(tokenizer, "cup plate") != pieces(tokenizer, " cup plate")


def test_saving_and_loading_keeps_every_id(tokenizer, tmp_path):
    file = tokenizer.save(tmp_path / "policy")
    assert file == tmp_path / "policy" / "tokenizer.model"
    for place in (file, file.parent):
        again = Tokenizer.from_pretrained(place)
        assert again.vocab_size == tokenizer.vocab_size
        assert again.prefix("segment red cup") == tokenizer.prefix("segment red cup")


def test_a_plain_gemma_vocabulary_gets_loc_and_seg_after_its_last_id(tmp_path):
    plain = plain_model()
    base = spm.SentencePieceProcessor(model_proto=plain)
    (tmp_path / "tokenizer.model").write_bytes(plain)
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    assert tokenizer.vocab_size == base.vocab_size() + NUM_LOC + NUM_SEG
    assert tokenizer.loc(0) == base.vocab_size()
    assert tokenizer.encode("the cup") == base.encode("the cup")
    assert tokenizer.encode("<loc0009><seg127>") == [tokenizer.loc(9), tokenizer.seg(127)]
    assert Tokenizer.from_pretrained(tokenizer.save(tmp_path)).vocab_size == tokenizer.vocab_size


def test_paligemmas_own_vocabulary_must_have_its_newline_at_108():
    padding = [f"<unused{i}>" for i in range(103)]
    base = plain_model(420, user_defined_symbols=["<mask>", *padding, "\n"])
    rest = 256000 - spm.SentencePieceProcessor(model_proto=base).vocab_size()
    assert rest > 0
    # Fill up to Gemma's 256000 ids with user-defined pieces in the same wire format.
    filled = base + b"".join(filler(i) for i in range(rest))
    with pytest.raises(ValueError, match="257152 ids but splits text otherwise: 'caption en"):
        Tokenizer(filled)

    shifted = plain_model(420, user_defined_symbols=["<mask>", *padding[1:], "\n"])
    rest = 256000 - spm.SentencePieceProcessor(model_proto=shifted).vocab_size()
    with pytest.raises(ValueError, match=r"another order: expected .*: 108.* found .*: 107"):
        Tokenizer(shifted + b"".join(filler(i) for i in range(rest)), "shifted.model")


def filler(i: int) -> bytes:
    text = f"<filler{i:06d}>".encode()
    body = b"\x0a" + bytes([len(text)]) + text + b"\x18\x04"
    return b"\x0a" + bytes([len(body)]) + body


def test_a_file_that_is_no_vocabulary_is_refused(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"not a model at all")
    with pytest.raises(ValueError, match=r"tokenizer.model is not a SentencePiece model .*small"):
        Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        Tokenizer(b"")


def test_a_folder_without_a_vocabulary_says_what_it_holds(tmp_path):
    (tmp_path / "vocab.txt").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"or tokenizer\.json, but .*only \['vocab\.txt'\]"):
        Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no tokenizer at"):
        Tokenizer.from_pretrained(tmp_path / "nowhere")


def test_other_special_ids_are_refused():
    other = plain_model(pad_id=-1, eos_id=2, bos_id=1, unk_id=0)
    with pytest.raises(ValueError, match=r"expected special ids .* found .*'pad': -1"):
        Tokenizer(other)


def test_missing_and_shuffled_pieces_are_refused():
    with pytest.raises(ValueError, match=r"1 of the pieces .* the first is '\\n'"):
        Tokenizer(plain_model(user_defined_symbols=["<mask>"]))
    some = ["<mask>", "\n", *loc_and_seg_pieces()[:10]]
    with pytest.raises(ValueError, match=r"1142 of the pieces .* the first is '<loc0010>'"):
        Tokenizer(plain_model(user_defined_symbols=some))
    shuffled = ["<mask>", "\n", *reversed(loc_and_seg_pieces())]
    with pytest.raises(ValueError, match=r"<loc0001> has id \d+, out of order"):
        Tokenizer(plain_model(2000, user_defined_symbols=shuffled))


def test_ids_and_indices_outside_the_vocabulary_are_refused(tokenizer):
    with pytest.raises(ValueError, match="token id 2176 is outside this tokenizer's 2176 ids"):
        tokenizer.decode([5, 2176])
    with pytest.raises(ValueError, match="<loc> tokens are numbered 0 to 1023, got 1024"):
        tokenizer.loc(1024)
    with pytest.raises(ValueError, match="<seg> tokens are numbered 0 to 127, got -1"):
        tokenizer.seg(-1)


def test_appending_adds_exactly_the_loc_and_seg_pieces():
    plain = plain_model()
    before = spm.SentencePieceProcessor(model_proto=plain)
    after = spm.SentencePieceProcessor(model_proto=append_loc_and_seg(plain))
    names = [after.id_to_piece(i) for i in range(after.vocab_size())]
    kept = [before.id_to_piece(i) for i in range(before.vocab_size())]
    assert names == kept + loc_and_seg_pieces()
