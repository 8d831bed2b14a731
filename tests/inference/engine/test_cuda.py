"""What only a CUDA device can show: captured graphs replay what eager forwards compute."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from benchmarks.decoding import classes
from saccade.inference import Autoregressive, LVSpec, PromptLookup, Sampling, SelfSpeculative, SpecVLM
from saccade.inference.engine import cache, hf_attention
from saccade.inference.engine.fused import step as fused
from saccade.inference.engine.fused.step import FusedStep
from saccade.inference.verification.relaxed import VisualRelaxation
from tests.inference.engine.fused.test_classes import TYPES
from tests.inference.loop.test_lossless import LENGTHS, rows_that_left
from tests.support.decoders import LOSSLESS
from tests.support.models import prompts, tiny_model
from tests.support.video_models import ALL_FAMILIES, tiny_video_model, video_prompts

gpu = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def on_cuda(batch):
    return {name: value.cuda() for name, value in batch.items()}


def adapted(model):
    """The model with an adapter on some of its matrices."""
    targets = ["q_proj", "v_proj", "down_proj"]
    found = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=targets))
    for name, weight in found.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return found.eval()


@gpu
@needs_cuda
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("name", list(LOSSLESS))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_graphs_write_what_eager_forwards_write(architecture, ties, name, dtype):
    torch.backends.cuda.matmul.allow_tf32 = False
    model = tiny_model(architecture, near_ties=ties, residual=0.3, seed=3, dtype=dtype).cuda()
    batch = prompts(model, LENGTHS)
    right = Autoregressive(engine="eager").generate(model, **on_cuda(batch), max_new_tokens=64).tokens
    decoder = LOSSLESS[name](model)
    decoder.engine = "graph"
    vars(decoder).pop("_pool", None)
    for _ in range(2):  # captured, then replayed from another call
        tokens = decoder.generate(model, **on_cuda(batch), max_new_tokens=64).tokens
        if dtype == torch.float64:
            assert tokens == right
        else:
            left = rows_that_left(model, batch, tokens, right)
            assert all(tie.near for tie in left.values()), left


@gpu
@needs_cuda
@pytest.mark.parametrize("kind", ["lfm2", "qwen3_next", "mamba2"])
@pytest.mark.parametrize("name", ["autoregressive", "prompt_lookup"])
def test_recurrent_layers_write_what_generate_writes(kind, name):
    model = classes.tiny_model(kind).cuda()
    batch = on_cuda(prompts(model, [20, 1, 9], seed=10))
    new = model.generate(**batch, max_new_tokens=24, do_sample=False)[:, -24:].tolist()
    assert LOSSLESS[name](model).generate(model, **batch, max_new_tokens=24).tokens == new


@gpu
@needs_cuda
@pytest.mark.parametrize("kind", ["lora", *TYPES.values()])
@pytest.mark.parametrize("decoder", [Autoregressive(engine="graph"), PromptLookup(max_ngram=2, engine="graph")])
def test_graphs_of_fused_kernels_write_what_eager_forwards_write(kind, decoder):
    torch.backends.cuda.matmul.allow_tf32 = False
    model = adapted(tiny_model("qwen2")) if kind == "lora" else classes.tiny_model(kind)
    model, decoder = model.float().cuda(), decoder.independent()
    for lengths in ([5], [4, 30, 7]):
        batch = prompts(model, lengths)
        right = Autoregressive(engine="eager").generate(model, **on_cuda(batch), max_new_tokens=24).tokens
        for _ in range(2):  # captured, then replayed from another call
            tokens = decoder.generate(model, **on_cuda(batch), max_new_tokens=24).tokens
            left = rows_that_left(model, batch, tokens, right)
            assert all(tie.near for tie in left.values()), left
        engine = next(engine for engine in decoder.pool._idle if engine.model is model)
        assert engine._fused is not None
        assert all(step.captured for step in engine._steps.values())


@gpu
@needs_cuda
def test_a_graph_is_captured_once_for_each_width():
    model = tiny_model("llama", residual=0.3, dtype=torch.float32).cuda()
    decoder = SelfSpeculative(skip={"attention": [1], "mlp": []}, draft_length=6, engine="graph")
    decoder.generate(model, **on_cuda(prompts(model, [5])), max_new_tokens=60)
    engine = decoder.pool._idle[0]
    graphs = {key: step.captured for key, step in engine._steps.items()}
    assert all(graph is not None for graph in graphs.values())
    assert {nodes for nodes, _ in graphs} <= {1, 2, 4, 8}
    decoder.generate(model, **on_cuda(prompts(model, [9])), max_new_tokens=60)
    assert all(engine._steps[key].captured is graph for key, graph in graphs.items())


@gpu
@needs_cuda
@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize("alone", [True, False])
def test_videos_are_decoded_as_eager_forwards_decode_them(family, alone):
    torch.backends.cuda.matmul.allow_tf32 = False
    model = tiny_video_model(family, dtype=torch.float32).cuda()
    batch = video_prompts(family, 3, dtype=torch.float32)
    visual = {name: value.cuda() for name, value in batch.visual.items()}
    given = (model, batch.input_ids.cuda(), batch.attention_mask.cuda())
    draft = None if alone else tiny_video_model(family, layers=1, seed=1, dtype=torch.float32).cuda()
    right = Autoregressive(engine="eager").generate(*given, max_new_tokens=40, **visual)
    strict = VisualRelaxation(relaxation=0.0, pst_window=0)
    for decoder in (SpecVLM(draft, engine="graph"), LVSpec(draft, rule=strict, engine="graph")):
        for _ in range(2):  # captured, then replayed
            out = decoder.generate(*given, max_new_tokens=40, **visual)
            left = [row for row, tokens in enumerate(out.tokens) if tokens != right.tokens[row]]
            assert len(left) <= 1, "random float32 logits tie within rounding now and then, not in every row"
        assert all(step.captured for engine in decoder.pool._idle for step in engine._steps.values())
    loose = [LVSpec(draft, engine=kind).generate(*given, max_new_tokens=40, **visual) for kind in ("eager", "graph")]
    assert sum(a != b for a, b in zip(loose[0].tokens, loose[1].tokens, strict=True)) <= 1


def watched(decoder):
    """The decoder with drafts that fail where they wait for the device, but for the first, which reads the prompt."""
    make = decoder.drafter

    def drafter(model, request):
        made = make(model, request)
        draft, calls = made.draft, []

        def hurried(run, limits):
            calls.append(limits)
            torch.cuda.set_sync_debug_mode("default" if len(calls) == 1 else "error")
            try:
                return draft(run, limits)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        made.draft = hurried
        return made

    decoder.drafter = drafter
    return decoder


@gpu
@needs_cuda
@pytest.mark.parametrize("sampling", [None, Sampling(seed=1)])
def test_a_draft_does_not_wait_for_the_device(sampling):
    model = tiny_video_model("qwen2_5_vl", dtype=torch.float32).cuda()
    draft = tiny_video_model("qwen2_5_vl", layers=1, seed=1, dtype=torch.float32).cuda()
    batch = video_prompts("qwen2_5_vl", 1, dtype=torch.float32)
    visual = {name: value.cuda() for name, value in batch.visual.items()}
    videos = (model, batch.input_ids.cuda(), batch.attention_mask.cuda()), visual
    text = tiny_model("llama", residual=0.3, dtype=torch.float32).cuda()
    own = SelfSpeculative(skip={"attention": [1], "mlp": []}, gamma=0.0, adaptive=False, carry=False, engine="graph")
    cases = [(SpecVLM(draft, engine="graph"), videos), (own, ((text, prompts(text, [5])["input_ids"].cuda()), {}))]
    if sampling is None:
        cases.append((LVSpec(draft, engine="graph"), videos))
    for decoder, (given, more) in cases:
        settings = {"max_new_tokens": 40, "eos_token_id": (), "sampling": sampling}
        decoder.generate(*given, **settings, **more)  # graphs are captured and small tables made
        watched(decoder).generate(*given, **settings, **more)


@gpu
@needs_cuda
@pytest.mark.parametrize("name", list(LOSSLESS))
def test_sampled_text_is_the_same_on_the_gpu_and_on_the_processor(name):
    model = tiny_model("llama", residual=0.3, seed=3)
    batch, sampling = prompts(model, LENGTHS), Sampling(temperature=0.8, top_k=30, top_p=0.9, seed=5)
    right = Autoregressive().generate(model, **batch, max_new_tokens=64, sampling=sampling).tokens
    decoder = LOSSLESS[name](model.cuda())
    for _ in range(2):  # captured, then replayed from another call
        out = decoder.generate(model, **on_cuda(batch), max_new_tokens=64, sampling=sampling)
        assert out.tokens == right


@pytest.mark.parametrize("kind", ["gemma3_text", "lora", "qwen2_moe", "qwen3_moe"])
@pytest.mark.parametrize("lengths", [[5], [4, 7]])
def test_fused_steps_through_interpreted_kernels(monkeypatch, kind, lengths):
    """On a processor the whole fused step also runs through Triton's interpreter."""
    from tests.support import triton_mode

    if triton_mode.DEVICE != "cpu":
        pytest.skip("the kernels are compiled here, see above")
    from saccade.inference.engine.kernels import linear

    lora = kind == "lora"
    model = (adapted(tiny_model("qwen3", layers=2)) if lora else classes.tiny_model(kind, layers=2)).float()
    decoder = Autoregressive(engine="graph")
    decoder.pool.uncaptured = True
    batch = prompts(model, lengths)
    right = Autoregressive().generate(model, **batch, max_new_tokens=3).tokens
    called = []
    names = ("linear", "add", "norm", "rotate", "experts", "experts_add")
    kernels = fused._Kernels(*[getattr(triton_mode, f"triton_{name}") for name in names])
    attend = triton_mode.triton_decode_attention
    # fewer and larger programs than a GPU wants: the interpreter takes long for each
    monkeypatch.setattr(linear, "_row_tile", lambda *_: (32, 64, 1, True))
    monkeypatch.setattr(triton_mode.experts, "_row_tiles", lambda *_: ((16, 64, 1), (32, 64, 1)))
    monkeypatch.setattr(fused, "_kernels", lambda like: kernels)
    monkeypatch.setattr(cache, "decode_attention", lambda *a, **k: called.append(1) or attend(*a, **k))
    assert decoder.generate(model, **batch, max_new_tokens=3).tokens == right
    assert len(called) == 2 * 2  # two steps behind the prefill, two layers
    assert isinstance(decoder.pool._idle[0]._fused, FusedStep)


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gpt_oss"])
def test_windows_through_interpreted_kernels(monkeypatch, kind):
    """A text longer than the window, with caps and sinks, by the kernel in place of its definition."""
    from tests.support.triton_mode import DEVICE, triton_decode_attention

    if DEVICE != "cpu":
        pytest.skip("the kernels are compiled here, see test_capture.py")
    monkeypatch.setitem(classes.SIZES, "sliding_window", 64)
    model = classes.tiny_model(kind).float()
    batch = prompts(model, [61, 70])
    right = Autoregressive(engine="eager").generate(model, **batch, max_new_tokens=3).tokens
    decoder = Autoregressive()
    decoder.pool.uncaptured = True
    called = []

    def attend(*given, window, **named):
        called.append(window)
        return triton_decode_attention(*given, window=window, **named)

    for module in (cache, hf_attention):
        monkeypatch.setattr(module, "decode_attention", attend)
    assert decoder.generate(model, **batch, max_new_tokens=3).tokens == right
    assert called[:2] == [64, 64 if kind == "mistral" else None]
