"""`vla dedup`, `vla stamps` and `vla score-captions`: image-text data from the command line."""

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
        "80 to 20 with near-duplicates on one side. Needs vla[dedup].",
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
    parser.add_argument(
        "--size", type=positive, default=128, metavar="PIXELS", help="longest side (default: 128)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split (default: 0)")
    parser.set_defaults(run=_run_stamps)
    return parser


def _run_stamps(args: argparse.Namespace) -> None:
    from vla.data.stamps import write_stamps

    counts = write_stamps(args.root, args.langs, deb=args.deb, size=args.size, seed=args.seed)
    print(", ".join(f"{name}: {count}" for name, count in counts.items()))
    print(f"saved in {args.root}")


def _add_captions(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "score-captions",
        help="CIDEr-D per language of a model's captions, on pictures seen and unseen",
        description="Let the PaliGemma in CKPT caption pictures of DIR/train.jsonl and "
        "DIR/val.jsonl in every language that their captions have, print CIDEr-D per language and "
        "split, and write scores.json, captions.jsonl and a page of examples.",
    )
    parser.add_argument("data", type=Path, metavar="DIR")
    parser.add_argument("--model", type=Path, required=True, metavar="CKPT")
    parser.add_argument("--langs", nargs="+", metavar="CODE", help="default: all")
    parser.add_argument(
        "--limit", type=positive, default=200, metavar="N", help="pictures a split (default: 200)"
    )
    parser.add_argument("--device", default="cpu", help="default: cpu")
    parser.add_argument(
        "--trained", type=Path, metavar="DIR", help="its training run, for the loss on the page"
    )
    parser.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="default: beside CKPT, captions/"
    )
    parser.set_defaults(run=_run_captions)
    return parser


def _run_captions(args: argparse.Namespace) -> None:
    from vla.evaluation.caption_page import score_captions

    folder = args.output_dir or args.model.parent / "captions"
    table = score_captions(
        args.data,
        args.model,
        folder,
        langs=args.langs,
        limit=args.limit,
        device=args.device,
        run=args.trained,
    )
    print(table)
    print(f"saved in {folder}")


DATA_COMMANDS = [_add_dedup, _add_stamps, _add_captions]
