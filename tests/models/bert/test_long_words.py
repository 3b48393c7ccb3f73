"""Words that WordPiece makes one [UNK] of take no part in learning a vocabulary, nor any time."""

import time

from pretrain.config.models import WordPieceConfig
from pretrain.models.bert.tokens import learn_tokenizer

TEXTS = ["the cat sat on the mat", "a cat and a mat, unbelievably", "THE CAT's mat"] * 5
CONFIG = WordPieceConfig(vocabulary_size=101, minimum_count=1)


def test_a_line_of_a_megabyte_of_letters() -> None:
    """It took more than 280 s: learning is quadratic in a word's length."""
    started = time.perf_counter()
    tokenizer = learn_tokenizer(lambda: [*TEXTS, "thecat" * 170_000], CONFIG)
    encoded = tokenizer.encode(["thecat" * 170_000, "the cat"])
    assert time.perf_counter() - started < 20
    assert encoded.tokens[0] == [tokenizer.unknown_id]
    assert encoded.unknown_words == 1


def test_words_that_cannot_be_read_do_not_shape_the_vocabulary() -> None:
    """A word of 100 characters, as they are cut and cleaned, is the longest that is read."""
    learned = learn_tokenizer(lambda: TEXTS, CONFIG).vocabulary
    unread = [f"cat {'atm' * 40}, mat", "mat"]
    assert learn_tokenizer(lambda: TEXTS + unread, CONFIG).vocabulary == (
        learn_tokenizer(lambda: [*TEXTS, "cat , mat", "mat"], CONFIG).vocabulary
    )
    read = [f"{'atm' * 33}!{'tma' * 33}"]  # more than 100 characters without white space, but two words
    assert learn_tokenizer(lambda: TEXTS + read * 9, CONFIG).vocabulary != learned
