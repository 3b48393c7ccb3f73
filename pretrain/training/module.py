"""One LightningModule for every family: it feeds the objective, and scales its loss so that no split matters."""

from typing import ClassVar

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from pretrain.config.run import RunConfig
from pretrain.data.loader import MicroBatch
from pretrain.data.stream import StepExamples
from pretrain.models import get_family
from pretrain.models.family import Tokenizer
from pretrain.models.loss import Batch, LossSums, LossTerm
from pretrain.runs.trained import build_initial_model
from pretrain.runtime.collectives import HostSums
from pretrain.runtime.signals import StopRequest
from pretrain.training.optimizer import build_optimizer
from pretrain.training.steps import autocast, forward_pass


class Pretraining(LightningModule):
    """Trains the model of a config, whose weights are a pure function of (config, vocabulary size).

    `step` counts data: the steps trained so far, over all starts of the run. `carried` is float32
    [rows of this rank, state size], or None before the first step and for families that carry nothing.
    """

    kind: ClassVar[str | None] = None

    def __init__(self, config: RunConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        if self.kind not in (None, config.model.kind):
            raise ValueError(
                f"{type(self).__name__} trains {self.kind}, the config's model.kind is {config.model.kind}"
            )
        self.config = config
        self.family = get_family(config.model.kind)
        self.model = build_initial_model(config, tokenizer)
        self.objective = self.family.training.build_objective(config.objective, tokenizer)
        self.step = 0
        self.carried: Tensor | None = None
        self.sums = LossSums()
        self.counts: dict[str, int] = {}
        """Of the current step, over all ranks: predictions per term, and tokens."""
        self.gradient_norm: Tensor | None = None
        self._sum_over_ranks: HostSums | None = None
        self.digest = 0
        """Of the current step, over all ranks."""
        self.stop_request = StopRequest()
        """Whether this process was asked to stop."""
        self.stopping = False
        """Whether any rank was, when the current step began: it is the last one, on all ranks."""

    def transfer_batch_to_device(self, batch: MicroBatch, device: torch.device, dataloader_idx: int) -> MicroBatch:
        """Moves a micro-batch's tensors, without waiting for the device; all else stays as it is."""
        on_cuda = device.type == "cuda"
        batch.tensors = {
            name: (tensor.pin_memory() if on_cuda else tensor).to(device, non_blocking=True)
            for name, tensor in batch.tensors.items()
        }
        return batch

    def on_train_start(self) -> None:
        """Once the ranks know each other."""
        self._sum_over_ranks = HostSums()

    def training_step(self, batch: MicroBatch, batch_idx: int) -> Tensor:
        """This micro-batch's part of the step's mean loss, to take the gradient of: scaled up for what divides it."""
        if batch.index == 0:
            self._count_step(batch.step_examples)
        size = self.config.batch.micro_size
        rows = slice(batch.index * size, (batch.index + 1) * size)
        carried = None if self.carried is None else self.carried[rows].clone()  # backward still needs it
        rank = self.trainer.global_rank
        loss, terms, carried = forward_pass(
            self.config, self.objective, self.model, batch, carried, self.counts, step=self.step, rank=rank
        )
        if carried is not None:
            self._carry(rows, carried)
        self.sums.add(terms)
        return loss * self.family.training.gradient_scale(self.config.objective) * self._divisors()

    def _count_step(self, examples: StepExamples) -> None:
        """One small all-reduce between hosts: the step's counts and digest, and whether any rank was asked to stop."""
        assert self._sum_over_ranks is not None
        names = sorted(examples.counts)
        signed = examples.digest - 2**64 if examples.digest >= 2**63 else examples.digest
        counts = [examples.counts[name] for name in names]
        *counts, digest, asked = self._sum_over_ranks([*counts, signed, int(self.stop_request.received)])
        self.counts = dict(zip(names, counts, strict=True))
        self.digest = digest % 2**64
        self.stopping = asked > 0

    def _divisors(self) -> float:
        """What the gradient is divided by on its way: ranks are averaged; Lightning and DeepSpeed each divide by k."""
        ranks = self.trainer.world_size
        k = self.config.accumulation(ranks)
        return ranks * k * (k if self.config.sharding.zero_stage > 0 else 1)

    def _carry(self, rows: slice, carried: Tensor) -> None:
        if self.carried is None:
            count = self.config.batch.global_size // self.trainer.world_size
            self.carried = torch.zeros(count, carried.shape[1], device=carried.device)
        self.carried[rows] = carried

    def test_step(  # type: ignore[override]
        self, batch: Batch, carried: Tensor | None
    ) -> tuple[dict[str, LossTerm], Tensor | None]:
        """The loss terms of a held-out batch."""
        with autocast(self.config, self.device):
            return self.objective(self.model, batch, carried, seed=0)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Notes the global gradient norm before clipping; DeepSpeed, which holds the gradients, knows its own."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if gradients:
            self.gradient_norm = torch.nn.utils.get_total_norm(gradients)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer; its learning rate is set from the step, not by a scheduler."""
        training = self.family.training
        return build_optimizer(self.config.optimizer, self.model, training.no_decay, training.hidden_matrices)


class ElmoPretraining(Pretraining):
    """Pretrains ELMo (Peters et al. 2018)."""

    kind = "elmo"


class BertPretraining(Pretraining):
    """Pretrains BERT (Devlin et al. 2018)."""

    kind = "bert"
