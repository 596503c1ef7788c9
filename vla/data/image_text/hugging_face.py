"""Examples of a Hugging Face dataset: parquet files, folders of pictures, or the Hub.

Read by `datasets`. In memory-mapped files examples are read by number; streamed ones are read in
order, a window of them at a time.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla.data.image_text.example import ImageText
from vla.data.image_text.fields import (
    Renames,
    check_renames,
    example,
    mask_picture,
    picture,
    renamed,
)


@dataclass(frozen=True)
class HuggingFace:
    """path: a folder of pictures (metadata.jsonl or .csv as `imagefolder` describes it), of parquet
    files, one parquet file, or a name on the Hub. name, split: as in `load_dataset`.
    image: the column of the picture, or of a list of them. fields: (our name, theirs) of columns
    with other names, e.g. ("suffix", "text"), ("captions.de", "de").
    streaming: read as it comes, nothing is kept on the disk. Examples are then shuffled within
    `window` alone, all of whose rows are held (not decoded); count: how many there are, None: they
    are counted by reading all once.
    """

    path: str
    split: str = "train"
    name: str | None = None
    image: str = "image"
    fields: tuple[tuple[str, str], ...] = ()
    streaming: bool = False
    window: int = 1000
    count: int | None = None

    def __post_init__(self):
        check_renames(self.fields)
        if self.window < 1:
            raise ValueError(f"window is {self.window}; give 1 example or more")

    def open(self) -> Rows | Stream:
        """Raises ValueError or FileNotFoundError for files that are not there or no dataset, a
        split or a column that it lacks."""
        dataset = self._load()
        where = f"{self.path} ({self.split})"
        columns = dataset.column_names
        if columns is not None:
            self._check_columns(columns, where)
        reader = RowReader(self.image, self.fields, where)
        if not self.streaming:
            return Rows(dataset.with_format(None), reader)
        count = self.count
        if count is None:
            texts = dataset if columns is None else dataset.remove_columns([self.image])
            count = sum(1 for _ in texts)
        return Stream(dataset, reader, self.window, count)

    def _load(self) -> Any:
        from datasets import Image, List, load_dataset
        from datasets.exceptions import DatasetNotFoundError

        path, options = Path(self.path), {"split": self.split, "streaming": self.streaming}
        if path.suffix == ".parquet" and not path.is_file():
            raise FileNotFoundError(f"no parquet file at {path}")
        try:
            if path.is_file():
                files = {self.split: str(path)}
                dataset = load_dataset("parquet", data_files=files, **options)
            else:
                dataset = load_dataset(self.path, self.name, **options)
        except (DatasetNotFoundError, ValueError) as error:  # unknown splits are ValueErrors
            raise ValueError(f"{self.path}: {error}") from error
        features = dataset.features
        if features is not None and self.image in features:
            kind, raw = features[self.image], Image(decode=False)
            if isinstance(kind, List):
                raw = List(raw)
            dataset = dataset.cast_column(self.image, raw)
        return dataset

    def _check_columns(self, columns: list[str], where: str) -> None:
        for name in (self.image, *(theirs for _, theirs in self.fields)):
            if name not in columns:
                raise ValueError(f"{where} has no column {name!r}; it has {', '.join(columns)}")


@dataclass(frozen=True)
class RowReader:
    """A row to an example. image, renames: as in `HuggingFace`."""

    image: str
    renames: Renames
    where: str

    def __call__(self, row: dict[str, Any], index: int) -> ImageText:
        where = f"{self.where}, row {index}"
        stored = row.get(self.image)
        encoded = stored if isinstance(stored, list) else [] if stored is None else [stored]
        pictures = [picture(_bytes(each, where), where) for each in encoded]
        rest = {name: value for name, value in row.items() if name != self.image}
        fields = renamed(rest, self.renames, where)
        if isinstance(fields.get("captions"), dict):  # tables have every language in every row
            given = {lang: texts for lang, texts in fields["captions"].items() if texts}
            fields["captions"] = given
        if isinstance(fields.get("objects"), dict):  # a column of lists, as detection sets have it
            fields["objects"] = _rows_of(fields["objects"])
        return example(
            fields, pictures, where, lambda mask: mask_picture(_bytes(mask, where), where)
        )


@dataclass(frozen=True)
class Rows:
    """A dataset that is mapped into memory."""

    dataset: Any
    reader: RowReader

    @property
    def window(self) -> None:
        """Any order is as good."""

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> ImageText:
        return self.reader(self.dataset[index], index)


class Stream:
    """A dataset that is read in order; the rows of one window are held."""

    def __init__(self, dataset: Any, reader: RowReader, window: int, count: int):
        if count < 1:
            raise ValueError(f"{reader.where} has no examples")
        self.window, self._count = window, count
        self._dataset, self._reader = dataset, reader
        self._first, self._rows, self._rest = -1, [], None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> ImageText:
        if not 0 <= index < self._count:
            raise IndexError(f"example {index} of {self._count}")
        first = index - index % self.window
        if first != self._first:
            if self._rest is None or first != self._first + self.window:
                self._rest = iter(self._dataset.skip(first) if first else self._dataset)
            self._rows = list(itertools.islice(self._rest, self.window))
            self._first = first
        if index - first >= len(self._rows):
            raise ValueError(
                f"{self._reader.where} ended after {first + len(self._rows)} examples, count is "
                f"{self._count}; set count to how many there are"
            )
        return self._reader(self._rows[index - first], index)


def _bytes(stored: Any, where: str) -> bytes:
    """The encoded picture of a column that isn't decoded."""
    if isinstance(stored, bytes):
        return stored
    if isinstance(stored, dict) and (stored.get("bytes") or stored.get("path")):
        return stored.get("bytes") or Path(stored["path"]).read_bytes()
    raise ValueError(f"{where}: expected an encoded picture, got {type(stored).__name__}")


def _rows_of(columns: dict[str, list]) -> list[dict]:
    names = list(columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]
