"""The shapes in the signatures of roberta_flax.nn are those of the arrays that pass through them.

Everything is traced and nothing is computed: shapes are known then.
"""

from __future__ import annotations

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxtyping import TypeCheckError

from tests import shapes

BATCH, TIME, SELECTED = 3, 12, 4
TOKENS = np.where(np.arange(TIME) < np.array([[12], [7], [1]]), 5, 1).astype(np.int32)
POSITIONS = np.zeros((BATCH, SELECTED), np.int32)
# two sequences in each row, and padding
SEGMENTS = np.tile(np.repeat([0, 1, -1], [5, 4, 3]), (BATCH, 1))
STARTS = np.tile([0, 5], (BATCH, 1))
HEADS = {"sentence": (3, 16), "token": (5, 0), "span": (2, 0), "choice": (1, 16), "pooler": (16, 16)}
CONFIGS = {
    "post-norm": {},
    "pre-norm": {
        "normalize_before": True, "layernorm_embedding": False, "tie_word_embeddings": False, "type_vocab_size": 2,
        "layer_drop": 0.5, "activation_dropout": 0.1, "pooler_dropout": 0.1,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def nn():
    with shapes.checked_modules(
        "nn.attention",
        "nn.adapters",
        "nn.config",
        "nn.forward",
        "nn.model",
        "nn.numerics",
        "nn.quantize",
        "nn.sentence",
        "train.losses",
    ) as modules:
        yield modules


def config_of(nn, name: str):
    heads = tuple(nn.config.HeadConfig(kind, *sizes, kind=kind) for kind, sizes in HEADS.items())
    return nn.config.RobertaConfig(
        vocab_size=61, num_layers=1, hidden_size=32, num_heads=4, intermediate_size=48, max_positions=24, heads=heads,
        **CONFIGS[name],
    )  # fmt: skip


def run_forward(nn, params, config, numerics) -> None:
    """Every function of roberta_flax.forward, on every kind of input that it takes."""

    def trace(name: str, *arrays, segments=None, starts=None, **static):
        function = partial(getattr(nn.forward, name), config=config, numerics=numerics, **static)
        packed = {name: value for name, value in (("segments", segments), ("starts", starts)) if value is not None}
        return jax.eval_shape(function, params, TOKENS, *arrays, **packed)

    for packed in ({}, {"segments": SEGMENTS}):
        assert trace("features", **packed).shape == (BATCH, TIME, config.hidden_size)
        assert trace("lm_logits", **packed).shape == (BATCH, TIME, config.vocab_size)
        assert trace("lm_logits", POSITIONS, **packed).shape == (BATCH, SELECTED, config.vocab_size)
    states = trace("hidden_states")
    assert [state.shape for state in states] == [(BATCH, TIME, config.hidden_size)] * (config.num_layers + 1)
    for packed in ({}, {"segments": SEGMENTS, "starts": STARTS}):
        for pooling in nn.forward.POOLINGS:
            trace("pooled_features", pooling=pooling, **packed)
        for head in config.heads:
            trace("head_logits", head=head.name, **packed)
            if not (packed and head.kind == "span"):
                trace("head_log_probs", head=head.name, **packed)
    trace("top_tokens", POSITIONS, topk=3)
    trace("token_log_probs", POSITIONS, POSITIONS)
    assert {len(each.shape) for each in trace("largest_inputs").values()} == {1}
    assert list(trace("intermediates", POSITIONS)) == sorted(nn.forward.intermediate_names(config))


def run_gradients(nn, params, config, numerics) -> None:
    """The gradient of every loss by every parameter."""
    rows = np.ones(BATCH, np.float32)
    batches = {
        "sentence": {"tokens": TOKENS, "targets": np.zeros(BATCH, np.int32), "weights": rows},
        "token": {"tokens": TOKENS, "targets": np.zeros_like(TOKENS), "weights": np.ones(TOKENS.shape, np.float32)},
        "span": {"tokens": TOKENS, "targets": np.zeros((BATCH, 2), np.int32), "weights": rows},
        "choice": {"tokens": TOKENS[None], "targets": np.zeros(1, np.int32), "weights": rows[:1]},
    }
    of_heads = [(nn.losses.head_loss(head, config=config, numerics=numerics), batch) for head, batch in batches.items()]
    masked = {"tokens": TOKENS, "positions": POSITIONS, "targets": POSITIONS, "weights": np.ones(POSITIONS.shape)}
    for loss, batch in (*of_heads, (nn.losses.masked_lm_loss(config=config, numerics=numerics), masked)):
        gradients, _ = jax.eval_shape(jax.grad(loss, has_aux=True), params, batch, jax.random.key(0))
        assert jax.tree.map(jnp.shape, gradients) == jax.tree.map(jnp.shape, params)


def run_network(nn, config, dtype: str) -> None:
    numerics = nn.numerics.Numerics(dtype)
    params = jax.eval_shape(lambda: nn.forward.init_params(config, jax.random.key(0)))
    run_forward(nn, params, config, numerics)
    run_gradients(nn, params, config, numerics)
    run_gradients(nn, params, config, nn.numerics.Numerics(dtype, remat=True))
    quantized = jax.eval_shape(nn.quantize.quantize, params)
    jax.eval_shape(partial(nn.forward.features, config=config, numerics=numerics), quantized, TOKENS)
    jax.eval_shape(partial(nn.forward.operands, dtype=dtype), params)
    features = jax.eval_shape(lambda: nn.model.RobertaModel(config, numerics, nnx.Rngs(0))(jnp.asarray(TOKENS)))
    assert features.shape == (*TOKENS.shape, config.hidden_size)
    head = config.heads[0]
    of_head = jax.eval_shape(lambda: nn.model.Head.init_params(config, head, numerics, jax.random.key(0)))
    assert jax.tree.map(jnp.shape, of_head) == jax.tree.map(jnp.shape, params["heads"][head.name])


def run_adapters(nn, config) -> None:
    """The gradients of adapters of every linear map, with dropout and magnitudes, and the merged network."""
    numerics = nn.numerics.Numerics()
    params = jax.eval_shape(lambda: nn.forward.init_params(config, jax.random.key(0)))
    lora = nn.adapters.LoRA(2, targets=("all-linear",), dropout=0.1, dora=True)
    adapters = jax.eval_shape(partial(lora.init, config=config), params, key=jax.random.key(0))
    loss = nn.losses.masked_lm_loss(config=config, numerics=numerics, lora=lora)
    batch = {"tokens": TOKENS, "positions": POSITIONS, "targets": POSITIONS, "weights": np.ones(POSITIONS.shape)}

    def of_adapters(adapters, params, batch):
        return loss(nn.adapters.joined(params, adapters), batch, jax.random.key(0))[0]

    gradients = jax.eval_shape(jax.grad(of_adapters), adapters, params, batch)
    assert jax.tree.map(jnp.shape, gradients) == jax.tree.map(jnp.shape, adapters)
    merged = jax.eval_shape(lora.merge, params, adapters)
    assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, params)


def run_sentence(nn, config) -> None:
    """Every pooling and module, for one sequence in a row and for several, and the vectors of tokens."""
    params = jax.eval_shape(lambda: nn.forward.init_params(config, jax.random.key(0)))
    pooling = nn.sentence.Pooling(("mean", "max"))
    modules = (pooling, nn.sentence.Dense(6), nn.sentence.LayerNorm(), nn.sentence.Normalize())
    given = [
        {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes_of.items()}
        for shapes_of in nn.sentence.param_shapes(modules, config.hidden_size)
    ]
    vectors = partial(nn.sentence.sentence_vectors, modules=modules, config=config)
    assert jax.eval_shape(vectors, params, given, TOKENS).shape == (BATCH, 6)
    assert jax.eval_shape(vectors, params, given, TOKENS, SEGMENTS, STARTS).shape == (BATCH, STARTS.shape[1], 6)
    sparse = partial(vectors, modules=(nn.sentence.SpladePooling(config.vocab_size),))
    assert jax.eval_shape(sparse, params, [{}], TOKENS).shape == (BATCH, config.vocab_size)
    of_each = partial(
        vectors, modules=(nn.sentence.MultiVectorMask(), *modules[1:2]), attended=np.ones(BATCH, np.int32)
    )
    size = modules[1].outputs
    arrays = [{}, {"kernel": np.ones((config.hidden_size, size)), "bias": np.ones(size)}]
    assert jax.eval_shape(of_each, params, arrays, TOKENS).shape == (*TOKENS.shape, size)
    head = {"kernel": np.ones((config.hidden_size, 5), np.float32), "bias": np.ones(5, np.float32)}
    of_tokens = partial(nn.sentence.token_vectors, head="colbert", config=config)
    assert jax.eval_shape(of_tokens, params, head, TOKENS).shape == (*TOKENS.shape, 5)


def run_attention(nn, patch: pytest.MonkeyPatch) -> None:
    """Every implementation, of all queries and of one, with a mask for each query and with one for all."""
    patch.setattr(nn.attention, "_WHOLE_BYTES", 0)
    patch.setattr(nn.attention, "_TPU_BYTES", 0)
    # cuDNN's takes what XLA's takes, and is not on every machine
    patch.setattr(jax.nn, "dot_product_attention", partial(_without_cudnn, jax.nn.dot_product_attention))
    of_two_heads, of_five_queries = 2 * 4 * TIME**2, 5 * 4 * TIME
    chunks = itertools.product((of_two_heads, of_five_queries), (None, *nn.attention.IMPLEMENTATIONS))
    for chunk, implementation in chunks:
        patch.setattr(nn.attention, "_CHUNK_BYTES", chunk)
        for queries in (TIME, 1):
            for rows in {1, queries}:
                query, x = (jax.ShapeDtypeStruct((BATCH, n, 4, 8), jnp.bfloat16) for n in (queries, TIME))
                mask = jax.ShapeDtypeStruct((BATCH, rows, TIME), jnp.bool_)
                attend = partial(nn.attention.attend, implementation=implementation)
                assert jax.eval_shape(attend, query, x, x, mask).shape == query.shape


def _without_cudnn(original, *args, implementation, **kwargs):
    return original(*args, implementation="xla", **kwargs)


@pytest.mark.slow
def test_every_signature_of_the_network_has_the_shapes_that_pass_through_it(nn, monkeypatch):
    """In a network of each form, one in float32 and one in 16 bits, where products and activations differ."""
    run_network(nn, config_of(nn, "post-norm"), "float32")
    run_network(nn, config_of(nn, "pre-norm"), "bfloat16")
    run_adapters(nn, config_of(nn, "post-norm"))
    run_sentence(nn, config_of(nn, "post-norm"))
    run_attention(nn, monkeypatch)
    assert len(shapes.SIGNATURES) > 50
    missing = shapes.SIGNATURES - shapes.CHECKED
    assert not missing, sorted(missing)  # each was called


def test_an_array_of_another_shape_is_refused(nn):
    """The check itself: a mask of three rows where there are twelve queries, and positions of another batch."""
    x = jax.ShapeDtypeStruct((BATCH, TIME, 4, 8), jnp.float32)
    with pytest.raises(TypeCheckError, match="mask"):
        jax.eval_shape(nn.attention.attend, x, x, x, jax.ShapeDtypeStruct((BATCH, 3, TIME), jnp.bool_))
    x, positions = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((BATCH, TIME, 8), (BATCH + 1, SELECTED)))
    with pytest.raises(TypeCheckError, match="positions"):
        jax.eval_shape(nn.model.tokens_at, x, positions)
