"""Scoring sentences with a BERT, beside transformers: `python docs/benchmarks/minimal_pairs.py RUN|MODEL PAIRS.jsonl`.

Three take turns, a few sentences each time: ours; transformers' `BertForMaskedLM` on one masked copy at a time, as the
scores are defined; and on all copies of a sentence at a time, which is how they are often computed. All compute the
same copies, each once. Prints the time of each, in seconds of processors, the ratios, and the largest difference.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BertForMaskedLM
from transformers.utils import logging

from pretrain.data.text import clean
from pretrain.models.bert.scoring import BertSentence, read_sentence, score_sentences
from pretrain.models.bert.tokens import WordPieceTokenizer
from pretrain.probing.pairs import read_pairs
from pretrain.runs.trained import model_folder, read_model
from pretrain.runtime.seeding import generator

Scores = NDArray[np.float64]
TURN = 100
"""Sentences that one scores before it is the next one's turn."""


def masked_sets(sentence: BertSentence) -> list[tuple[int, list[int]]]:
    """What is predicted, and what is masked for it, in each copy that the two scores need."""
    places = [place for place, word in enumerate(sentence.word_of) if word >= 0]
    copies = []
    for place in places:
        to_the_right = [p for p in places if p >= place and sentence.word_of[p] == sentence.word_of[place]]
        copies.append((place, [place]))
        if len(to_the_right) > 1:
            copies.append((place, to_the_right))
    return copies


@torch.no_grad()
def by_transformers(
    model: Any, mask_id: int, sentence: BertSentence, copies_at_a_time: int | None
) -> tuple[float, float]:
    """`pll_word_l2r` and `pll` of a sentence; None is all of its copies at a time."""
    sets = masked_sets(sentence)
    copies = torch.tensor(sentence.tokens).repeat(len(sets), 1)
    for row, (_, masked) in enumerate(sets):
        copies[row, masked] = mask_id
    size = copies_at_a_time or len(sets)
    found: dict[int, list[float]] = {}
    for start in range(0, len(sets), size):
        logits = model(input_ids=copies[start : start + size]).logits
        for row, (place, _) in enumerate(sets[start : start + size]):
            log_probabilities = logits[row, place].log_softmax(dim=0)
            found.setdefault(place, []).append(float(log_probabilities[sentence.tokens[place]]))
    return sum(values[-1] for values in found.values()), sum(values[0] for values in found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="a run folder or a model folder")
    parser.add_argument("pairs", type=Path, help="minimal pairs, as `pretrain probe` reads them")
    parser.add_argument("--sentences", type=int, default=1_000)
    arguments = parser.parse_args()

    folder, name = read_model(arguments.model)
    mask_id = cast(WordPieceTokenizer, folder.tokenizer).mask_id
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with model_folder(arguments.model) as published:
        theirs = BertForMaskedLM.from_pretrained(published).eval()
    pairs = read_pairs(arguments.pairs)
    drawn = generator("benchmark").permutation(len(pairs))[: arguments.sentences].tolist()
    sentences = [read_sentence(folder, clean(pairs[number].good)) for number in drawn]

    def loop(copies_at_a_time: int | None) -> Callable[[list[BertSentence]], Scores]:
        return lambda some: np.array([by_transformers(theirs, mask_id, one, copies_at_a_time) for one in some]).T

    timed: dict[str, Callable[[list[BertSentence]], Scores]] = {
        "pretrain": lambda some: score_sentences(folder, some),
        "transformers, a sentence's copies at a time": loop(None),
        "transformers, one copy at a time": loop(1),
    }
    seconds = dict.fromkeys(timed, 0.0)
    difference = 0.0
    for score in timed.values():
        score(sentences[:2])
    for start in range(0, len(sentences), TURN):
        results = []
        for what, score in timed.items():
            began = time.process_time()
            results.append(score(sentences[start : start + TURN]))
            seconds[what] += time.process_time() - began
        difference = max(difference, *(float(np.abs(result - results[0]).max()) for result in results))
    copies = sum(len(masked_sets(sentence)) for sentence in sentences)
    tokens = sum(len(sentence.tokens) for sentence in sentences) / len(sentences)
    print(f"{name}: {len(sentences):,} sentences of {tokens:.1f} tokens, {copies:,} masked copies")
    for what, taken in seconds.items():
        print(f"{taken:9.1f} s  {taken / seconds['pretrain']:6.2f}  {what}")
    print(f"largest difference of a score: {difference:.1e}")


if __name__ == "__main__":
    main()
