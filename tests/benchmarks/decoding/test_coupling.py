"""The benchmark of couplings: equal texts with shared noise, rows and their table."""

from benchmarks import rows as benchmark_rows
from benchmarks.decoding import coupling, real_prompts, tables
from saccade.inference import Sampling
from tests.support.models import copy_layers, tiny_model


def test_rows_and_table(tmp_path, monkeypatch) -> None:
    model = tiny_model(residual=0.3)
    prompts = [[3, 1, 4], [1, 5], [9, 2, 6, 5]]
    contenders = real_prompts.fixed_decoders(copy_layers(model, 2), None, [2, 4])
    found = coupling.measure(model, contenders, prompts, 2, 24, Sampling(0.9, top_p=0.95), 2)
    assert len(found) == 8
    for name, made in found.items():
        assert (made.identical, made.near_ties) == ((3, 0) if "gumbel" in name else (None, None))
        assert len(made.acceptance) == 2
        assert [len(text) for text in made.texts] == [24, 24, 24]
    assert found["AssistedDecoding 4, gumbel"].acceptance[0] > 0.1
    monkeypatch.setattr(benchmark_rows, "RESULTS", tmp_path)
    assert tables.coupling().startswith("No rows yet")
    benchmark_rows.replace(coupling.rows_of("tiny", found, 2))
    table = tables.coupling().splitlines()
    assert table[2].startswith("| PromptLookup 2 | ")
    assert "| 3 of 3 | " in table[3]
    assert "median of 2 seeds" in table[-1]
