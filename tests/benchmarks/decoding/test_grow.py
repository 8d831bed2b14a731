"""A grown model is the small one at the size of the large one: logits, tokens, refusals and bytes."""

import copy
import math
from dataclasses import asdict, replace

import pytest
import torch

from benchmarks.decoding.grow import NEVER, SHAPES, Shape, grow, shape_of, weight_bytes
from tests.support.models import ARCHITECTURES, prompts, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")
VOCABULARY = 97
EVERYTHING = Shape(
    hidden_size=96,
    intermediate_size=112,
    num_hidden_layers=5,
    num_attention_heads=12,
    num_key_value_heads=3,
    head_dim=24,
    vocab_size=131,
)
"""Three times the width and the head size, which are no powers of two: every factor rounds."""


def small(architecture, *, tied=False, **settings):
    """Two layers whose norms and biases are not trivial and whose epsilon matters."""
    model = tiny_model(
        architecture,
        layers=2,
        vocabulary=VOCABULARY,
        tied=tied,
        dtype=torch.float32,
        rms_norm_eps=1e-3,
        **settings,
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith("bias"):
                weight.normal_(0, 0.3, generator=generator)
    return model


def cast(model, dtype):
    """A copy in another precision; the speeds of the rotary embedding stay exact, as after ``from_pretrained``."""
    other = copy.deepcopy(model).to(dtype)
    other.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq
    return other


@torch.no_grad()
def logits(model):
    tokens = torch.randint(VOCABULARY, (3, 24), generator=torch.Generator().manual_seed(2))
    return model(tokens).logits.double()


def difference(grown, model):
    """Largest difference of a logit of the old vocabulary, relative to the largest logit."""
    expected = logits(model)
    return ((logits(grown)[..., :VOCABULARY] - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request):
    return small(request.param)


@pytest.fixture(scope="module")
def grown(model):
    return grow(model, EVERYTHING, dtype=torch.float32)


def test_the_class_and_shape_are_the_ones_asked_for(model, grown):
    assert type(grown) is type(model)
    assert shape_of(grown) == EVERYTHING
    assert not grown.training
    assert {parameter.dtype for parameter in grown.parameters()} == {torch.float32}
    assert grown.model.rotary_emb.inv_freq.shape == (EVERYTHING.head_dim // 2,)


def test_logits_agree(model, grown):
    assert difference(grown, model) < 1e-5


def test_logits_agree_in_bfloat16(model):
    """As well as bfloat16 can: the grown model is no farther from the float32 model than its bfloat16 copy is."""
    grown = grow(model, EVERYTHING)
    assert {parameter.dtype for parameter in grown.parameters()} == {torch.bfloat16}
    own = difference(cast(model, torch.bfloat16), model)
    assert difference(grown, model) < 1.5 * own < 6e-2


def test_powers_of_two_cost_no_rounding_in_bfloat16(model):
    shape = replace(EVERYTHING, hidden_size=128, num_attention_heads=16, num_key_value_heads=4, head_dim=32)
    assert difference(grow(model, shape), cast(model, torch.bfloat16)) < 2e-3


def test_a_model_in_bfloat16_grows(model):
    rounded = copy.deepcopy(model).to(torch.bfloat16)
    assert difference(grow(rounded, EVERYTHING, dtype=torch.float32), rounded.float()) < 1e-5


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 96},
        {"intermediate_size": 80},
        {"num_hidden_layers": 5},
        {"num_attention_heads": 8},
        {"num_attention_heads": 8, "num_key_value_heads": 4},
        {"head_dim": 32},
        {},
    ],
    ids=lambda change: "+".join(change) or "nothing",
)
def test_each_size_grows_alone(model, change):
    assert difference(grow(model, replace(shape_of(model), **change), dtype=torch.float32), model) < 1e-5


