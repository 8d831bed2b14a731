"""A language model of a few thousand weights in a LightningModule, and rows to validate it on."""

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 31


def tiny_llama(layers: int = 3, seed: int = 0, dropout: float = 0.0) -> LlamaForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=128,
            attention_dropout=dropout,
            initializer_range=0.4,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
        return LlamaForCausalLM(config).double().eval()


def rows(count: int, length: int = 20, seed: int = 0) -> Tensor:
    return torch.randint(3, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(seed))


class Rows(Dataset):
    def __init__(self, ids: Tensor) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[index]}


def loader(ids: Tensor, batch_size: int = 2, shuffle: bool = False) -> DataLoader:
    return DataLoader(Rows(ids), batch_size=batch_size, shuffle=shuffle)


class TinyModule(LightningModule):
    def __init__(self, model: LlamaForCausalLM | None = None) -> None:
        super().__init__()
        self.model = model or tiny_llama()

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        return self.model(**batch, labels=batch["input_ids"]).loss

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        self.log("val_loss", self.model(**batch, labels=batch["input_ids"]).loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def trainer(folder: object, **settings: object) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=str(folder), **(quiet | {"enable_checkpointing": False} | settings))
