"""Adapters beside PEFT's own: twenty updates in float64, and files that either reads."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roberta_flax.convert import cache, load_adapter, save_adapter
from roberta_flax.convert.adapters import Adapter
from roberta_flax.convert.names import localize_huggingface, to_huggingface
from roberta_flax.errors import CheckpointError, InputError
from roberta_flax.nn import adapters, forward
from roberta_flax.nn.adapters import LoRA
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.nn.numerics import Numerics
from roberta_flax.nn.tree import flatten
from roberta_flax.train import adam, head_loss, make_train_step, polynomial_decay
from tests.conftest import skip_or_fail
from tests.marks import slow_but
from tests.references import SMALL, random_tokens, torch  # skips where there is no fairseq
from tests.train.test_step import PAD, TOLERANCE, UPDATES, FairseqTrainer, classification, losses_in_float64

if find_spec("peft") is None:
    skip_or_fail("PEFT, the reference, is not installed")
    pytest.skip("no PEFT", allow_module_level=True)

__all__ = ["losses_in_float64"]  # a fixture

HEAD = HeadConfig("task", 3, 32)
CONFIG = RobertaConfig(
    vocab_size=SMALL["vocab"], num_layers=2, hidden_size=32, num_heads=4, intermediate_size=64, max_positions=62,
    dropout=0.0, attention_dropout=0.0, pooler_dropout=0.0, type_vocab_size=1, lm_head=False, heads=(HEAD,),
)  # fmt: skip
ONE_LAYER = dataclasses.replace(CONFIG, num_layers=1)  # of a run of twenty updates; files have both
# our settings, and the modules that PEFT calls so
VARIANTS: dict[str, tuple[LoRA, list[str]]] = {
    "plain": (LoRA(4, 8, ("attention.query", "attention.value")), ["query", "value"]),
    "rank-stabilized, all linear maps": (
        LoRA(3, 5, adapters.LINEAR_MAPS, rslora=True),
        ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"],
    ),
    "magnitudes": (LoRA(4, 8, ("attention.output", "attention.query"), dora=True), ["query", "attention.output.dense"]),
    "dropout": (LoRA(4, 8, ("attention.value", "feed_forward.intermediate"), 0.25), ["value", "intermediate.dense"]),
    "dropout and magnitudes": (LoRA(4, 8, ("attention.key",), 0.25, dora=True), ["key"]),
}


@pytest.fixture(scope="module")
def network() -> Any:
    """A classifier of Transformers with random weights, in float64 and without dropout."""
    import transformers

    from references.transformers import configuration

    torch.manual_seed(0)
    none = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"), 0.0)
    settings = configuration(ONE_LAYER, num_labels=3, attn_implementation="eager", **none)
    model = transformers.RobertaForSequenceClassification(settings).double()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def parameters_of(network: Any, config: RobertaConfig, model_type: str = "roberta") -> dict[str, Any]:
    """The network's parameters as a tree."""
    state, kinds = network.state_dict(), {head.name: head.kind for head in config.heads}
    leaves = {}
    for path in flatten(forward.abstract_params(config)):
        place = to_huggingface(path, kinds)
        values = state[localize_huggingface(place.path, model_type)].numpy()
        leaves[path] = jnp.array(values.T if path.endswith("kernel") else values)
    return adapters.nested(leaves)


