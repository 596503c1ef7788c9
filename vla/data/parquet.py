"""Columns of parquet files that may be damaged, and what is wrong with them in one line.

For the look over a dataset; what is whole is read through LeRobot.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq


def require_columns(path: Path, names: Iterable[str]) -> None:
    """Look at the footer of a parquet file.

    Raises FileNotFoundError if there is no file, ValueError if it is not whole, is empty or lacks a
    column; each names the file and says what to do.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; copy the dataset again")
    try:
        footer = pq.read_metadata(path)
    except pa.ArrowException as error:
        raise ValueError(f"{path} is not a whole parquet file ({error}); copy it again") from error
    if not footer.num_rows:
        raise ValueError(f"{path} has no rows; copy it again, or the recording did not finish")
    held = footer.schema.to_arrow_schema().names
    missing = [name for name in names if name not in held]
    if missing:
        raise ValueError(
            f"{path} has no column {missing[0]}, only {', '.join(held)}; copy it again"
        )


def read_column(path: Path, name: str) -> np.ndarray:
    """One column: [rows] of numbers, [rows, D] of vectors.

    Raises as `require_columns`, and ValueError if a row has no value or another length than most.
    """
    require_columns(path, [name])
    try:
        values = pq.read_table(path, columns=[name], memory_map=True).column(name).combine_chunks()
    except pa.ArrowException as error:
        raise ValueError(f"{path} is not a whole parquet file ({error}); copy it again") from error
    if values.null_count:
        row = values.is_null().to_pylist().index(True)
        raise ValueError(f"{path}: {name} has no value in row {row}; record that episode again")
    if isinstance(values, pa.ExtensionArray):  # matrices, once `datasets` has been imported
        values = values.storage
    if not pa.types.is_nested(values.type):
        return values.to_numpy(zero_copy_only=False)
    lengths = pc.call_function("list_value_length", [values]).to_numpy(zero_copy_only=False)
    if len(set(lengths.tolist())) > 1:
        usual = int(np.median(lengths))
        row = int(np.flatnonzero(lengths != usual)[0])
        raise ValueError(
            f"{path}: {name} has {lengths[row]} values in row {row} where others have {usual}; "
            "record that episode again"
        )
    flat = values.flatten()
    if pa.types.is_nested(flat.type):
        return np.array(values.to_pylist())
    return flat.to_numpy(zero_copy_only=False).reshape(len(values), -1)
