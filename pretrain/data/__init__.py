"""Text as documents, blocks and streams of examples; knows no model and no Lightning."""