def with_peft(network: Any, lora: LoRA, modules: list[str]) -> Any:
    """A copy of the network with PEFT's adapters, none of whose numbers are those that it begins with."""
    import copy

    import peft

    settings = peft.LoraConfig(
        task_type="SEQ_CLS", r=lora.rank, lora_alpha=lora.alpha, target_modules=modules, lora_dropout=lora.dropout,
        use_rslora=lora.rslora, use_dora=lora.dora,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        model = peft.get_peft_model(copy.deepcopy(network), settings).double()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def saved(model: Any, folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    return folder


def every_seventh(x: Any) -> Any:
    """A dropout that is no random one: it drops every seventh feature of a token."""
    kept = np.arange(x.shape[-1]) % 7 != 3
    return x * (torch.from_numpy(kept) if isinstance(x, torch.Tensor) else kept) / 0.75


@pytest.fixture
def same_dropout(monkeypatch):
    """Has PEFT and our adapters drop the same numbers."""

    def alike(x: Any, rate: float, key: Any, barrier: bool = True) -> Any:
        return x if key is None else every_seventh(x)

    monkeypatch.setattr(adapters, "dropout", alike)
    monkeypatch.setattr(
        torch.nn.Dropout, "forward", lambda self, x: every_seventh(x) if self.p and self.training else x
    )


def cross_entropy(model: Any, sample: dict[str, Any]) -> tuple[Any, int, None]:
    """In the place of one of fairseq's criteria: the sum over the rows."""
    tokens = sample["net_input"]["src_tokens"]
    logits = model(input_ids=tokens, attention_mask=tokens != CONFIG.pad_id).logits
    return torch.nn.functional.cross_entropy(logits, sample["target"], reduction="sum"), len(tokens), None


@pytest.mark.usefixtures("x64", "losses_in_float64", "same_dropout")
@pytest.mark.parametrize("variant", slow_but(["plain"], VARIANTS))
def test_twenty_updates_agree_with_pefts_in_float64(variant, network, tmp_path):
    lora, modules = VARIANTS[variant]
    model = with_peft(network, lora, modules)
    read, params = load_adapter(saved(model, tmp_path / "begin"), ONE_LAYER, HEAD)
    assert dataclasses.replace(read, targets=lora.targets) == lora
    assert read.paths(ONE_LAYER) == lora.paths(ONE_LAYER)
    body = {name: part for name, part in parameters_of(network, ONE_LAYER).items() if name != "heads"}

    trainer = FairseqTrainer(model, cross_entropy, rate=1e-2, clip=1.5, decay=0.1, warmup=5, total=18)
    optimizer = adam(polynomial_decay(1e-2, warmup_steps=5, total_steps=18), config=ONE_LAYER, clip_norm=1.5)
    train_step = make_train_step(
        head_loss("task", config=ONE_LAYER, numerics=Numerics("float64"), lora=lora), optimizer
    )
    opt_state, random = train_step.init(params), np.random.default_rng(0)
    for update in range(UPDATES):
        batch, samples = classification(random, seed=update)
        expected_loss, norm = trainer.update(samples)
        params, opt_state, metrics = train_step(params, opt_state, batch, jax.random.key(update), body)
        assert float(metrics["loss"]) == pytest.approx(expected_loss, rel=TOLERANCE)
        assert float(metrics["gradient_norm"]) == pytest.approx(norm, rel=TOLERANCE)

    # what PEFT writes of its own, and what we write
    save_adapter(tmp_path / "ours", lora, params, ONE_LAYER, head=HEAD)
    theirs, ours = (tensors_of(path) for path in (saved(model, tmp_path / "theirs"), tmp_path / "ours"))
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        assert np.abs(tensor - ours[name]).max() <= TOLERANCE, name

    # PEFT's model of our files, and ours of the merged ones
    import peft

    tokens = random_tokens([9, 30, 2, 21], ONE_LAYER.vocab_size, seed=1)
    again = peft.PeftModel.from_pretrained(network, tmp_path / "ours").double().eval()
    ids = torch.from_numpy(tokens).long()
    expected = again(input_ids=ids, attention_mask=ids != ONE_LAYER.pad_id).logits.detach().numpy()
    again.unload()
    merged = lora.merge(body, params)
    found = forward.head_logits(merged, tokens, head="task", config=ONE_LAYER, numerics=Numerics("float64"))
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(folder / "adapter_model.safetensors")


# head or None, the class of Transformers that has it; those of pre-norm networks have other names for its parts
KINDS: dict[str, tuple[HeadConfig | None, str]] = {
    "sentences, pre-norm": (HEAD, "RobertaPreLayerNormForSequenceClassification"),
    "tokens": (HeadConfig("task", 5, 0, "token"), "RobertaForTokenClassification"),
    "spans": (HeadConfig("task", 2, 0, "span"), "RobertaForQuestionAnswering"),
    "choices": (HeadConfig("task", 1, 32, "choice"), "RobertaForMultipleChoice"),
    "masked LM": (None, "RobertaForMaskedLM"),
}


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", KINDS)
def test_peft_loads_what_is_saved_with_heads_of_every_kind(kind, tmp_path):
    import peft
    import transformers

    from references.transformers import configuration

    head, class_name = KINDS[kind]
    pre_norm = "PreLayerNorm" in class_name
    model_type = "roberta-prelayernorm" if pre_norm else "roberta"
    heads = (head,) if head else ()
    config = dataclasses.replace(CONFIG, lm_head=head is None, heads=heads, normalize_before=pre_norm)
    labels = {"num_labels": head.num_classes} if head else {}
    torch.manual_seed(0)
    model_class = getattr(transformers, class_name)
    settings = configuration(config, attn_implementation="eager", **labels).to_dict()
    settings = model_class.config_class(**{name: value for name, value in settings.items() if name != "model_type"})
    network = model_class(settings).double().eval()
    lora = LoRA(2, 6, ("all-linear",), dora=True)
    params = parameters_of(network, config, model_type)
    trained = lora.init(params, config, jax.random.key(0)) | ({"heads": params["heads"]} if head else {})
    random = np.random.default_rng(0)
    trained = jax.tree.map(lambda x: x + 0.1 * random.normal(size=x.shape), trained)
    save_adapter(tmp_path / "adapter", lora, trained, config, head=head, model_type=model_type)

    model = peft.PeftModel.from_pretrained(network, tmp_path / "adapter").double().eval()
    tokens = random_tokens([9, 30, 2, 21], config.vocab_size, seed=1)
    ids = torch.from_numpy(tokens).long()
    shape = (2, 2) if kind == "choices" else (4,)
    outputs = model(**{
        name: x.reshape(*shape, -1) for name, x in (("input_ids", ids), ("attention_mask", (ids != PAD).long()))
    })  # fmt: skip
    expected = torch.stack([outputs.start_logits, outputs.end_logits], -1) if kind == "spans" else outputs.logits
    merged, numerics = lora.merge(params, trained), Numerics("float64")
    if head is None:
        found = forward.lm_logits(merged, tokens, config=config, numerics=numerics)
    else:
        found = forward.head_logits(merged, tokens, head="task", config=config, numerics=numerics)
    expected = expected.detach().numpy().reshape(found.shape)
    is_token = np.broadcast_to((tokens != PAD)[..., None] if found.ndim == 3 else True, found.shape)
    np.testing.assert_allclose(np.asarray(found)[is_token], expected[is_token], rtol=0, atol=TOLERANCE)
    again, of_file = load_adapter(tmp_path / "adapter", config, head)
    assert again.paths(config) == lora.paths(config)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, of_file, trained)))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """An adapter as it is written before the first step."""
    lora = LoRA(2)
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), forward.abstract_params(CONFIG))
    trained = lora.init(params, CONFIG, jax.random.key(1)) | {"heads": params["heads"]}
    folder = tmp_path_factory.mktemp("written") / "adapter"
    save_adapter(folder, lora, trained, CONFIG, head=HEAD, base_model="hf:org/name@main")
    return folder


