"""The user's object against fairseq's own, loaded by fairseq from the same directory, and against transformers."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import roberta_flax
from roberta_flax.convert import convert
from roberta_flax.parity.torch_network import TorchRoberta
from tests.conftest import skip_or_fail
from tests.params import random_params
from tests.references import SMALL, build, random_tokens, torch, write

FLOAT32 = 5e-5  # see test_network.py


MASKED = [
    "The first Star wars movie came out in <mask>", "The first <mask> movie came out in 1977", "<mask> is a movie.",
    "a<mask>b", "a <mask>", "a  <mask>  b ", "<mask>", " <mask> ", "the <mask>.  ", "x\n<mask>\ty",
]  # fmt: skip


@pytest.mark.slow
def test_everything_a_hub_does_is_what_fairseq_does_with_the_embedded_model(
    fairseq_loads, tiny_source, tiny, sick_pairs
):
    theirs = fairseq_loads(tiny_source)
    for premise, hypothesis in sick_pairs[:40]:
        tokens = tiny.encode(premise, hypothesis)
        assert tokens.tolist() == theirs.encode(premise, hypothesis).tolist()
        assert tiny.decode(tokens) == theirs.decode(torch.from_numpy(tokens))
        logits = theirs.predict("mnli", torch.from_numpy(tokens).long()[None]).detach().numpy()
        assert np.abs(np.asarray(tiny.predict("mnli", tokens)) - logits).max() <= FLOAT32
    for masked in MASKED:
        ours, expected = tiny.fill_mask(masked, topk=7), theirs.fill_mask(masked, topk=7)
        assert [(text, token) for text, _, token in ours] == [(text, token) for text, _, token in expected]
        assert [p for _, p, _ in ours] == pytest.approx([p for _, p, _ in expected], abs=FLOAT32)


@pytest.mark.slow
def test_fill_mask_with_the_real_vocabulary_is_what_fairseq_does(fairseq_loads, gpt2_bpe, tmp_path):
    model = build(**{**SMALL, "vocab": 50265})
    source = write(model, tmp_path / "source", gpt2_bpe)
    shutil.copy(gpt2_bpe / "dict.txt", source / "dict.txt")
    theirs = fairseq_loads(source)
    ours = roberta_flax.load(convert(source, tmp_path / "converted"))
    for masked in MASKED:
        filled, expected = ours.fill_mask(masked, topk=20), theirs.fill_mask(masked, topk=20)
        assert [(text, token) for text, _, token in filled] == [(text, token) for text, _, token in expected]
        assert [p for _, p, _ in filled] == pytest.approx([p for _, p, _ in expected], rel=1e-3)


def test_fill_mask_leaves_out_tokens_without_text_and_keeps_each_probability_with_its_token(tiny):
    everything = tiny.fill_mask("a <mask> b", topk=tiny.config.vocab_size)
    assert len(everything) == tiny.config.vocab_size - 3  # <s>, </s> and <pad>
    assert [p for _, p, _ in everything] == sorted((p for _, p, _ in everything), reverse=True)
    tokens = np.concatenate([tiny.encode("a")[:-1], [tiny.tokenizer.mask_id], tiny.encode(" b")[1:]])
    logits = roberta_flax.forward.lm_logits(tiny.params, tokens[None], config=tiny.config)[0, 2]
    probabilities = np.asarray(torch.from_numpy(np.asarray(logits)).softmax(0))
    assert everything[0][1] == pytest.approx(np.delete(probabilities, [0, 1, 2]).max(), abs=1e-6)


def test_the_torch_reference_that_the_demo_compares_with_is_fairseqs_network(fairseq_loads, tiny_source):
    theirs, reference = fairseq_loads(tiny_source), TorchRoberta.from_checkpoint(tiny_source / "model.pt")
    tokens = torch.from_numpy(random_tokens([1, 9, 40], 580)).long()
    with torch.no_grad():
        features = reference.features(tokens)
        assert (theirs.extract_features(tokens) - features).abs().max() <= FLOAT32
        assert (theirs.predict("mnli", tokens, True) - reference.head_logits("mnli", features)).abs().max() <= FLOAT32
        assert (theirs.model(tokens)[0] - reference.lm_logits(features)).abs().max() <= FLOAT32


def test_a_new_heads_parameters_are_distributed_as_fairseqs(tiny):
    model = build(
        vocab=131,
        encoder_layers=1,
        encoder_embed_dim=256,
        encoder_attention_heads=4,
        encoder_ffn_embed_dim=64,
    )
    model.register_classification_head("new", num_classes=200, inner_dim=300)
    theirs = model.classification_heads["new"]
    config = roberta_flax.RobertaConfig(
        vocab_size=tiny.config.vocab_size, num_layers=1, hidden_size=256, num_heads=4, intermediate_size=64
    )
    ours = roberta_flax.Roberta(config, random_params(config), tiny.tokenizer)
    ours.register_classification_head("new", num_classes=200, inner_dim=300, seed=1)
    head = ours.params["heads"]["new"]
    for mine, layer in ((head["dense"], theirs.dense), (head["output"], theirs.out_proj)):
        for values, expected in ((mine["kernel"], layer.weight.T), (mine["bias"], layer.bias)):
            values, expected = np.asarray(values), expected.detach().numpy()
            assert values.shape == expected.shape
            assert np.abs(values).max() <= layer.in_features**-0.5
            # a uniform distribution's deviation is its half-width / sqrt(3); 200 samples know it to 5 %
            assert values.std() == pytest.approx(expected.std(), rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", "base"])
def test_transformers_network_agrees(size, tmp_path, tiny_source):
    """A second reference, which shares no code with fairseq."""
    try:
        from transformers import RobertaForMaskedLM, RobertaForSequenceClassification
        from transformers.modeling_utils import no_init_weights

        from references.transformers import configuration
    except ImportError as error:
        skip_or_fail(f"transformers cannot be imported ({error})")
    # of base without most of its embeddings, a third of it
    sizes = SMALL if size == "small" else {"vocab": SMALL["vocab"]}
    model = build(**sizes, dtype=torch.float32)
    ours = roberta_flax.load(convert(write(model, tmp_path / "source", tiny_source), tmp_path / "converted"))
    config = configuration(ours.config, num_labels=3, hidden_act="gelu")
    renamed = {}
    for name, value in model.state_dict().items():
        for old, new in [
            ("encoder.sentence_encoder.embed_tokens", "roberta.embeddings.word_embeddings"),
            ("encoder.sentence_encoder.embed_positions", "roberta.embeddings.position_embeddings"),
            ("encoder.sentence_encoder.layernorm_embedding", "roberta.embeddings.LayerNorm"),
            ("encoder.sentence_encoder.layers", "roberta.encoder.layer"), ("self_attn.q_proj", "attention.self.query"),
            ("self_attn.k_proj", "attention.self.key"), ("self_attn.v_proj", "attention.self.value"),
            ("self_attn.out_proj", "attention.output.dense"), ("self_attn_layer_norm", "attention.output.LayerNorm"),
            ("fc1", "intermediate.dense"), ("fc2", "output.dense"), ("final_layer_norm", "output.LayerNorm"),
            ("encoder.lm_head.weight", "lm_head.decoder.weight"), ("encoder.lm_head", "lm_head"),
            ("classification_heads.mnli", "classifier"),
        ]:  # fmt: skip
            name = name.replace(old, new)
        renamed[name] = value
    hidden = ours.config.hidden_size
    renamed["roberta.embeddings.token_type_embeddings.weight"] = torch.zeros(1, hidden)  # RoBERTa has no segments
    renamed["lm_head.decoder.bias"] = renamed["lm_head.bias"]
    tokens = random_tokens([1, 12, 50], ours.config.vocab_size)
    inputs = {
        "input_ids": torch.from_numpy(tokens).long(),
        "attention_mask": torch.from_numpy(tokens != 1).long(),
    }
    not_padding = tokens != 1
    with torch.no_grad(), no_init_weights():
        for network, compute in (
            (
                RobertaForMaskedLM(config),
                lambda: roberta_flax.forward.lm_logits(ours.params, tokens, config=ours.config),
            ),
            (
                RobertaForSequenceClassification(config),
                lambda: ours.predict("mnli", tokens, return_logits=True),
            ),
        ):
            missing = network.load_state_dict(renamed, strict=False, assign=True).missing_keys
            assert [name for name in missing if "position_ids" not in name and "token_type_ids" not in name] == []
            logits = network.eval()(**inputs).logits.numpy()
            mine = np.asarray(compute())
            if logits.ndim == 3:  # transformers does not zero padding at the input, so padding differs there
                logits, mine = logits[not_padding], mine[not_padding]
            assert np.abs(logits - mine).max() <= FLOAT32
