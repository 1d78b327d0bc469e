"""That the comparison finds a wrong network, at the right tensor, and finds nothing wrong with a right one.

Networks that are changed, and those of each activation, are run without compiling (jax.disable_jit): each then takes a
second, and what is compared is the same. The other right ones are compiled, as users have them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import jax
import pytest

from roberta_flax import HeadConfig, RobertaConfig
from roberta_flax.errors import InputError
from roberta_flax.nn import forward
from roberta_flax.nn.config import ACTIVATIONS
from roberta_flax.parity import Run
from roberta_flax.parity.model_comparison import compare_subject
from roberta_flax.parity.report import failures
from roberta_flax.parity.subject import WITHOUT_LOSS, Subject
from roberta_flax.text.tokenizer import Tokenizer
from tests.parity_tool.mutations import EQUIVALENTS, MUTATIONS, Equivalent, Mutation, config
from tests.parity_tool.networks import POST_NORM, PRE_NORM, SIZES, Network, network, one_layer

DTYPES = ("float64", "float32", "bfloat16", "float16", "int8")


@pytest.fixture(scope="module")
def networks(tmp_path_factory, tiny_source) -> Callable[[RobertaConfig, bool], Network]:
    """The network of a configuration, made once."""
    made: dict[tuple[RobertaConfig, bool], Network] = {}
    tokenizer = Tokenizer.from_directory(tiny_source)

    def of(config: RobertaConfig, gradients: bool = True) -> Network:
        if (config, gradients) not in made:
            made[config, gradients] = network(tmp_path_factory.mktemp("network"), config, tokenizer, gradients)
        return made[config, gradients]

    return of


@pytest.fixture
def changed(monkeypatch):
    """Makes changes, and lets nothing that was traced before be used, nor later what is traced with them."""

    def make(subject: Subject, *changes) -> Subject:
        monkeypatch.setattr(forward, "_abstract", cache(forward._abstract.__wrapped__))
        for change in changes:
            change(monkeypatch, subject)
        return subject

    return make


def compared(network: Network, subject: Subject, names: Sequence[str] | None = None, gradients: bool = True) -> Run:
    gradients = gradients and network.gradients and subject.dtype not in WITHOUT_LOSS
    return compare_subject(subject, network.expected, names or network.names, gradients=gradients)


def over(run: Run) -> list[tuple[str, float]]:
    """What exceeds its tolerance, for a failure to show."""
    return [(tensor.name, tensor.tolerance_ratio) for tensor in failures(run)]


CASES = [
    (each, dtype)
    for dtype in DTYPES
    for each in MUTATIONS
    if dtype in each.dtypes and (dtype != "float64" or "float32" not in each.dtypes)
]
FAST = {number * len(CASES) // 20 for number in range(20)}  # those that are not slow: 20, of all parts of the network


@pytest.mark.parametrize(
    ("mutation", "dtype"),
    [
        pytest.param(each, dtype, id=f"{each.name}-{dtype}", marks=[] if number in FAST else [pytest.mark.slow])
        for number, (each, dtype) in enumerate(CASES)
    ],
)
def test_a_wrong_network_is_found_at_the_point_where_it_is_wrong(mutation: Mutation, dtype, networks, changed):
    """In float32 and bfloat16; float64's bounds are float32's by 2^-29, and what is over these is over those."""
    network = networks(mutation.right)
    names = network.names[: network.names.index(mutation.at) + 1]  # what comes later takes time and says nothing
    with jax.disable_jit():
        subject = changed(Subject(network.directory, dtype), mutation.change)
        run = compared(network, subject, names, mutation.of_gradients)
    assert not run.passed
    assert run.diverges_at == mutation.at
    if mutation.rows is not None:
        assert run.tensor(mutation.at).worst_by_ratio.row in mutation.rows


def test_at_least_a_hundred_mutations_are_tried():
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 100


def test_a_layer_that_is_not_there_is_named(networks, changed):
    network = networks(POST_NORM)
    (missing,) = (mutation for mutation in MUTATIONS if mutation.name == "last layer missing")
    with jax.disable_jit():
        run = compared(network, changed(Subject(network.directory, "float32"), missing.change), gradients=False)
    assert [name for name in run.not_compared if not name.startswith("gradients.")] == [
        name for name in network.names if name.startswith("layers.1.")
    ]


def test_a_network_of_other_shapes_is_an_error_that_names_the_point(networks, changed):
    network = networks(POST_NORM)
    subject = changed(Subject(network.directory, "float32"), config(num_heads=8))
    with (
        jax.disable_jit(),
        pytest.raises(InputError, match=r"^layers\.0\.attention\.scores has shape \(6, 8, 24, 24\)"),
    ):
        compared(network, subject, gradients=False)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("equivalent", EQUIVALENTS, ids=lambda each: each.name)
def test_a_network_computed_otherwise_passes(equivalent: Equivalent, dtype, networks, changed):
    network = networks(one_layer(POST_NORM))
    with jax.disable_jit():
        subject = changed(Subject(network.directory, dtype, attention=equivalent.attention), *equivalent.changes)
        run = compared(network, subject)
    assert over(run) == []
    assert run.passed


CONFIGURATIONS = {
    "post-norm": POST_NORM,
    "pre-norm, untied, token types, regression and any number of labels": PRE_NORM,
    "one layer, no norm of embeddings, one head, relu, tags, a choice and a pooler": RobertaConfig(
        **{**SIZES, "num_layers": 1, "num_heads": 1},
        layernorm_embedding=False,
        activation="relu",
        lm_head_activation="tanh",
        pooler_activation="relu",
        heads=(
            HeadConfig("tag", 5, 0, kind="token"),
            HeadConfig("choice", 1, 32, kind="choice"),
            HeadConfig("pooled", 32, 32, kind="pooler"),
            HeadConfig("level", 1, 16),
        ),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())
def test_a_right_network_passes(config, dtype, networks):
    network = networks(config)
    run = compared(network, Subject(network.directory, dtype))
    assert over(run) == []
    assert run.passed


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_right_network_passes_with_every_activation(activation, dtype, networks):
    config = RobertaConfig(
        **{**SIZES, "num_layers": 1},
        activation=activation,
        lm_head_activation=activation,
        pooler_activation=activation,
        heads=(HeadConfig("topic", 3, 16),),
    )
    network = networks(config, False)
    with jax.disable_jit():
        run = compared(network, Subject(network.directory, dtype))
    assert over(run) == []
    assert run.passed