def test_the_settings_are_those_that_peft_reads(written):
    import peft

    settings = peft.LoraConfig.from_pretrained(written)
    assert (settings.base_model_name_or_path, settings.revision) == ("org/name", "main")
    assert (settings.r, settings.lora_alpha, settings.task_type) == (2, 16, "SEQ_CLS")
    assert settings.target_modules == {
        f"roberta.encoder.layer.{layer}.attention.self.{name}" for layer in range(2) for name in ("query", "value")
    }


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        ({"rank_pattern": {"query": 3}}, CONFIG, "has a rank_pattern; only adapters of one rank and alpha"),
        ({"r": 3}, CONFIG, "does not fit the network: wrong shape: .*lora_a is .32, 2., expected .32, 3."),
        ({"r": 0}, CONFIG, "rank must be a positive integer, got 0"),
        ({"use_dora": True}, CONFIG, "missing: layers.0.attention.query.lora_magnitude"),
        ({"peft_type": "IA3"}, CONFIG, "peft_type=IA3; only LORA is supported"),
        ({}, dataclasses.replace(CONFIG, num_layers=1), "no linear map has a path that ends with 'layers.1.attention"),
        ({}, dataclasses.replace(CONFIG, heads=()), "which is of no adapter and not of the head to train"),
    ],
)
def test_an_adapter_that_cannot_be_trained_further_is_refused_in_one_line(written, change, config, message, tmp_path):
    folder = shutil.copytree(written, tmp_path / "adapter")
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(CheckpointError, match=message) as error:
        load_adapter(folder, config, HEAD if config.heads else None)
    assert "\n" not in str(error.value)


