"""A tokenizer.json gives the ids of Hugging Face's `tokenizers`, and of the .model it came from."""

import json
import random

import pytest
import sentencepiece as spm
from test_tokenizer import filler, plain_model
from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE

from backbone import tokenizer as ours
from backbone.tokenizer import PALIGEMMA_TEXTS, loc_and_seg_pieces
from backbone.tokenizer_json import BYTE, USER_DEFINED, _piece, sentencepiece_model

WORDS = (
    "put the red cup on the blue plate",
    "open the drawer",
    "caption en",
    "detect cat ; dog",
    "segment the cow",
    "where is the cow standing?",
    "pick up 12 blocks!",
    "tab\tnewline\n",
    "naïve café",
    "日本語",
    "🤖 emoji",
    "  spaces   inside ",
    "<html>code</html>",
)


def tokenizer_json(model: bytes, path, *, added: tuple[str, ...] = (), legacy: bool = False):
    """What Hugging Face's converter writes of a SentencePiece model: merges from scores."""
    sp = spm.SentencePieceProcessor(model_proto=model)
    pieces = [sp.id_to_piece(i) for i in range(sp.vocab_size())]
    names = [p if p != "<0x09>" else "\t" for p in pieces] if legacy else pieces
    ids = {piece: i for i, piece in enumerate(names)}
    whole = {i for i, p in enumerate(pieces) if i < 4 or sp.is_byte(i) or p in ("<mask>", "\n")}
    plain = {p for i, p in enumerate(pieces) if i not in whole}
    merges = []
    for piece in sorted(plain, key=lambda p: -sp.get_score(sp.piece_to_id(p))):
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        known = [(a, b) for a, b in splits if a in ids and b in ids]
        merges += sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    tokenizer = Tokenizer(
        BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")  # pyright: ignore
    tokenizer.decoder = decoders.Sequence(  # pyright: ignore
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<pad>", "<eos>", "<bos>", "<unk>"])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in ("<mask>", "\n", *added)])
    tokenizer.save(str(path))
    return tokenizer


def texts():
    rng = random.Random(0)
    letters = "abcdeghiklnoprstuw  \t\n.;?é語🤖0129<>"
    yield from WORDS
    for _ in range(300):
        yield "".join(rng.choices(letters, k=rng.randrange(1, 30)))
        yield " ".join(rng.choices(" ".join(WORDS).split(" "), k=rng.randrange(1, 9)))


@pytest.fixture(scope="module")
def model():
    return plain_model(420, bos_piece="<bos>", eos_piece="<eos>")


@pytest.mark.parametrize("legacy", [False, True])
def test_gemmas_kind_of_file_encodes_as_hugging_face_and_as_its_model(tmp_path, model, legacy):
    theirs = tokenizer_json(model, tmp_path / "tokenizer.json", legacy=legacy)
    tokenizer = ours.Tokenizer.from_pretrained(tmp_path)
    original = ours.Tokenizer(model)
    assert tokenizer.vocab_size == original.vocab_size  # loc and seg are appended to both
    for text in texts():
        ids = tokenizer.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False).ids, text
        assert ids == original.encode(text), text
        assert tokenizer.decode(ids) == text


def test_paligemmas_kind_of_file_has_loc_seg_and_an_image_token(tmp_path, model):
    added = (*loc_and_seg_pieces(), "<image>")
    theirs = tokenizer_json(model, tmp_path / "tokenizer.json", added=added)
    tokenizer = ours.Tokenizer.from_pretrained(tmp_path / "tokenizer.json")
    original = ours.Tokenizer(model)
    assert tokenizer.vocab_size == original.vocab_size
    text = "detect cup <loc0012><loc1023><seg007> ; plate"
    assert tokenizer.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    again = ours.Tokenizer.from_pretrained(tokenizer.save(tmp_path / "saved"))
    assert again.encode(text) == tokenizer.encode(text) == original.encode(text)


def test_the_model_of_a_folder_goes_before_its_json(tmp_path, model):
    (tmp_path / "tokenizer.json").write_text("{}")
    ours.Tokenizer(model).save(tmp_path)
    assert ours.Tokenizer.from_pretrained(tmp_path).vocab_size > 1000


def test_files_of_another_kind_are_refused(tmp_path, model):
    path = tmp_path / "tokenizer.json"
    tokenizer_json(model, path)
    values = json.loads(path.read_text())

    def refused(said, **changes):
        path.write_text(json.dumps({**values, **changes}))
        with pytest.raises(ValueError, match=said):
            ours.Tokenizer.from_pretrained(tmp_path)

    words = values["model"] | {"type": "WordLevel"}
    refused("expected BPE with byte fallback, found 'WordLevel'", model=words)
    refused("expected spaces replaced by ▁", normalizer={"type": "Lowercase"})
    hole = [{"content": "far", "id": 9999, "special": False}]
    refused("not numbered one by one", added_tokens=hole)
    names = {**values["model"]["vocab"], "<pad>": 1, "<eos>": 0}
    others = [t for t in values["added_tokens"] if t["content"] not in ("<pad>", "<eos>")]
    refused("ids 0 to 3 to be", model=values["model"] | {"vocab": names}, added_tokens=others)
    path.write_text("not JSON")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer\.json of Gemma's"):
        sentencepiece_model(path)


def test_paligemmas_own_vocabulary_splits_known_texts_as_it_should():
    """Ids of Gemma's vocabulary for the words of a few texts, everything else filled up."""
    words = {108: "\n", 21209: "caption", 659: "▁en", 13072: "answer", 7890: "▁Where", 603: "▁is"}
    words |= {573: "▁the", 13910: "▁cow", 9980: "▁standing", 235336: "?", 39208: "detect"}
    words |= {4401: "▁cat", 2161: "▁;", 5929: "▁dog", 235248: "▁"}
    words |= {18075: "pick", 908: "▁up", 3118: "▁red", 3963: "▁block"}
    start = plain_model(300, user_defined_symbols=["<mask>"])
    sp = spm.SentencePieceProcessor(model_proto=start)
    special, tail = _until_pieces(start)
    kinds = [sp.id_to_piece(i) for i in range(4, sp.vocab_size()) if sp.is_byte(i)]
    bytes_at = iter(enumerate(kinds, 200_000))
    words |= dict(bytes_at)

    def piece(words, i):
        if i not in words:
            return filler(i)
        return _piece(words[i], 0.0, BYTE if words[i].startswith("<0x") else USER_DEFINED)

    def vocabulary(words):
        return special + b"".join(piece(words, i) for i in range(4, 256_000)) + tail

    tokenizer = ours.Tokenizer(vocabulary(words))
    for text, ids in PALIGEMMA_TEXTS.items():
        assert tokenizer.encode(text) == list(ids)
    swapped = words | {4401: "▁dog", 5929: "▁cat"}
    with pytest.raises(ValueError, match=r"otherwise: 'detect cat ; dog\\n' is \[39208, 5929"):
        ours.Tokenizer(vocabulary(swapped))


def _until_pieces(model: bytes) -> tuple[bytes, bytes]:
    """A serialised model's first four pieces, and what follows all of its pieces."""
    at, ends = 0, []
    while model[at] == 0x0A:
        at += 2 + model[at + 1]
        ends.append(at)
    return model[: ends[3]], model[at:]
