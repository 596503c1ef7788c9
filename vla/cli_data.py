"""`vla dedup` and `vla stamps`: image-text data from the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from vla.cli_vlm import positive

__all__ = ["DATA_COMMANDS"]


def _add_dedup(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "dedup",
        help="training pictures that are nearly some of an evaluation set's",
        description="Look for pictures of TRAIN that are nearly some of EVAL… (resized, encoded "
        "anew, cropped or recoloured a little), print a table and write a report. A set is a JSONL "
        "file, tars, a parquet file, or a folder of pictures. Needs vla[dedup].",
    )
    parser.add_argument("train", type=Path, metavar="TRAIN")
    parser.add_argument("--against", nargs="+", type=Path, required=True, metavar="EVAL")
    parser.add_argument(
        "--bits",
        type=int,
        metavar="N",
        help="duplicates differ in at most so many of the hash's 256 bits (default: 44)",
    )
    parser.add_argument(
        "--likeness",
        type=float,
        metavar="C",
        help="and their thumbnails are at least so alike (default: 0.9)",
    )
    parser.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        help="a PaliGemma, whose image encoder decides about doubtful pairs",
    )
    parser.add_argument(
        "--doubtful",
        type=int,
        metavar="N",
        help="pairs of up to so many bits are looked at too (default: 80)",
    )
    parser.add_argument(
        "--sure",
        type=float,
        metavar="C",
        help="doubtful pairs whose thumbnails are so alike are duplicates (default: 0.985)",
    )
    parser.add_argument(
        "--cosine",
        type=float,
        metavar="C",
        help="with --model: or whose embeddings have this cosine (default: 0.98)",
    )
    parser.add_argument("--device", default="cpu", help="of the model (default: cpu)")
    parser.add_argument(
        "--report", type=Path, default=Path("outputs/dedup/report.json"), metavar="FILE"
    )
    parser.add_argument(
        "--keep", type=Path, metavar="FILE", help="write TRAIN's lines without duplicates there"
    )
    parser.set_defaults(run=_run_dedup)
    return parser


def _run_dedup(args: argparse.Namespace) -> None:
    from vla.data.duplicates import Search
    from vla.dedup import dedup, write_kept

    names = ("bits", "likeness", "doubtful", "sure", "cosine")
    given = {name: getattr(args, name) for name in names}
    search = Search(**{name: value for name, value in given.items() if value is not None})
    report = dedup(args.train, args.against, search, args.model, device=args.device)
    print(report.table())
    report.save(args.report)
    if args.keep is not None:
        kept = write_kept(args.train, report, args.keep)
        print(f"{kept} examples without duplicates in {args.keep}")
    print(f"saved in {args.report}")


def _add_stamps(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "stamps",
        help="Tux Paint's stamps with their captions in many languages, from Debian",
        description="Fetch Debian's package tuxpaint-stamps-default (161 MB, GPL-2) with apt-get, "
        "and write its pictures and captions to the new folder DIR: train.jsonl and val.jsonl, "
        "80 to 20, near-duplicates on one side, a tokenizer of these captions, and a JSONL file "
        "per split and language for evaluation.",
    )
    parser.add_argument("root", type=Path, metavar="DIR")
    parser.add_argument(
        "--langs",
        nargs="+",
        default=["en", "de", "fr", "es", "ru", "el", "ja", "zh"],
        metavar="CODE",
        help="languages of the captions (default: en de fr es ru el ja zh)",
    )
    parser.add_argument("--deb", type=Path, metavar="FILE", help="the package, fetched already")
    parser.add_argument("--size", type=positive, default=128, metavar="PIXELS", help="longest side")
    parser.add_argument("--pieces", type=positive, default=2000, metavar="N", help="of text pieces")
    parser.add_argument("--seed", type=int, default=0, help="of the split (default: 0)")
    parser.set_defaults(run=_run_stamps)
    return parser


def _run_stamps(args: argparse.Namespace) -> None:
    from vla.data.stamps import write_stamps

    counts = write_stamps(
        args.root,
        args.langs,
        deb=args.deb,
        size=args.size,
        pieces=args.pieces,
        seed=args.seed,
    )
    print(", ".join(f"{name}: {count}" for name, count in counts.items()))
    print(f"saved in {args.root}")


DATA_COMMANDS = [_add_dedup, _add_stamps]
