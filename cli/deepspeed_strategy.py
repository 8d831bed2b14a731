"""Lightning's DeepSpeed strategy with two fixes for saccade's loaders and for evaluation."""

from typing import Any

from lightning.pytorch.strategies import DeepSpeedStrategy

from saccade.common.checks import check_choice


class DeepSpeedZeroStrategy(DeepSpeedStrategy):
    """DeepSpeed ZeRO: shards optimizer states, gradients and, in stage 3, weights over the GPUs.

    Lightning's own strategy fails with loaders that make their own batches, and cannot validate, test or predict from a
    checkpoint of ZeRO-3 (Lightning 2.6.6 with DeepSpeed 0.19.8). Otherwise this strategy is the same.

    Args:
        stage: ZeRO stage: 1 shards optimizer states, 2 also gradients, 3 also weights.
        offload_optimizer: Keep optimizer states in the memory of the host.
        offload_parameters: Keep weights in the memory of the host (stage 3).
        config: Path or content of a DeepSpeed configuration; it overrides the other settings.
    """

    def __init__(
        self,
        stage: int = 2,
        offload_optimizer: bool = False,
        offload_parameters: bool = False,
        config: str | dict[str, Any] | None = None,
    ) -> None:
        check_choice("stage", stage, (1, 2, 3))
        super().__init__(
            stage=stage, offload_optimizer=offload_optimizer, offload_parameters=offload_parameters, config=config
        )

    def _auto_select_batch_size(self) -> int:
        """Return the batch size for DeepSpeed's throughput log, which Lightning cannot find in our loaders."""
        datamodule = getattr(self.lightning_module.trainer if self.lightning_module else None, "datamodule", None)
        return int(getattr(datamodule, "batch_size", 1))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a checkpoint folder, also without an optimizer.

        Args:
            checkpoint_path: Folder written by this strategy.
            weights_only: As in Lightning.

        Returns:
            What Lightning saved in addition to DeepSpeed's shards.
        """
        optimizer = self.deepspeed_engine.optimizer
        if optimizer is not None and not hasattr(optimizer, "_restore_from_bit16_weights"):
            # without an optimizer, DeepSpeed still calls this method to refresh the optimizer's copy of the weights
            optimizer._restore_from_bit16_weights = lambda: None
        return super().load_checkpoint(checkpoint_path, weights_only)
