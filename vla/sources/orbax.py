"""openpi's JAX parameters: an orbax checkpoint, read with tensorstore and without JAX.

<checkpoint>/params/    manifest.ocdbt  _METADATA  d/  ocdbt.process_0/ …

Every array has a name like `params.PaliGemma.llm.embedder.input_embedding.value`; the first and, in
checkpoints that training wrote, the last part are the wrapping. What openpi saves there is the
moving average of the weights where the run had one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from backbone.sources.headers import Tensor

MANIFEST, METADATA = "manifest.ocdbt", "_METADATA"


class Orbax:
    """An opened checkpoint: `tensors` from its headers, `read` for one array at a time.

    path: the folder with manifest.ocdbt. Names are openpi's paths, joined by `/`, unwrapped.
    Raises ImportError without tensorstore, ValueError if the checkpoint is not whole.
    """

    def __init__(self, path: Path):
        self.path = path
        self._ts = _tensorstore()
        self._names: dict[str, str] = {}
        self.tensors: dict[str, Tensor] = {}
        try:
            self._open()
        except ValueError as error:  # what tensorstore raises for any damage
            raise ValueError(f"{path} is not a whole orbax checkpoint ({error})") from error
        if not self.tensors:
            raise ValueError(f"{path} holds no arrays; give a folder that openpi's training wrote")

    def read(self, name: str) -> np.ndarray:
        """One array; bfloat16 comes as tensorstore gives it, with ml_dtypes' dtype."""
        kvstore = {**self._kvstore(), "path": f"{self._names[name]}/"}
        try:
            store = self._ts.open({"driver": self._driver, "kvstore": kvstore}, read=True).result()
            return store.read().result()
        except ValueError as error:
            raise ValueError(
                f"{self.path}: {name} cannot be read ({error}); copy the checkpoint again"
            ) from error

    def _open(self) -> None:
        files = [
            key.decode() for key in self._ts.KvStore.open(self._kvstore()).result().list().result()
        ]
        self._driver = "zarr3" if any(f.endswith("/zarr.json") for f in files) else "zarr"
        header = "/zarr.json" if self._driver == "zarr3" else "/.zarray"
        kvstore = self._ts.KvStore.open(self._kvstore()).result()
        headers = [f for f in files if f.endswith(header)]
        for file, read in [(f, kvstore.read(f)) for f in headers]:
            stored = file.removesuffix(header)
            name = unwrap(stored)
            self._names[name] = stored
            self.tensors[name] = _tensor(json.loads(read.result().value))

    def _kvstore(self) -> dict[str, Any]:
        base = f"file://{self.path.resolve()}/"
        if (self.path / MANIFEST).is_file():
            return {"driver": "ocdbt", "base": base}
        return {"driver": "file", "path": f"{self.path.resolve()}/"}


def unwrap(name: str) -> str:
    """`params.PaliGemma.img.head.bias.value` → `PaliGemma/img/head/bias`."""
    parts = name.replace(".", "/").split("/")
    parts = parts[1:] if parts[0] == "params" else parts
    return "/".join(parts[:-1] if parts[-1] == "value" else parts)


def _tensor(header: dict[str, Any]) -> Tensor:
    dtype = header.get("dtype") or header["data_type"]
    name = dtype if dtype.isalpha() or dtype[0].isalpha() else np.dtype(dtype).name
    size = 2 if name == "bfloat16" else np.dtype(name).itemsize
    return Tensor(tuple(header["shape"]), name, size)


def _tensorstore():
    try:
        import tensorstore
    except ImportError as error:
        raise ImportError(
            "openpi's JAX checkpoints are read with tensorstore; "
            "install it: pip install tensorstore"
        ) from error
    return tensorstore
