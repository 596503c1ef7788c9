"""Trains `small_tokenizer.model`: python backbone/assets/train_small_tokenizer.py

The corpus is written here: a tabletop world's instructions, PaliGemma's task words, questions about
pictures, MetaWorld's 50 tasks in our words, and common English. Nothing is drawn at random, so the
same SentencePiece release writes the same bytes. Takes about a second.
"""

import io
import itertools
from collections.abc import Iterator
from pathlib import Path

import sentencepiece as spm

from backbone.tokenizer import SMALL_MODEL, append_loc_and_seg

BASE_PIECES = 1024  # before the <loc> and <seg> pieces; 256 of them are bytes


def _words(text: str) -> list[str]:
    return text.split()


def _lines(text: str) -> list[str]:
    return text.strip().splitlines()


COLOURS = _words("red green blue yellow purple cyan")
MORE_COLOURS = _words("black white grey orange pink brown")
SHAPES = _words("square circle triangle")
THINGS = _words("""
block cube ball cup plate bowl box bottle spoon fork knife pen book mug towel apple banana can
tray drawer door robot gripper hand table wall shelf object
""")
SIDES = _words("left right top bottom")
NUMBERS = _words("zero one two three four five six seven eight nine ten")

METAWORLD = _lines("""
reach the goal
reach the goal behind the wall
push the puck to the goal
push the puck around the wall to the goal
push the puck back to the goal
pick up the puck and place it at the goal
pick up the puck and place it behind the wall
pick the puck out of the hole
pick up the puck from one bin and place it in the other bin
pick up the nut and place it onto the peg
take the nut off the peg
throw the basketball through the hoop
grasp the cover and close the box with it
press a button from the top
press a button from the top behind the wall
press a button
press a button behind the wall
push the button on the coffee machine
pull the mug away from the coffee machine
push the mug under the coffee machine
turn the dial
close the door
lock the door by rotating the lock clockwise
open the door
unlock the door by rotating the lock counterclockwise
close a drawer
open a drawer
rotate the faucet clockwise
rotate the faucet counterclockwise
hammer the screw on the wall
insert the gripper into the hole
press the handle down sideways
press the handle down
pull the handle up sideways
pull the handle up
pull the lever down
insert the peg sideways
unplug the peg sideways
slide the plate back sideways
slide the plate back
slide the plate sideways
slide the plate into the cabinet
put the puck onto the shelf
kick the soccer ball into the net
grasp the stick and pull the box with it
grasp the stick and push the box with it
sweep the puck into the hole
sweep the puck off the table
push the window closed
push the window open
""")

COMMON = _words("""
the of and to in is you that it he was for on are as with his they at be this have from or had by
not word but what some we can out other were all there when up use your how said an each she which
do their time if will way about many then them write would like so these her long make thing see
him two has look more day could go come did number sound no most people my over know water than
call first who may down side been now find any new work part take get place made live where after
back little only round man year came show every good me give our under name very through just form
sentence great think say help low line differ turn cause much mean before move right boy old too
same tell does set three want air well also play small end put home read hand large add even land
here must big high such follow act why ask men change went light kind off need house picture try
us again animal point mother world near build self earth father head stand own page should country
found answer school grow study still learn plant cover food sun four between state keep eye never
last let thought city tree cross farm hard start might story saw far sea draw left late run while
press close night real life few open seem together next white children begin got walk example ease
paper group always music those both mark often letter until mile river car feet care second enough
plain girl usual young ready above ever red list though feel talk bird soon body dog family direct
pose leave song measure door product black short class wind question happen complete ship area
half rock order fire south problem piece told knew pass since top whole king space heard best hour
better true during hundred five remember step early hold west ground interest reach fast sing
listen six table travel less morning ten simple several toward war lay against pattern slow center
love person money serve appear road map rain rule pull cold notice voice fall power town fine
certain fly unit lead cry dark machine note wait plan figure star box field rest correct able done
front back corner edge middle inside outside behind beside upper lower image photo video camera
scene view shows text sign street grass sky wooden metal standing sitting holding wearing looking
background
""")


