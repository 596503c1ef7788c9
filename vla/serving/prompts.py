"""What a chat message asks of a PaliGemma, which knows prompts but no conversation."""

import re

from backbone import tasks

_LANGUAGE = "|".join(tasks.LANGUAGES)
_RAW = re.compile(
    rf"""
    (?: caption | cap | describe )\ (?: {_LANGUAGE} )
  | caption\ (?: <loc[0-9]{{4}}> ){{4}}
  | ocr
  | (?: answer | question )\ (?: {_LANGUAGE} )\ .+
  | (?: detect | segment )\ .+
    """,
    re.VERBOSE | re.DOTALL,
)


def chat_prompt(text: str) -> str:
    """The prompt for a user's message.

    A prompt of PaliGemma's (`backbone.tasks`) stays as it is, an empty text asks for a caption in
    English, anything else is a question to be answered in English.

    Raises ValueError for "detect" or "segment" with names that the grammar can't carry.
    """
    text = text.strip()
    if not text:
        return tasks.caption()
    if not _RAW.fullmatch(text):
        return tasks.answer(text)
    names_asked(text)
    return text


def names_asked(prompt: str) -> list[str] | None:
    """The names of a prompt "detect cat ; dog" or "segment …"; None of any other prompt.

    Raises ValueError as `backbone.tasks.detect` does.
    """
    verb, _, names = prompt.partition(" ")
    if verb not in ("detect", "segment") or not names:
        return None
    return tasks.check_names([name.strip() for name in names.split(";")])
