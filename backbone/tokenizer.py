"""Text to token ids and back, with the id layout of PaliGemma.

    0 pad  1 eos  2 bos  3 unk  4 <mask>  …  text pieces  …  <loc0000>–<loc1023>  <seg000>–<seg127>

The vocabulary is a SentencePiece model: byte fallback (no text is unknown), digits one by one, no
normalisation and no dummy prefix, so "caption" and " caption" are different tokens. A newline is a
piece of its own; PaliGemma uses it to separate the prompt from the answer.

A `<loc>` names one of 1024 bins along an image side, a `<seg>` one of 128 mask codes.
"""

import struct
from collections.abc import Iterable
from pathlib import Path

import sentencepiece as spm

from backbone.tokenizer_json import FILE_NAME as JSON_NAME
from backbone.tokenizer_json import sentencepiece_model

NUM_LOC = 1024  # PaliGemma paper (arXiv 2407.07726), section 3.2
NUM_SEG = 128

PALIGEMMA_VOCAB_SIZE = 257152

SMALL_MODEL = Path(__file__).parent / "assets" / "small_tokenizer.model"
FILE_NAME = "tokenizer.model"

# The ids that PaliGemma's embedding table is trained for.
SPECIAL_IDS = {"pad": 0, "eos": 1, "bos": 2, "unk": 3}
PALIGEMMA_IDS = {"\n": 108, "<loc0000>": 256000, "<seg000>": 257024}
PALIGEMMA_TEXTS = {
    "caption en\n": (21209, 659, 108),
    "answer en Where is the cow standing?\n": (
        *(13072, 659, 7890, 603, 573, 13910, 9980, 235336, 108),
    ),
    "detect cat ; dog\n": (39208, 4401, 2161, 5929, 108),
    "caption <loc0347><loc0553>": (21209, 235248, 256347, 256553),
    "pick up the red block": (18075, 908, 573, 3118, 3963),
}


