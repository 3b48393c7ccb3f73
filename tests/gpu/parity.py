"""Published vectors, and losses and gradients of both families, on CUDA beside what they are known to be.

float32 throughout, TF32 off. Writes {comparison: {largest, relative, allowed, ok}} to the file named first, where
`relative` is the norm of the difference over the norm of what is expected.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pretrain.bench import read_steps, to_device
from pretrain.data.prepare import ensure_prepared
from pretrain.data.stream import StreamPosition
from pretrain.embedding.embedder import Embedder
from pretrain.models import FAMILIES, get_family
from pretrain.models.bert.export import published_name
from pretrain.models.loss import LossTerm
from pretrain.runs.trained import build_initial_model, read_tokenizer
from pretrain.runtime.world import World
from pretrain.training.steps import build_loader
from pretrain.training.trainer import set_up_arithmetic
from tests.conftest import SHARED, write_corpus
from tests.tiny import tiny_config

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BERT = SHARED / "bert" / "hf_tiny_bert_pretraining_gelu.safetensors"
ELMO = SHARED / "elmo_fixtures" / "skip_and_clips"
GRADIENTS = 1e-4
"""Largest relative difference of a parameter's gradient between CPU and CUDA."""

Results = dict[str, dict[str, Any]]


def close(ours: Tensor, expected: Tensor, rtol: float, atol: float) -> dict[str, Any]:
    """Elementwise, as the fixtures' own rules have it."""
    ours, expected = ours.detach().cpu().double(), expected.double()
    difference = (ours - expected).abs()
    return {
        "largest": difference.max().item(),
        "relative": (difference.norm() / expected.norm()).item(),
        "allowed": f"rtol {rtol}, atol {atol}",
        "ok": torch.allclose(ours, expected, rtol=rtol, atol=atol),
    }


def near(ours: dict[str, Tensor], expected: dict[str, Tensor], allowed: float) -> dict[str, Any]:
    """By the norm of the difference: the worst of several tensors, named.

    A tensor a thousandth of the largest is measured by that: a key's bias, say, has a gradient of rounding errors only.
    """
    least = max(tensor.norm().item() for tensor in expected.values()) / 1000
    relative = {
        name: ((ours[name].cpu() - tensor).norm() / tensor.norm().clamp(min=least)).item()
        for name, tensor in expected.items()
    }
    worst = max(relative, key=lambda name: relative[name])
    return {"worst": worst, "relative": relative[worst], "allowed": allowed, "ok": relative[worst] <= allowed}


def published_elmo() -> Results:
    """Three rows of ten sentences with their states carried, against AllenNLP's and bilm-tf's vectors."""
    rows: list[list[str]] = json.loads((ELMO / "sentences.json").read_text(encoding="utf-8"))
    embedder = Embedder.load(ELMO, device=DEVICE)
    ours: list[np.ndarray] = []
    expected: list[np.ndarray] = []
    for number in range(10):
        ours += embedder.encode([row[number] for row in rows], stateful=True)
        for row in range(3):
            with h5py.File(ELMO / f"lm_embeddings_{row}.hdf5") as file:
                expected.append(np.concatenate(file[str(number)][:], axis=-1))
    together = [torch.from_numpy(np.concatenate(part)) for part in (ours, expected)]
    return {"published ELMo, top layer": close(together[0], together[1], 1e-5, 1e-6)}


def published_bert() -> Results:
    """transformers' tiny model: hidden states, both losses and every gradient."""
    with safe_open(BERT, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    family = get_family("bert")
    with tempfile.TemporaryDirectory() as folder:
        weights = {name.removeprefix("w."): tensor for name, tensor in tensors.items() if name.startswith("w.")}
        save_file(weights, Path(folder) / "model.safetensors")
        (Path(folder) / "config.json").write_text(metadata["config"], encoding="utf-8")
        read = family.format.read(Path(folder))
    labels = tensors["in.labels"].flatten()
    masked = (labels != -100).nonzero()[:, 0]
    inputs = [tensors[f"in.{name}"].to(DEVICE) for name in ("input_ids", "token_type_ids", "attention_mask")]
    batch = dict(zip(("input_ids", "segment_ids", "attention_mask"), inputs, strict=True))
    batch |= {"masked_positions": masked.to(DEVICE), "masked_labels": labels[masked].to(DEVICE)}
    batch |= {"is_next": tensors["in.next_sentence_label"].to(DEVICE)}
    model: Any = read.model.to(DEVICE)
    real = tensors["in.attention_mask"].bool()
    results = {}
    for number, layer in enumerate(model.encoder(*inputs).layers):
        expected = tensors[f"out.hidden_{number}"]
        results[f"published BERT, layer {number}"] = close(layer.cpu()[real], expected[real], 0, 5e-5)
    terms, _ = family.training.build_objective(read.objective, read.tokenizer)(model, batch, None, seed=0)  # type: ignore[arg-type]
    loss = mean(terms)
    loss.backward()
    results["published BERT, loss"] = close(loss, torch.tensor(float(metadata["loss"])), 0, 5e-5)
    gradients = gradients_of(model)
    worst = [close(gradients[name], tensors[f"g.{published_name(name)}"], 0, 5e-5) for name in gradients]
    results["published BERT, gradients"] = max(worst, key=lambda one: one["largest"])
    return results


def mean(terms: dict[str, LossTerm]) -> Tensor:
    """The loss of one micro-batch."""
    return torch.stack([term.weight * term.total / term.count for term in terms.values()]).sum()


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """Gradients by name."""
    return {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}


def random_model(kind: str, folder: Path, corpus: Path) -> Results:
    """A fresh model on a real batch: CPU against CUDA."""
    config = tiny_config(kind, corpus, folder, "model.dropout=0", "batch.micro_size=32")
    family = get_family(kind)
    corpus = ensure_prepared(config, family)
    tokenizer = read_tokenizer(config, corpus.fetch_tokenizer())
    start = StreamPosition.start(config.data.lanes)
    ((batch,),) = read_steps(build_loader(config, tokenizer, corpus, start, World(0, 0, 1, 1)), 1, 1)
    objective = family.training.build_objective(config.objective, tokenizer)
    found = []
    for device in (torch.device("cpu"), DEVICE):
        model = build_initial_model(config, tokenizer).to(device).train()
        loss = mean(objective(model, to_device(batch, device).tensors, None, seed=1)[0])
        loss.backward()
        found.append({"loss": loss.detach().cpu()} | gradients_of(model))
    expected, ours = found
    return {f"random {kind}, loss and gradients": near(ours, expected, GRADIENTS)}


def main() -> None:
    """All comparisons; fails where one does."""
    set_up_arithmetic(deterministic=False)
    os.environ["TQDM_DISABLE"] = "1"
    results: Results = {"device": {"name": str(DEVICE), "ok": True}}
    for path, check in ((ELMO, published_elmo), (BERT, published_bert)):
        if path.exists():
            results |= check()
        else:
            results[check.__name__] = {"skipped": f"no {path.name} in the shared data", "ok": True}
    with tempfile.TemporaryDirectory() as folder:
        corpus = write_corpus(Path(folder) / "corpus.txt", 60)
        for kind in FAMILIES:
            results |= random_model(kind, Path(folder), corpus)
    for name, result in results.items():
        print("ok    " if result["ok"] else "WRONG ", name, {k: v for k, v in result.items() if k != "ok"})
    Path(sys.argv[1]).write_text(json.dumps(results, indent=1), encoding="utf-8")
    sys.exit(0 if all(result["ok"] for result in results.values()) else 1)


if __name__ == "__main__":
    main()
