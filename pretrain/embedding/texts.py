"""Texts as they are given for vectors."""

from collections.abc import Iterable, Sequence

from pretrain.data.text import clean, clean_word

Text = str | Sequence[str]
"""A raw text, or the words of one."""


def cleaned(text: Text) -> Text:
    """A text, or its words, as tokenizers get it."""
    return clean(text) if isinstance(text, str) else [clean_word(word) for word in text]


def as_texts(texts: str | Iterable[Text], is_split_into_words: bool) -> tuple[bool, list[Text]]:
    """Whether a single text was given, and the texts; raises ValueError where they are not what the flag says."""
    if isinstance(texts, str):
        if is_split_into_words:
            raise ValueError("texts is a string; with is_split_into_words=True a text is a list of words")
        return True, [texts]
    items = list(texts)
    if not is_split_into_words:
        for index, item in enumerate(items):
            if not isinstance(item, str):
                raise ValueError(
                    f"text {index} is a {type(item).__name__}, not a string; "
                    "texts that are lists of words need is_split_into_words=True"
                )
        return False, items
    words = [item for item in items if isinstance(item, str)]
    if words and len(words) == len(items):
        for index, word in enumerate(words):
            # a list of raw texts would otherwise pass for the words of one
            if len(word.split()) > 1:
                raise ValueError(
                    f"string {index} is more than one word; with is_split_into_words=True a list of strings is one "
                    "text's words (in a list of such lists, words may hold white space)"
                )
        return True, [words]
    for index, item in enumerate(items):
        if isinstance(item, str) or not all(isinstance(word, str) for word in item):
            raise ValueError(f"text {index} is no list of words, as is_split_into_words=True asks for")
    return False, items