class Tokenizer:
    """A SentencePiece vocabulary that ends in the 1024 `<loc>` and 128 `<seg>` pieces.

    Attributes:
        vocab_size: number of ids, `<loc>` and `<seg>` included.
        pad, eos, bos, unk: ids of the special tokens, always 0, 1, 2, 3.
        newline: id of "\\n", which separates prompt and answer (108 in PaliGemma).
    """

    pad = SPECIAL_IDS["pad"]
    eos = SPECIAL_IDS["eos"]
    bos = SPECIAL_IDS["bos"]
    unk = SPECIAL_IDS["unk"]

    def __init__(self, model: bytes, source: str = "the given bytes"):
        """Reads a serialised SentencePiece model; `source` names it in errors.

        A plain Gemma vocabulary, as Hugging Face folders of PaliGemma hold it, gets its `<loc>` and
        `<seg>` pieces appended, which is how PaliGemma's own ids came about.

        Raises:
            ValueError: not a SentencePiece model, or its ids are not laid out like PaliGemma's.
        """
        self._sp = _parse(model, source)
        if self._sp.piece_to_id("<loc0000>") == self.unk:
            model = append_loc_and_seg(model)
            self._sp = _parse(model, source)
        self._model = model
        self.vocab_size: int = self._sp.vocab_size()
        self.newline: int = self._sp.piece_to_id("\n")
        self._loc0: int = self._sp.piece_to_id("<loc0000>")
        self._seg0: int = self._sp.piece_to_id("<seg000>")
        self._check_ids(source)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "Tokenizer":
        """Reads `path`, a SentencePiece .model file, a tokenizer.json of Gemma's kind, or a folder
        with `tokenizer.model` or else `tokenizer.json`.

        Raises:
            FileNotFoundError: nothing there; the message says what the folder holds instead.
            ValueError: as in `Tokenizer(model)`, or the tokenizer.json is of another kind.
        """
        path = Path(path)
        file = path / FILE_NAME if path.is_dir() else path
        if path.is_dir() and not file.is_file() and (path / JSON_NAME).is_file():
            file = path / JSON_NAME
        if not file.is_file():
            raise FileNotFoundError(_not_found(path, file))
        if file.suffix == ".json":
            return cls(sentencepiece_model(file), str(file))
        return cls(file.read_bytes(), str(file))

    @classmethod
    def small(cls) -> "Tokenizer":
        """The small English vocabulary that ships with this package (see backbone/assets)."""
        return cls.from_pretrained(SMALL_MODEL)

    def save(self, folder: str | Path) -> Path:
        """Writes `tokenizer.model` into `folder` (made if absent) and returns the file's path."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / FILE_NAME
        file.write_bytes(self._model)
        return file

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        """The ids of `text` as it stands: nothing is stripped, no newline added."""
        ids = list(self._sp.encode(text))
        return [self.bos] * bos + ids + [self.eos] * eos

    def prefix(self, text: str) -> list[int]:
        """A prompt: bos, the ids of `text`, and the newline that ends every PaliGemma prompt.

        The newline is a token of its own even where `text` ends in one ("\\n\\n" is another piece).
        """
        return [*self.encode(text, bos=True), self.newline]

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`; `<loc>` and `<seg>` tokens stay in it.

        Args:
            skip_special: leave out pad, bos and eos; else they read `<pad>`, `<bos>`, `<eos>`.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        text, run = "", []
        for i in map(int, ids):
            if not 0 <= i < self.vocab_size:
                raise ValueError(
                    f"token id {i} is outside this tokenizer's {self.vocab_size} ids; "
                    "decode with the tokenizer that the model was trained with"
                )
            if i in (self.pad, self.bos, self.eos):
                if not skip_special:
                    text += self._sp.decode(run) + self._special_name(i)
                    run = []
            else:
                run.append(i)
        return text + self._sp.decode(run)

    def loc(self, i: int) -> int:
        """The id of `<loc{i:04d}>`, 0 <= i < 1024."""
        return self._loc0 + _index("loc", i, NUM_LOC)

    def seg(self, i: int) -> int:
        """The id of `<seg{i:03d}>`, 0 <= i < 128."""
        return self._seg0 + _index("seg", i, NUM_SEG)

    def piece(self, i: int) -> str:
        """The vocabulary entry of id `i`, "▁" for a space."""
        return self._sp.id_to_piece(i)

    def _special_name(self, i: int) -> str:
        return {self.pad: "<pad>", self.bos: "<bos>", self.eos: "<eos>"}[i]

    def _check_ids(self, source: str) -> None:
        sp = self._sp
        got = {"pad": sp.pad_id(), "eos": sp.eos_id(), "bos": sp.bos_id(), "unk": sp.unk_id()}
        if got != SPECIAL_IDS:
            raise ValueError(f"{source}: expected special ids {SPECIAL_IDS}, found {got}; {HELP}")
        wanted = [*loc_and_seg_pieces(), "\n"]
        missing = [p for p in wanted if sp.piece_to_id(p) == self.unk]
        if missing:
            raise ValueError(
                f"{source}: {len(missing)} of the pieces that PaliGemma needs are missing, "
                f"the first is {missing[0]!r}; {HELP}"
            )
        for first, pieces in ((self._loc0, wanted[:NUM_LOC]), (self._seg0, wanted[NUM_LOC:-1])):
            stray = [p for n, p in enumerate(pieces) if sp.piece_to_id(p) != first + n]
            if stray:
                at = sp.piece_to_id(stray[0])
                raise ValueError(f"{source}: {stray[0]} has id {at}, out of order; {HELP}")
        if self.vocab_size == PALIGEMMA_VOCAB_SIZE:
            got = {p: sp.piece_to_id(p) for p in PALIGEMMA_IDS}
            if got != PALIGEMMA_IDS:
                raise ValueError(
                    f"{source} has PaliGemma's {PALIGEMMA_VOCAB_SIZE} ids in another order: "
                    f"expected {PALIGEMMA_IDS}, found {got}; {HELP}"
                )
            for text, ids in PALIGEMMA_TEXTS.items():
                if (found := tuple(sp.encode(text))) != ids:
                    raise ValueError(
                        f"{source} has PaliGemma's {PALIGEMMA_VOCAB_SIZE} ids but splits text "
                        f"otherwise: {text!r} is {list(found)}, expected {list(ids)}; {HELP}"
                    )


HELP = "give PaliGemma's or Gemma's tokenizer.model, or use Tokenizer.small()"


def loc_and_seg_pieces() -> list[str]:
    """`<loc0000>` … `<loc1023>`, `<seg000>` … `<seg127>`, in the order of their ids."""
    return [f"<loc{i:04d}>" for i in range(NUM_LOC)] + [f"<seg{i:03d}>" for i in range(NUM_SEG)]


def append_loc_and_seg(model: bytes) -> bytes:
    """A serialised SentencePiece model with the `<loc>` and `<seg>` pieces added after its last id.

    Serialised protocol buffers can be concatenated: repeated fields, such as the model's list of
    pieces, are then joined (protobuf.dev, "Encoding", last-one-wins).
    """
    return model + b"".join(_user_defined_piece(p) for p in loc_and_seg_pieces())


def _user_defined_piece(piece: str) -> bytes:
    """`ModelProto.pieces` (field 1) with text (1), score (2, float32) and type (3) USER_DEFINED."""
    text = piece.encode()
    body = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", 0.0) + b"\x18\x04"
    return b"\x0a" + bytes([len(body)]) + body


def _parse(model: bytes, source: str) -> spm.SentencePieceProcessor:
    processor = spm.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except RuntimeError as error:
        raise ValueError(f"{source} is not a SentencePiece model ({error}); {HELP}") from error
    return processor


def _not_found(path: Path, file: Path) -> str:
    if not path.exists():
        return f"no tokenizer at {path}; {HELP}"
    held = sorted(p.name for p in path.iterdir())
    return f"expected {file} or {JSON_NAME}, but {path} holds only {held}; {HELP}"


def _index(kind: str, i: int, count: int) -> int:
    if not 0 <= i < count:
        raise ValueError(f"<{kind}> tokens are numbered 0 to {count - 1}, got {i}")
    return i
