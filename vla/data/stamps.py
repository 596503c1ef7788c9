"""Tux Paint's stamps: 785 small pictures with captions in up to 77 languages, from Debian.

The package tuxpaint-stamps-default is GPL-2; it is fetched when asked for and never part of this
one. A stamp is a picture on transparent ground and a text file: the English caption, and a line
`de.utf8=…` for each other language.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from backbone import tasks
from vla.data.duplicates import Search, groups, prints

__all__ = ["split_groups", "write_stamps"]

PACKAGE = "tuxpaint-stamps-default"
INSIDE = Path("usr/share/tuxpaint/stamps")
CODES = {"zh": "zh_CN", "no": "nb"}  # PaliGemma's code → Tux Paint's, where they differ
UNSEEN = 0.2  # share of pictures
APT = ("-oAcquire::http::Timeout=20", "-oAcquire::Retries=1", "-oAPT::Sandbox::User=root")


def write_stamps(
    root: Path,
    langs: Sequence[str],
    *,
    deb: Path | None = None,
    size: int = 128,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, int]:
    """Write pictures/, train.jsonl and val.jsonl to the new folder `root`, complete or not at all.

    langs: PaliGemma's codes; a picture that lacks one of them is written without it. deb: the
    package's file; None: fetched by apt-get, which takes Debian or Ubuntu and the network. size:
    longest side of the pictures, which are put on white; smaller ones stay as they are. The split
    is by picture: those that are near each other (`vla.data.duplicates`) are on one side.
    Returns how many pictures each split has. Raises FileExistsError if there is something at
    `root`, ValueError for an unknown language or where the package can't be had.
    """
    for lang in langs:
        tasks.check_language(lang)
    if root.exists():
        raise FileExistsError(f"{root} exists already; delete it or choose another folder")
    partial = root.with_name(f".{root.name}.partial-{os.getpid()}")
    try:
        (partial / "pictures").mkdir(parents=True)
        with tempfile.TemporaryDirectory() as work:
            stamps = _unpacked(deb, Path(work)) / INSIDE
            files = sorted(f for f in stamps.rglob("*.png") if f.with_suffix(".txt").is_file())
            if not files:
                raise ValueError(f"{deb or PACKAGE} holds no stamps under {INSIDE}")
            lines, pictures = [], []
            for file in tqdm(files, "stamps", disable=None if progress else True):
                picture = on_white(file, size)
                name = "-".join(file.relative_to(stamps).parts)
                picture.save(partial / "pictures" / name)
                captions = read_captions(file.with_suffix(".txt"), langs)
                lines.append({"image": f"pictures/{name}", "captions": captions})
                pictures.append(np.asarray(picture))
            shutil.copy(stamps.parents[1] / "doc" / PACKAGE / "copyright", partial / "copyright")
        unseen = split_groups(groups(prints(pictures), Search()), UNSEEN, seed)
        sides = {
            "train": [line for i, line in enumerate(lines) if i not in unseen and line["captions"]],
            "val": [line for i, line in enumerate(lines) if i in unseen and line["captions"]],
        }
        for name, side in sides.items():
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in side)
            (partial / f"{name}.jsonl").write_text(text, encoding="utf-8")
        partial.rename(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {name: len(side) for name, side in sides.items()}


def read_captions(file: Path, langs: Sequence[str]) -> dict[str, str]:
    """A stamp's captions in those of `langs` that it has."""
    first, *rest = file.read_text(encoding="utf-8").split("\n")
    found = {"en": first.strip()}
    for line in rest:
        code, equals, text = line.partition(".utf8=")
        if equals:
            found[code] = text.strip()
    wanted = {lang: found.get(CODES.get(lang, lang), "") for lang in langs}
    return {lang: text for lang, text in wanted.items() if text}


def on_white(file: Path, size: int) -> Image.Image:
    """A stamp as an RGB picture whose longest side is at most `size`."""
    with Image.open(file) as opened:
        stamp = opened.convert("RGBA")
    stamp.thumbnail((size, size))
    ground = Image.new("RGBA", stamp.size, (255, 255, 255, 255))
    return Image.alpha_composite(ground, stamp).convert("RGB")


def split_groups(group: Sequence[int], share: float, seed: int = 0) -> set[int]:
    """Numbers of about `share` of the things, whole groups of them, drawn by the seed.

    group: of each thing. Never more than `share`, and less than it by at most the last group.
    """
    members: dict[int, list[int]] = {}
    for i, number in enumerate(group):
        members.setdefault(number, []).append(i)
    most, chosen = round(share * len(group)), set()
    for number in np.random.default_rng(seed).permutation(list(members)).tolist():
        if len(chosen) + len(members[number]) <= most:
            chosen.update(members[number])
    return chosen


def _unpacked(deb: Path | None, work: Path) -> Path:
    """The folder that the package's files lie in."""
    if deb is None:
        deb = _fetched(work)
    elif not deb.is_file():
        raise FileNotFoundError(f"no package at {deb}")
    _run(["dpkg-deb", "-x", str(deb.resolve()), "files"], work)
    return work / "files"


def _fetched(work: Path) -> Path:
    """The package from the mirrors of apt's sources; nothing is installed, and no root needed.

    Where apt knows no such package, as on machines whose lists were never read or were deleted,
    they are read into `work` first.
    """
    known = ["apt-get", *APT, "download", PACKAGE]
    folders = [f"-oDir::State::Lists={work / 'lists'}", f"-oDir::Cache={work / 'cache'}"]
    anew = ["apt-get", *APT, *folders]
    for folder in ("lists/partial", "cache/archives/partial"):
        (work / folder).mkdir(parents=True)
    if _tried(known, work) is not None:
        _tried([*anew, "update"], work)
        told = _tried([*anew, "download", PACKAGE], work)
        if told is not None:
            raise ValueError(
                f"{PACKAGE} could not be fetched: {told}. It takes the network and apt's sources; "
                "fetch the package elsewhere, from packages.debian.org, and give it with --deb"
            )
    [deb] = work.glob("*.deb")
    return deb


def _run(command: list[str], folder: Path) -> None:
    told = _tried(command, folder)
    if told is not None:
        raise ValueError(f"{' '.join(command)} failed: {told}")


def _tried(command: list[str], folder: Path) -> str | None:
    """Run it; what it complained of, None if it worked."""
    program = command[0]
    if shutil.which(program) is None:
        raise ValueError(
            f"{program} is not installed: the stamps are a Debian package. On another system "
            f"fetch {PACKAGE} from packages.debian.org and unpack it where dpkg-deb is"
        )
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return (done.stderr.strip() or "no reason given") if done.returncode else None
