"""What may follow in an answer to "detect" or "segment", read from its start on the host, without
states or tables."""

from collections.abc import Sequence

from backbone.tokenizer import Tokenizer


def may_follow(
    tokenizer: Tokenizer,
    names: Sequence[str],
    segment: bool,
    allow_none: bool,
    said: Sequence[int],
) -> set[int]:
    """Raises ValueError if `said` does not follow the grammar itself."""
    locs = {tokenizer.loc(i): i for i in range(1024)}
    segs = {tokenizer.seg(i) for i in range(128)}
    wholes = [_tail(tokenizer, f" {name} ; <loc0000>")[:-1] for name in names]
    wholes += [[*_tail(tokenizer, f" {name}"), tokenizer.eos] for name in names]
    rest, first = list(said), True

    def take(allowed: set[int]) -> int | None:
        if not rest:
            return None
        if rest[0] not in allowed:
            raise ValueError(f"{rest[0]} can't come here")
        return rest.pop(0)

    while True:
        box: list[int] = []
        for i in range(4):
            low = box[i - 2] + 1 if i > 1 else 0
            high = 1023 if i > 1 else 1022
            allowed = {token for token, bin_ in locs.items() if low <= bin_ <= high}
            if first and i == 0 and allow_none:
                allowed |= {tokenizer.eos}
            token = take(allowed)
            if token is None:
                return allowed
            if token == tokenizer.eos:
                return _padded(tokenizer, rest)
            box.append(locs[token])
        for _ in range(16 * segment):
            if take(segs) is None:
                return segs
        path: list[int] = []
        while path not in wholes:
            allowed = {whole[len(path)] for whole in wholes if whole[: len(path)] == path}
            token = take(allowed)
            if token is None:
                return allowed
            path.append(token)
        if path[-1] == tokenizer.eos:
            return _padded(tokenizer, rest)
        first = False


def _tail(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(f"<loc0000>{text}")[1:]


def _padded(tokenizer: Tokenizer, rest: list[int]) -> set[int]:
    if any(token != tokenizer.pad for token in rest):
        raise ValueError("only pad follows EOS")
    return {tokenizer.pad}