def test_a_directory_that_is_no_adapter_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"is no adapter of PEFT: it has no adapter_config\.json"):
        load_adapter(tmp_path, CONFIG)


def test_a_target_is_a_path_its_end_or_a_pattern_of_either():
    def layers(*targets: str) -> list[str]:
        return [path.removeprefix("layers.") for path in LoRA(1, targets=targets).paths(CONFIG)]

    assert layers("query") == ["0.attention.query", "1.attention.query"]
    assert layers("output") == [f"{i}.{part}.output" for i in range(2) for part in ("attention", "feed_forward")]
    assert layers("attention.output") == ["0.attention.output", "1.attention.output"]
    assert layers(r"layers\.1\..*\.(key|value)") == ["1.attention.key", "1.attention.value"]
    assert layers("layers.0.feed_forward.output", "1.attention.key") == ["0.feed_forward.output", "1.attention.key"]
    assert len(layers("all-linear")) == 12
    with pytest.raises(InputError, match="no linear map has a path that ends with 'uery'"):
        layers("uery")


@pytest.mark.slow
def test_peft_finds_the_network_of_a_run_that_began_with_a_model_of_transformers(run, one_layer, tmp_path):
    import peft

    import roberta_flax

    base = tmp_path / "base"
    status, _, err = run("export", one_layer, base, "--to", "huggingface", "--no-heads")
    assert status == 0, err
    rows = [f"the {noun} is {word}\t{label}\n" for noun in ("dog", "cat") for word, label in (("good", 1), ("bad", 0))]
    file = tmp_path / "train.tsv"
    file.write_text("sentence\tlabel\n" + "".join(rows))
    options = ("--task", "sst-2", "--batch-size", 4, "--steps", 4, "--lr", 1e-2, "--lora-rank", 4, "--lora-apart")
    status, _, err = run("finetune", file, "--valid", file, "--model", base, "-o", tmp_path / "run", *options)
    assert status == 0, err
    best = tmp_path / "run" / "best"
    assert json.loads((best / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)

    ours = roberta_flax.load(best)
    (head,) = ours.config.heads
    assert (head.name, head.labels) == ("sst-2", ("negative", "positive"))
    theirs = peft.AutoPeftModelForSequenceClassification.from_pretrained(best, num_labels=2).eval()
    tokens = ours.encode("the garden is bad")
    expected = theirs(input_ids=torch.from_numpy(tokens[None]).long()).logits.detach().numpy()
    # float32: a sum of 64 numbers of size one in another order
    np.testing.assert_allclose(ours.predict("sst-2", tokens, return_logits=True), expected, rtol=0, atol=1e-4)


def test_an_adapter_that_names_itself_as_its_network_is_refused_in_one_line(written, tmp_path):
    folder = shutil.copytree(written, tmp_path / "adapter")
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": str(folder)}))
    with pytest.raises(CheckpointError) as error:
        cache.resolve(folder, cache_dir=tmp_path / "cache")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"name": "task", "num_classes": 3, "inner_size": 32, "kind": "none", "labels": []}']
)
def test_a_head_that_is_damaged_is_refused_in_one_line(content, written, tmp_path):
    folder = shutil.copytree(written, tmp_path / "adapter")
    (folder / "head.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"head\.json (is|should)") as error:
        Adapter.open(folder).head()
    assert "\n" not in str(error.value)