def tabletop() -> Iterator[str]:
    """Instructions of the built-in world, with and without a verb's usual object."""
    things = [f"{colour} {shape}" for colour in COLOURS for shape in [*SHAPES, "plate", "block"]]
    for thing, colour in itertools.product(things, COLOURS):
        for verb in ("put", "place", "set", "drop", "move", "slide", "push", "stack"):
            yield f"{verb} the {thing} onto the {colour} plate"
            yield f"{verb} the {thing} on top of the {colour} square"
        yield f"push the {thing} to the {colour} circle"
        yield f"slide it over to the {colour} triangle, not the {thing}"
        yield f"pick up the {thing} and leave the {colour} one alone"
    for thing, side in itertools.product(things, SIDES):
        yield f"push the {thing} to the {side} edge of the table"
        yield f"move the {thing} to the {side} side of the table"
        yield f"put the {thing} in the {side} corner, please"
        yield f"ignore the {thing} that is near the {side}"


def pictures() -> Iterator[str]:
    """PaliGemma's prompts and the answers to them, for the built-in world and for photos."""
    things = [f"{colour} {shape}" for colour in COLOURS for shape in [*SHAPES, "plate"]]
    things += [f"{colour} {thing}" for colour in MORE_COLOURS for thing in THINGS] + THINGS
    for n, thing in enumerate(things):
        number, other = NUMBERS[n % len(NUMBERS)], things[(7 * n + 3) % len(things)]
        yield f"detect {thing}"
        yield f"detect {thing} ; {other}"
        yield f"segment {thing}"
        yield f"segment {thing} ; {other}"
        yield f"answer en what colour is the {thing}?"
        yield f"answer en what color is the {thing}?"
        yield f"answer en where is the {thing}?"
        yield f"answer en how many {thing}s are there?"
        yield f"answer en is the {thing} left of the {other}?"
        yield f"answer en is there a {thing} to the right of the {other}?"
        yield f"question en {number}"
        yield f"question en the {thing}"
        yield f"a {thing} is above the {other}"
        yield f"an image of {number} {thing}s and a {other} below it"
        yield f"the {thing} is between the {other} and the plate on the table"
        yield f"a photo of a {thing} next to the {other}"
        yield f"What is on the {thing}? Where is it? How many are there? Is it {number}?"
        yield f"The picture shows a {thing}. There is no {other}. Yes, {n}."
    yield from ("caption en", "ocr", "answer en", "question en", "describe en", "cap en") * 60
    for word in (*SHAPES, "plate", "what", "where", "how", "is", "which", "there"):
        yield from [word] * 400
    yield from ("yes", "no", "left", "right", "none", "nothing", *NUMBERS, *COLOURS) * 30


def english() -> Iterator[str]:
    """Common words, each at a sentence's start, after a space, and with a capital."""
    words = list(dict.fromkeys(COMMON))
    for repeat in range(24):
        for n in range(0, len(words), 8):
            line = words[n:] if len(words) - n < 8 else words[n : n + 8]
            turned = line[repeat % 8 :] + line[: repeat % 8]
            yield " ".join(turned)
            if repeat % 8 == 0:
                yield " ".join(turned).capitalize() + "."
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    yield from (alphabet, alphabet.upper(), "0123456789", ".,;:!?'\"-()/+=%&*#@_<>[]{}|\\$^~`")


def corpus() -> Iterator[str]:
    yield from tabletop()
    yield from pictures()
    for task in METAWORLD:
        yield from [task] * 40
        yield from [f"{task[0].upper()}{task[1:]}."] * 4
    yield from english()


def train() -> bytes:
    """The serialised model, `<loc>` and `<seg>` included."""
    model = io.BytesIO()
    spm.SentencePieceTrainer.Train(
        sentence_iterator=corpus(),
        model_writer=model,
        model_type="bpe",
        vocab_size=BASE_PIECES,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        user_defined_symbols=["<mask>", *("\n" * n for n in range(1, 5))],
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        num_threads=1,
        minloglevel=2,
    )
    return append_loc_and_seg(model.getvalue())


if __name__ == "__main__":
    Path(SMALL_MODEL).write_bytes(train())
    print(f"wrote {SMALL_MODEL}")
