"""Loads a PaliGemma in a process of its own and prints what that took, as JSON.

python loading.py PATH DTYPE [--from-disk] → {"bytes": of the weights, "peak": above the start,
"loaded": seconds until the model is there, "seconds": until every weight was read from where it
stands, "reading": seconds that reading the files once takes}. --from-disk: the files leave the page
cache before each of the two, as on a machine that has not seen them yet.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch

from backbone.paligemma import PALIGEMMA_TINY, PaliGemma
from backbone.pretrained import load_model


def memory(name: str) -> int:
    """Of this process, in bytes: VmRSS, what it holds; VmHWM, the most that it has held."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(f"{name}:")[1].split()[0])


def files_of(path: Path) -> list[Path]:
    return [path] if path.is_file() else list(path.glob("*.safetensors"))


def reading(path: Path) -> float:
    start = time.perf_counter()
    buffer = memoryview(bytearray(1 << 24))
    for file in files_of(path):
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass
    return time.perf_counter() - start


def forget(path: Path) -> None:
    """Put what the page cache holds of these files out of it."""
    for file in files_of(path):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())  # a page that is not written yet stays
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main(path: Path, dtype: str, from_disk: bool) -> None:
    if from_disk:
        forget(path)
    once = reading(path)
    if from_disk:
        forget(path)
    with torch.device("meta"):
        PaliGemma(PALIGEMMA_TINY)  # torch imports much for the first random number there
    before = memory("VmRSS")
    start = time.perf_counter()
    model = load_model(path, dtype=dtype)
    loaded = time.perf_counter() - start
    for parameter in model.parameters():
        parameter.detach().flatten().view(torch.uint8)[:: os.sysconf("SC_PAGESIZE")].max()
    seconds = time.perf_counter() - start
    size = sum(p.nbytes for p in model.parameters())
    peak = memory("VmHWM") - before
    times = {"loaded": loaded, "seconds": seconds, "reading": once}
    print(json.dumps({"bytes": size, "peak": peak, **times}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], "--from-disk" in sys.argv)
