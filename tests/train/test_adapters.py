"""Adapters beside PEFT's own: twenty updates in float64, and files that either reads."""

from __future__ import annotations

import dataclasses
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roberta_flax.convert import adapter_files
from roberta_flax.convert.names import to_huggingface
from roberta_flax.nn import adapters, forward
from roberta_flax.nn.adapters import LoRA
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.nn.numerics import Numerics
from roberta_flax.nn.tree import flatten
from roberta_flax.train import adam, head_loss, make_train_step, polynomial_decay
from tests.conftest import skip_or_fail
from tests.marks import slow_but
from tests.references import SMALL, random_tokens, torch  # skips where there is no fairseq
from tests.train.test_step import TOLERANCE, UPDATES, FairseqTrainer, classification, losses_in_float64

if find_spec("peft") is None:
    skip_or_fail("PEFT, the reference, is not installed")
    pytest.skip("no PEFT", allow_module_level=True)

__all__ = ["losses_in_float64"]  # a fixture

HEAD = HeadConfig("task", 3, 32)
CONFIG = RobertaConfig(
    vocab_size=SMALL["vocab"], num_layers=2, hidden_size=32, num_heads=4, intermediate_size=64, max_positions=62,
    dropout=0.0, attention_dropout=0.0, pooler_dropout=0.0, type_vocab_size=1, lm_head=False, heads=(HEAD,),
)  # fmt: skip
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
    settings = configuration(CONFIG, num_labels=3, attn_implementation="eager", **none)
    model = transformers.RobertaForSequenceClassification(settings).double()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def parameters_of(network: Any) -> dict[str, Any]:
    """The network's parameters as a tree."""
    state = network.state_dict()
    leaves = {}
    for path in flatten(forward.abstract_params(CONFIG)):
        place = to_huggingface(path, {"task": "sentence"})
        values = state[place.path].numpy()
        leaves[path] = jnp.array(values.T if path.endswith("kernel") else values)
    return adapters.joined(leaves, {})


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
    read, params = adapter_files.load(saved(model, tmp_path / "begin"), CONFIG, HEAD)
    assert dataclasses.replace(read, targets=lora.targets) == lora
    assert read.paths(CONFIG) == lora.paths(CONFIG)
    body = {name: part for name, part in parameters_of(network).items() if name != "heads"}

    trainer = FairseqTrainer(model, cross_entropy, rate=1e-2, clip=1.5, decay=0.1, warmup=5, total=18)
    optimizer = adam(polynomial_decay(1e-2, warmup_steps=5, total_steps=18), config=CONFIG, clip_norm=1.5)
    train_step = make_train_step(head_loss("task", config=CONFIG, numerics=Numerics("float64"), lora=lora), optimizer)
    opt_state, random = train_step.init(params), np.random.default_rng(0)
    for update in range(UPDATES):
        batch, samples = classification(random, seed=update)
        expected_loss, norm = trainer.update(samples)
        params, opt_state, metrics = train_step(params, opt_state, batch, jax.random.key(update), body)
        assert float(metrics["loss"]) == pytest.approx(expected_loss, rel=TOLERANCE)
        assert float(metrics["gradient_norm"]) == pytest.approx(norm, rel=TOLERANCE)

    # what PEFT writes of its own, and what we write
    adapter_files.save(tmp_path / "ours", lora, params, CONFIG, "roberta", head=HEAD)
    theirs, ours = (tensors_of(path) for path in (saved(model, tmp_path / "theirs"), tmp_path / "ours"))
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        assert np.abs(tensor - ours[name]).max() <= TOLERANCE, name

    # PEFT's model of our files, and ours of the merged ones
    import peft

    tokens = random_tokens([9, 30, 2, 21], CONFIG.vocab_size, seed=1)
    again = peft.PeftModel.from_pretrained(network, tmp_path / "ours").double().eval()
    ids = torch.from_numpy(tokens).long()
    expected = again(input_ids=ids, attention_mask=ids != CONFIG.pad_id).logits.detach().numpy()
    again.unload()
    merged = lora.merge(adapters.joined(body, params))
    found = forward.head_logits(merged, tokens, head="task", config=CONFIG, numerics=Numerics("float64"))
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(folder / "adapter_model.safetensors")
