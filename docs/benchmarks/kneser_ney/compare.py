"""A run of ELMo beside n-gram models of the same text: `python docs/benchmarks/kneser_ney/compare.py RUN`.

Kneser-Ney models of several orders count all the text that the run trains on, once, and predict the held-out text: its
words as the run's vocabulary has them, and the end of every sentence. The forward language model of the run predicts
the same positions. Both do so twice: on single sentences, and on continuous text, where n-grams reach back over the
ends of sentences and ELMo carries its states.
"""

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from kneser_ney import KneserNey, Texts

from pretrain.config.data import DataConfig
from pretrain.data.corpus import PreparedSource, open_corpus, source_weights
from pretrain.data.prepare import prepare_temporarily
from pretrain.errors import ConfigError
from pretrain.evaluate import evaluate
from pretrain.models.elmo.tokens import WordTokenizer
from pretrain.models.loss import exp
from pretrain.runs.folder import RunFolder
from pretrain.runs.trained import read_tokenizer

ORDERS = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Losses:
    """Mean losses of one model in nats."""

    by_sentence: float
    across: float
    """Of continuous text."""


@dataclass(frozen=True)
class Comparison:
    """What the models make of the same `predictions`."""

    training_words: int
    """Words and sentence ends that the n-gram models counted."""
    predictions: int
    ngrams: dict[int, Losses]
    """By order."""
    forward: Losses
    what: str
    """The run, and the step of its checkpoint."""

    def lines(self) -> list[str]:
        """A readable line per model."""
        names = [f"{order}-gram, modified Kneser-Ney" for order in self.ngrams] + [f"{self.what}, forward"]
        return [
            f"{self.training_words:,} words and ends of sentences learned from, {self.predictions:,} predicted",
            "perplexity of single sentences, and of continuous text:",
            *(
                f"{exp(losses.by_sentence):9,.2f} {exp(losses.across):9,.2f}  {name}"
                for name, losses in zip(names, [*self.ngrams.values(), self.forward], strict=True)
            ),
        ]


def compare(run: Path, data: Sequence[str] = (), *, checkpoint: str = "best") -> Comparison:
    """A run's forward model and Kneser-Ney models on its held-out text, or on the plain text files of `data`.

    Raises ConfigError for a run that does not predict words, and what `evaluate` raises.
    """
    folder = RunFolder(run)
    config = folder.read_config()
    prepared = open_corpus(folder.prepared(), source_weights(config.data))
    tokenizer = read_tokenizer(config, prepared.fetch_tokenizer())
    if not isinstance(tokenizer, WordTokenizer):
        raise ConfigError(f"{run}: model.kind is {config.model.kind}: no forward language model to compare with")
    with files(data, tokenizer) if data else contextlib.nullcontext(prepared.held_out) as asked:
        both = prepared.training, asked
        texts = [[read_texts(s, tokenizer, across=across) for s in both] for across in (False, True)]
    by_sentence, across = (ngram_losses(*pair, tokenizer.vocabulary_size) for pair in texts)
    words, predictions = (len(text.words) for text in texts[0])
    reset, carried = (evaluate(run, data, checkpoint, states=states, start="zero") for states in ("reset", "carried"))
    counts = {found.losses.counts["forward"] for found in (reset, carried)}
    assert counts == {predictions}, f"ELMo makes {counts} predictions, the n-grams {predictions}"
    return Comparison(
        training_words=words,
        predictions=predictions,
        ngrams={order: Losses(by_sentence[order], across[order]) for order in ORDERS},
        forward=Losses(reset.losses.terms["forward"], carried.losses.terms["forward"]),
        what=carried.what,
    )


def ngram_losses(learned: Texts, asked: Texts, vocabulary_size: int) -> dict[int, float]:
    """The mean loss by order."""
    models = {order: KneserNey(order, vocabulary_size).fit(learned) for order in ORDERS}
    return {order: -float(model.log_probabilities(asked).mean()) for order, model in models.items()}


def read_texts(sources: Sequence[PreparedSource], tokenizer: WordTokenizer, *, across: bool) -> Texts:
    """All blocks as ids, an end after every sentence; a text is a sentence or, `across` sentences, a block."""
    words, lengths = [], []
    for source in sources:
        for number in range(source.shards.blocks):
            block = source.block(number)
            assert block.words is not None
            ids = tokenizer.ids(block.words)[block.tokens]
            words.append(np.insert(ids, block.sentence_starts[1:], tokenizer.sentence_end))
            lengths.append([len(words[-1])] if across else np.diff(block.sentence_starts) + 1)
    return Texts(np.concatenate(words), np.cumsum(np.concatenate([[0], *lengths])))


@contextlib.contextmanager
def files(paths: Sequence[str], tokenizer: WordTokenizer) -> Iterator[Sequence[PreparedSource]]:
    """Text files, prepared in a folder that is gone afterwards."""
    config = DataConfig.model_validate({"sources": [{"kind": "text", "files": list(paths)}], "held_out": 0.0})
    with prepare_temporarily(config, tokenizer) as corpus:
        yield corpus.training


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a comparison."""
    parser = argparse.ArgumentParser(prog="compare.py", description=__doc__)
    parser.add_argument("run", type=Path, help="a run folder of ELMo with a checkpoint")
    parser.add_argument("--data", nargs="+", default=(), metavar="FILE", help="plain text instead of the held-out text")
    parser.add_argument("--checkpoint", default="best", help="best, newest or the number of a step")
    options = parser.parse_args(arguments)
    found = compare(options.run, options.data, checkpoint=options.checkpoint)
    print(*found.lines(), sep="\n")


if __name__ == "__main__":
    main()
