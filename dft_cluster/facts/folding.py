"""When two texts say the same thing: what is folded away before they are compared."""

import re
import unicodedata

# Thai, Lao, Burmese, Khmer, kana and Chinese characters are written without spaces between the words.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


def plain(text: str) -> str:
    """Case and the amount of whitespace folded away; punctuation stays."""
    return " ".join(text.split()).casefold()


def fold(text: str) -> str:
    """NFKC, case folded, punctuation taken as space, whitespace collapsed.

    Punctuation becomes a space instead of vanishing, so that "Paris,London" stays two words. A text of
    nothing but punctuation stays as it is: folded to nothing it would equal every silence.
    """
    even = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    words = "".join(" " if unicodedata.category(char).startswith("P") else char for char in even).split()
    return " ".join(words) if words else " ".join(even.split())


def matches(said: str, answer: str) -> bool:
    """Whether what was said is the answer, both folded."""
    return fold(said) == fold(answer)


def contains(said: str, answer: str) -> bool:
    """Whether the answer stands in what was said, as whole words, both folded."""
    return bool(occurrences(fold(said), fold(answer)))


def occurrences(text: str, span: str, *, any_case: bool = False) -> list[tuple[int, int]]:
    """Where `span` stands in `text` as whole words, as (start, end) pairs from left to right.

    "Art" is not found in "Arthur". In a script without spaces between words any place counts. Case is
    compared letter by letter, so that the places are those of `text`: "SS" is not "ß" here.
    """
    if not span:
        return []
    found = re.finditer(re.escape(span), text, re.IGNORECASE if any_case else 0)
    return [
        (hit.start(), hit.end())
        for hit in found
        if not _joined(text[hit.start() - 1 : hit.start()], text[hit.start()])
        and not _joined(text[hit.end() : hit.end() + 1], text[hit.end() - 1])
    ]


def _joined(outside: str, edge: str) -> bool:
    """Whether the character outside a span carries on the word at the span's edge ("" is the text's end)."""
    if not outside or _UNSPACED.match(outside) or _UNSPACED.match(edge):
        return False
    return outside.isalnum() or outside == "_" or unicodedata.category(outside).startswith("M")
