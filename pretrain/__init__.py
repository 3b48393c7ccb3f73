"""pretrain: from raw text to contextual word vectors."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pretrain.embedding.embedder import Embedder
    from pretrain.training.module import BertPretraining, ElmoPretraining

__version__ = "0.1.0"
__all__ = ["BertPretraining", "ElmoPretraining", "Embedder", "__version__"]


def __getattr__(name: str) -> Any:
    """Public classes, imported when first asked for, so that `import pretrain` stays cheap."""
    if name == "Embedder":
        from pretrain.embedding.embedder import Embedder

        return Embedder
    if name in ("ElmoPretraining", "BertPretraining"):
        from pretrain.training import module

        return getattr(module, name)
    raise AttributeError(f"module 'pretrain' has no attribute {name!r}")