def test_greedy_tokens_are_the_same(model, grown):
    batch = prompts(model, [3, 7, 12])
    settings = {"max_new_tokens": 32, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(**batch, **settings)
    assert expected.shape == (3, 12 + 32)
    assert len(expected[:, 12:].unique()) > 8, "the same token again and again would prove little"
    assert torch.equal(grown.generate(**batch, **settings), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_added_tokens_never_win(dtype, tied):
    answers = logits(grow(small("qwen2", tied=tied), replace(EVERYTHING, tied=tied), dtype=dtype))
    assert answers.isfinite().all()
    assert answers[..., VOCABULARY:].max() < -1e4
    assert answers[..., :VOCABULARY].min() > -1e3


def test_added_tokens_never_win_behind_a_huge_residual():
    model = small("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight *= 1e4
    answers = logits(grow(model, EVERYTHING))
    assert answers[..., VOCABULARY:].max() < -1e4


def test_the_constant_is_small_beside_every_embedding(model, grown):
    rows, width = grown.model.embed_tokens.weight[:VOCABULARY].double(), model.config.hidden_size
    constant, lengths = rows[:, width], rows[:, :width].norm(dim=-1)
    assert (constant > 0).all()
    assert (lengths == 0).sum() == 1, "the padding's row"
    assert ((constant / lengths)[lengths > 0] ** 2).max() < 1e-9


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("vocabulary", [VOCABULARY, 131])
@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_model_stays_tied_or_not(architecture, vocabulary, tied):
    model = small(architecture, tied=True)
    grown = grow(model, replace(EVERYTHING, vocab_size=vocabulary, tied=tied), dtype=torch.float32)
    assert (grown.lm_head.weight is grown.model.embed_tokens.weight) == tied == grown.config.tie_word_embeddings
    assert difference(grown, model) < 1e-5


def test_output_and_mlp_biases_are_kept():
    model = small("llama", attention_bias=True, mlp_bias=True)
    assert difference(grow(model, EVERYTHING, dtype=torch.float32), model) < 1e-5
    model = small("qwen3", attention_bias=True)
    assert difference(grow(model, EVERYTHING, dtype=torch.float32), model) < 1e-5


def test_layers_keep_their_sliding_window():
    model = small("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1)
    grown = grow(model, EVERYTHING, dtype=torch.float32)
    assert grown.config.layer_types == ["full_attention"] * 2 + ["sliding_attention"] + ["full_attention"] * 2
    assert difference(grown, model) < 1e-5


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0},
        {
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_scaled_rotary_embeddings_grow(rope):
    model = small("llama", rope_parameters=rope)
    grown = grow(model, EVERYTHING, dtype=torch.float32)
    assert grown.config.rope_parameters["rope_theta"] == 500.0
    assert difference(grown, model) < 1e-5


def forget_query_factor(grown):
    for layer in grown.model.layers:
        attention = layer.self_attn
        query = attention.q_norm if hasattr(attention, "q_norm") else attention.q_proj
        query.weight /= math.sqrt(3)


def forget_norm_factor(grown):
    grown.model.layers[0].input_layernorm.weight *= math.sqrt(3)


def forget_epsilon(grown):
    for module in grown.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon *= 3


def forget_an_added_layer(grown):
    grown.model.layers[1].mlp.down_proj.weight.normal_(0, 0.02)


def forget_added_channels(grown):
    grown.model.layers[0].self_attn.o_proj.weight[40:].normal_(0, 0.02)


def forget_rotary_pairs(grown):
    grown.model.rotary_emb.inv_freq.copy_(grown.model.rotary_emb.inv_freq.roll(1))


@pytest.mark.parametrize(
    "mistake",
    [
        forget_query_factor,
        forget_norm_factor,
        forget_epsilon,
        forget_an_added_layer,
        forget_added_channels,
        forget_rotary_pairs,
    ],
)
def test_the_comparison_sees_mistakes(model, mistake):
    grown = grow(model, EVERYTHING, dtype=torch.float32)
    with torch.no_grad():
        mistake(grown)
    assert difference(grown, model) > 1e-4


def test_the_model_and_the_global_random_numbers_stay_as_they_were():
    model = small("qwen3")
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    first, again, other = (grow(model, EVERYTHING, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert all(torch.equal(first[name], weight) for name, weight in again.items())
    assert not torch.equal(first["model.layers.1.mlp.up_proj.weight"], other["model.layers.1.mlp.up_proj.weight"])


def test_what_need_not_be_zero_is_not(model, grown):
    for index, layer in enumerate(grown.model.layers):
        kept = index in (0, 2)
        attention, mlp = layer.self_attn, layer.mlp
        added = {
            "query heads": attention.q_proj.weight.view(3, 4, 24, 96)[:, 2 * kept :],
            "keys": attention.k_proj.weight.view(3, 24, 96)[2 * kept :],
            "values": attention.v_proj.weight,
            "gate": mlp.gate_proj.weight,
            "up": mlp.up_proj.weight,
        }
        for name, weight in added.items():
            assert (weight != 0).float().mean() > 0.9, name
            spread = model.config.initializer_range
            assert 0.8 * spread < weight.std() < 1.25 * spread, name
    head = grown.lm_head.weight
    assert (head != 0).float().mean() > 0.9
    assert (head[VOCABULARY:, 32] == NEVER).all()
    assert all(parameter.isfinite().all() for parameter in grown.parameters())


@pytest.mark.parametrize("name", [name for name in asdict(EVERYTHING) if name != "tied"])
def test_a_smaller_size_is_refused(name):
    model = small("qwen2")
    has = getattr(shape_of(model), name)
    with pytest.raises(
        ValueError, match=rf"^{name} must be at least the model's {has}, got {has - 1}: take a larger shape\.$"
    ):
        grow(model, replace(EVERYTHING, **{name: has - 1}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_dim": 20}, r"head_dim must be a multiple of the model's 8, got 20: change the shape\."),
        (
            {"num_attention_heads": 13},
            r"num_attention_heads must be a multiple of num_key_value_heads \(3\), got 13.*",
        ),
        (
            {"num_attention_heads": 6, "num_key_value_heads": 6},
            r"num_attention_heads must be at least the model's 2 for each of the 6 .* take at least 12\.",
        ),
        ({"hidden_size": 100}, r"hidden_size must be a multiple of the 12 heads, got 100: Llama needs it\."),
        ({"hidden_size": 32, "num_attention_heads": 8, "num_key_value_heads": 2}, r"hidden_size must be above .*"),
        ({"tied": True}, r"tied must be False for a model whose head is not its embedding, got True: take False\."),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        grow(small("llama"), replace(EVERYTHING, **change))


def test_other_models_and_precisions_are_refused():
    model = small("llama")
    with pytest.raises(
        ValueError, match=r"^model must be one of LlamaForCausalLM, .*, got LlamaModel: take one of these\.$"
    ):
        grow(model.model, EVERYTHING)
    with pytest.raises(
        ValueError, match=r"^dtype must be bfloat16, float32 or float64, got torch\.float16: take one of these\.$"
    ):
        grow(model, EVERYTHING, dtype=torch.float16)
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    with pytest.raises(
        ValueError, match=r"^model must have rotary embeddings of type default, .*, got dynamic: take another model\.$"
    ):
        grow(small("llama", rope_parameters=rope), EVERYTHING)


def test_weight_bytes_are_counted_by_hand():
    layer = 2 * 32 + 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48
    rest = 2 * layer + 32
    assert weight_bytes(small("llama")) == 4 * (rest + 97 * 32)
    assert weight_bytes(small("llama", tied=True)) == 4 * (rest + 97 * 32)
    biases = 2 * (32 + 2 * 16)
    assert weight_bytes(small("qwen2").to(torch.bfloat16)) == 2 * (rest + biases + 97 * 32)


@pytest.mark.parametrize(
    ("name", "architecture", "billions"),
    [
        ("0.5B", "qwen2", 0.494),
        ("1.7B", "qwen3", 1.72),
        ("7B", "qwen2", 7.62),
        ("14B", "qwen2", 14.77),
        ("32B", "qwen2", 32.76),
        ("70B", "llama", 70.55),
    ],
)
def test_the_named_shapes_have_the_published_sizes(name, architecture, billions):
    shape = SHAPES[name]
    config_type, model_type = ARCHITECTURES[architecture]
    values = asdict(shape)
    config = config_type(tie_word_embeddings=values.pop("tied"), **values)
    with torch.device("meta"):
        model = model_type(config)
    assert shape_of(model) == shape
    assert model.num_parameters() / 1e9 == pytest.approx(billions, rel=2e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_grows_on_the_device_that_will_run_it():
    model = small("qwen2")
    grown = grow(model, EVERYTHING, dtype=torch.float32, device="cuda")
    assert {tensor.device.type for tensor in (*grown.parameters(), *grown.buffers())} == {"cuda"}
    tokens = torch.randint(VOCABULARY, (1, 9))
    with torch.no_grad():
        answers = grown(tokens.cuda()).logits[..., :VOCABULARY].cpu()
        torch.testing.assert_close(answers, model(tokens).logits, rtol=1e-3, atol=1e-3)
