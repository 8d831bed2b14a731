"""Lightning's DeepSpeed strategy with two gaps closed that stop a saccade run."""

from typing import Any

from lightning.pytorch.strategies import DeepSpeedStrategy


class DeepSpeedZeroStrategy(DeepSpeedStrategy):
    """DeepSpeed ZeRO: optimizer states, gradients and, in stage 3, weights spread over the GPUs.

    Lightning's own strategy fails on loaders that make their own batches, and cannot validate, test or predict from a
    checkpoint of ZeRO-3 (Lightning 2.6.6 with DeepSpeed 0.19.8); otherwise this is the same.

    Args:
        stage: ZeRO stage: 1 spreads optimizer states, 2 gradients too, 3 weights too.
        offload_optimizer: Keep optimizer states in the host's memory.
        offload_parameters: Keep weights in the host's memory (stage 3).
        config: Path or content of a DeepSpeed configuration; overrides the other settings.
    """

    def __init__(
        self,
        stage: int = 2,
        offload_optimizer: bool = False,
        offload_parameters: bool = False,
        config: str | dict[str, Any] | None = None,
    ) -> None:
        if stage not in (1, 2, 3):
            raise ValueError(f"stage: must be 1, 2 or 3, but is {stage}")
        super().__init__(
            stage=stage, offload_optimizer=offload_optimizer, offload_parameters=offload_parameters, config=config
        )

    def _auto_select_batch_size(self) -> int:
        """Batch size for DeepSpeed's own throughput log; Lightning looks for it where our loaders have none."""
        datamodule = getattr(self.lightning_module.trainer if self.lightning_module else None, "datamodule", None)
        return int(getattr(datamodule, "batch_size", 1))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Loads a checkpoint folder, also where there is no optimizer.

        Args:
            checkpoint_path: Folder written by this strategy.
            weights_only: As in Lightning.

        Returns:
            What Lightning saved beside DeepSpeed's shards.
        """
        optimizer = self.deepspeed_engine.optimizer
        if optimizer is not None and not hasattr(optimizer, "_restore_from_bit16_weights"):
            # without an optimizer, DeepSpeed still asks for the optimizer's copy of the weights to be refreshed
            optimizer._restore_from_bit16_weights = lambda: None
        return super().load_checkpoint(checkpoint_path, weights_only)
