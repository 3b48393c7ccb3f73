"""Lightning and DeepSpeed, only here."""
