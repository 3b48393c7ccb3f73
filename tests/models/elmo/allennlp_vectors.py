"""What AllenNLP's own classes make of model folders: run by test_allennlp.py, in a process of its own.

`python allennlp_vectors.py JOB.json OUT.npz`: a job is folders, and batches of sentences, each a list of words. Of
folder f and batch b, `f/b/layers` is float32 [layers, rows, words, width], and `f/b/mixed` what `Elmo` mixes of them.
"""

import importlib.abc
import importlib.machinery
import json
import sys
import types
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

NOT_NEEDED = {
    "base58", "cached_path", "fairscale", "huggingface_hub", "lmdb", "more_itertools", "nltk", "sacremoses",
    "sentencepiece", "spacy", "tensorboardX", "termcolor", "torchvision", "traitlets", "transformers",
}  # fmt: skip
"""What AllenNLP imports, often in a release that is gone, and `Elmo` does not use."""


class StandIn(types.ModuleType):
    """A module in which every name is an empty class."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a stand-in for everything in `NOT_NEEDED`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] not in NOT_NEEDED:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        if module.__name__ == "cached_path":
            module.cached_path = lambda path, **options: path  # type: ignore[attr-defined]


@torch.no_grad()
def main() -> None:
    """Reads every folder with both classes, and lets each read the batches one after another, with its states."""
    sys.meta_path.insert(0, StandIns())
    from allennlp.modules.elmo import Elmo, _ElmoBiLm, batch_to_ids
    from allennlp.nn.util import remove_sentence_boundaries

    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    vectors = {}
    for number, folder in enumerate(map(Path, job["folders"])):
        files = str(folder / "options.json"), str(folder / "weights.hdf5")
        bilm, elmo = _ElmoBiLm(*files).eval(), Elmo(*files, num_output_representations=1, dropout=0.0).eval()
        for batch, sentences in enumerate(job["batches"]):
            ids = batch_to_ids(sentences)
            read = bilm(ids)
            layers = [remove_sentence_boundaries(layer, read["mask"])[0] for layer in read["activations"]]
            vectors[f"{number}/{batch}/layers"] = torch.stack(layers).numpy()
            vectors[f"{number}/{batch}/mixed"] = elmo(ids)["elmo_representations"][0].numpy()
    np.savez(sys.argv[2], **vectors)


if __name__ == "__main__":
    main()
