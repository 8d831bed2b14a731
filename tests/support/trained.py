"""What makes a run of the command quick and quiet enough for a test."""

QUICK = (
    "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
    "--trainer.limit_val_batches=2",
)  # fmt: skip
