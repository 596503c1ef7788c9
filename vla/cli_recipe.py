"""`vla chain`, `vla transfer` and `vla ablate`: PaliGemma's recipe from the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from vla.cli_vlm import positive

__all__ = ["RECIPE_COMMANDS"]


def _add_chain(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "chain",
        help="several runs one after the other, such as the stages of PaliGemma",
        description="Train the runs in CONFIG… in this order, each going on from its newest "
        "checkpoint. Started again after it was stopped or killed, it makes what is left. Fields "
        "after the files override those of every run: --device cuda.",
        usage="vla chain CONFIG [CONFIG ...] [--quick] [--field VALUE ...] [--debug]",
        allow_abbrev=False,
    )
    parser.add_argument("configs", nargs="+", type=Path, metavar="CONFIG")
    parser.add_argument(
        "--quick", action="store_true", help="a few steps of a few samples; checks that it runs"
    )
    parser.set_defaults(run=_run_chain, takes_rest=True)
    return parser


def _run_chain(args: argparse.Namespace) -> None:
    from vla.training.chain import chain

    for folder in chain(args.configs, args.overrides, quick=args.quick):
        print(f"done: {folder}", flush=True)


def _add_transfer(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "transfer",
        help="fine-tune a PaliGemma to a task with its published settings, and score it",
        description="Train the PaliGemma in --init on DIR/train.jsonl with the settings that were "
        "published for TASK at this resolution, score it on DIR/val.jsonl, and write both into "
        "--output-dir. Goes on where it was stopped. Fields of the run follow: --device cuda.",
        usage="vla transfer TASK --resolution N --init CKPT --data DIR [--field VALUE ...]",
        allow_abbrev=False,
    )
    parser.add_argument("task", metavar="TASK", help="such as cococap, vqav2, docvqa")
    parser.add_argument("--resolution", type=positive, required=True, metavar="PIXELS")
    parser.add_argument("--init", type=Path, required=True, metavar="CKPT", help="a PaliGemma")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--split", default="val", metavar="NAME", help="scored on (default: val)")
    parser.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="default: outputs/transfer/TASK"
    )
    parser.add_argument("--tokenizer", type=Path, metavar="PATH", help="default: beside CKPT")
    parser.add_argument(
        "--recipe", type=positive, metavar="PIXELS", help="take the settings of this resolution"
    )
    parser.add_argument(
        "--examples", type=positive, metavar="N", help="of the training split; the seed draws them"
    )
    parser.add_argument("--seeds", type=positive, default=1, metavar="N", help="runs (default: 1)")
    parser.add_argument(
        "--sweep",
        nargs="+",
        default=[],
        metavar="AXIS",
        help="the paper's grid over epochs, lr, smoothing, dropout, decay, frozen",
    )
    parser.set_defaults(run=_run_transfer, takes_rest=True)
    return parser


def _run_transfer(args: argparse.Namespace) -> None:
    from vla.transfer.run import Request, run_transfer

    folder = args.output_dir or Path("outputs/transfer") / args.task
    request = Request(
        args.task,
        args.resolution,
        args.init,
        args.data,
        folder,
        args.split,
        args.recipe,
        args.examples,
        args.tokenizer,
    )
    rows = run_transfer(request, seeds=args.seeds, sweep=args.sweep, overrides=args.overrides)
    for row in rows:
        spread = "" if row["spread"] is None else f" ± {row['spread']:.4f}"
        print(f"{row['variant']}: {row['metric']} {row['mean']:.4f}{spread}")
    print(f"saved in {folder}")


def _add_ablate(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "ablate",
        help="the variants of one of PaliGemma's choices side by side, at small size",
        description="Train every variant of switch NAME on tabletop scenes from the same seeds, "
        "score all of them on scenes never seen, and write a table and a plot into --output-dir. "
        "Goes on where it was stopped. NAME: ar_mask, loss, freeze, connector, encoder, "
        "vision_warmup, resolution, task_prefix, new_rows, duration; and cotrain, policies with "
        "and without questions. Fields of all runs follow.",
        usage="vla ablate NAME [--steps N] [--seeds N] [--minutes M] [--field VALUE ...]",
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME")
    parser.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="default: outputs/ablate/NAME"
    )
    parser.add_argument("--steps", type=positive, default=1000, metavar="N", help="default: 1000")
    parser.add_argument("--seeds", type=positive, default=1, metavar="N", help="default: 1")
    parser.add_argument(
        "--minutes", type=float, metavar="M", help="start no run that would end later than this"
    )
    parser.add_argument(
        "--examples", type=positive, default=200, metavar="N", help="scored on (default: 200)"
    )
    for part, what in (
        ("siglip", "stage 0's image encoder"),
        ("gemma", "stage 0's language model"),
        ("init", "a PaliGemma of stage 1, for resolution"),
        ("vlm", "a PaliGemma that answers, for cotrain"),
        ("demonstrations", "a dataset of Tabletop-easy-v0, for cotrain"),
        ("texts", "what collect-vlm wrote, for cotrain"),
    ):
        parser.add_argument(
            f"--{part}", type=Path, metavar="DIR", help=f"{what}; see docs/recipe.md"
        )
    parser.set_defaults(run=_run_ablate, takes_rest=True)
    return parser


def _run_ablate(args: argparse.Namespace) -> None:
    from vla.ablation.run import ablate, table
    from vla.ablation.switches import Sources

    names = ("siglip", "gemma", "init", "vlm", "demonstrations", "texts")
    given = {name: getattr(args, name) for name in names}
    folder = args.output_dir or Path("outputs/ablate") / args.name
    rows = ablate(
        args.name,
        folder,
        sources=Sources(**{name: path for name, path in given.items() if path is not None}),
        steps=args.steps,
        seeds=args.seeds,
        minutes=args.minutes,
        examples=args.examples,
        overrides=args.overrides,
    )
    print(f"{table(rows)}saved in {folder}")


RECIPE_COMMANDS = [_add_chain, _add_transfer, _add_ablate]
