"""Checkpoints of every vintage and of the whole family, built by fairseq: converted, run beside it, and written back."""

from __future__ import annotations

import argparse
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from fairseq.data import Dictionary
from fairseq.data.encoders.gpt2_bpe import GPT2BPE
from fairseq.data.encoders.hf_byte_bpe import HuggingFaceByteLevelBPE
from fairseq.data.encoders.sentencepiece_bpe import SentencepieceBPE
from fairseq.models.roberta import RobertaHubInterface
from fairseq.models.roberta import model as fairseq_roberta

import roberta_flax
from roberta_flax import CheckpointError, InputError
from roberta_flax.convert import convert, export, shards, torch_file, verify
from roberta_flax.nn import forward
from roberta_flax.text.fairseq_tokenizer import byte_alphabet
from tests.parity.test_network import FLOAT32, FLOAT64, assert_same_network, largest_difference
from tests.references import (
    SMALL,
    all_hidden,
    build,
    dictionary,
    in_the_names_of_2019,
    load,
    random_tokens,
    torch,
    write,
)

TOKENS = random_tokens([1, 2, 30, 77], 131)
EXACT = {"dtype": "float64", "param_dtype": "float64"}


def saved(model, folder: Path, bpe: Path, change) -> Path:
    """A fairseq directory whose checkpoint `change` has changed."""
    source = write(model, folder, bpe)
    checkpoint = torch.load(source / "model.pt", weights_only=False)
    checkpoint = change(checkpoint) or checkpoint
    torch.save(checkpoint, source / "model.pt")
    return source


def assert_agrees(model, source: Path, folder: Path, **options: Any) -> roberta_flax.Roberta:
    directory = convert(source, folder, **options)
    roberta = roberta_flax.load(directory, **EXACT)
    assert_same_network(model, roberta, TOKENS, FLOAT64)
    result = verify(directory, source)
    assert not result.problems
    assert all(comparison.identical for comparison in result.comparisons)
    return roberta


def bare(checkpoint: dict) -> None:
    """The encoder saved alone, as encoder.state_dict() gives it; heads beside it."""
    checkpoint["model"] = {name.removeprefix("encoder."): tensor for name, tensor in checkpoint["model"].items()}


def of_2019(checkpoint: dict) -> None:
    checkpoint["model"] = in_the_names_of_2019(checkpoint["model"])


def with_leftovers(checkpoint: dict) -> None:
    model = checkpoint["model"]
    model["encoder._ema"] = {"sentence_encoder.embed_tokens.weight": torch.ones(3)}
    model["encoder.regression_head.0.weight"] = torch.ones(2, 2)
    model["encoder.regression_head.0.bias"] = torch.ones(2)
    model["encoder.sentence_encoder.embed_positions._float_tensor"] = torch.ones(1)
    model["_float_tensor"] = torch.ones(1)
    checkpoint["extra_state"]["ema"] = {"encoder.lm_head.bias": torch.ones(3)}


def with_optimizer(checkpoint: dict) -> None:
    checkpoint["last_optimizer_state"] = {
        "state": {i: {"step": i, "exp_avg": torch.randn(36, 36), "exp_avg_sq": torch.randn(36, 36)} for i in range(40)},
        "param_groups": [{"params": list(range(40)), "lr": 1e-4, "betas": (0.9, 0.98)}],
    }


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("change", [bare, of_2019, with_leftovers, with_optimizer], ids=lambda f: f.__name__)
def test_checkpoints_of_every_vintage_agree(change, tmp_path, tiny_source):
    model = build(**SMALL, heads={"mnli": 3, "sst": 2}, dtype=torch.float64)
    source = saved(model, tmp_path / "source", tiny_source, change)
    assert_agrees(model, source, tmp_path / "converted")


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_heads_of_other_widths_and_with_spectral_norm_agree(tmp_path, tiny_source):
    model = build(**SMALL, heads={"mnli": 3}, dtype=torch.float64, spectral_norm_classification_head=True)
    plain = build(**SMALL, heads={}, dtype=torch.float64)
    plain.register_classification_head("wide", num_classes=5, inner_dim=91)
    plain.register_classification_head("narrow", num_classes=2, inner_dim=1)
    plain.to(torch.float64)
    model.train()  # power iterations, as training makes them
    for _ in range(3):
        model(torch.from_numpy(TOKENS).long(), classification_head_name="mnli")
    model.eval()
    assert any(name.endswith("weight_orig") for name in model.state_dict())
    for name, each in {"spectral": model, "plain": plain}.items():
        source = write(each, tmp_path / name, tiny_source)
        directory = convert(source, tmp_path / f"{name}-converted")
        roberta = roberta_flax.load(directory, **EXACT)
        assert_same_network(each, roberta, TOKENS, FLOAT64)
        assert not verify(directory, source).problems
    assert [head.inner_size for head in roberta.config.heads] == [36, 1, 91]


@pytest.mark.usefixtures("x64")
def test_a_regression_head_gives_its_value(tmp_path, tiny_source):
    model = build(**SMALL, heads={"sts_b": 1}, dtype=torch.float64)
    roberta = roberta_flax.load(
        convert(write(model, tmp_path / "source", tiny_source), tmp_path / "converted"), **EXACT
    )
    with torch.no_grad():
        values = model(torch.from_numpy(TOKENS).long(), classification_head_name="sts_b")[0]
    for return_logits in (True, False):
        predicted = roberta.predict("sts_b", TOKENS, return_logits=return_logits)
        assert largest_difference(values, predicted) <= FLOAT64
    assert roberta.config.head("sts_b").problem == "regression"
    with pytest.raises(InputError, match="is a regression and has no classes"):
        roberta.predict_labels("sts_b", TOKENS)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("already_pruned", [False, True])
def test_layers_to_keep_prune_as_fairseq_prunes(already_pruned, tmp_path, tiny_source):
    """fairseq's own prune_state_dict on load is the reference."""
    from fairseq.checkpoint_utils import prune_state_dict

    whole = build(**{**SMALL, "encoder_layers": 5}, dtype=torch.float64)
    arguments = argparse.Namespace(**{**vars(whole.args), "encoder_layers_to_keep": "3,0,4"})
    pruned = build(**{**SMALL, "encoder_layers": 3}, dtype=torch.float64)
    state = prune_state_dict(whole.state_dict(), argparse.Namespace(**vars(arguments)))
    pruned.load_state_dict(state)
    source = write(whole, tmp_path / "source", tiny_source)
    checkpoint = torch.load(source / "model.pt", weights_only=False)
    checkpoint["args"] = arguments
    checkpoint["model"] = state if already_pruned else whole.state_dict()
    torch.save(checkpoint, source / "model.pt")
    roberta = roberta_flax.load(convert(source, tmp_path / "converted"), **EXACT)
    assert roberta.config.num_layers == 3
    assert_same_network(pruned, roberta, TOKENS, FLOAT64)


@pytest.mark.usefixtures("x64")
def test_a_checkpoint_without_an_lm_head(tmp_path, tiny_source):
    """As data2vec leaves it; features and heads agree, and what needs the LM head says so."""
    model = build(**SMALL, dtype=torch.float64)

    def change(checkpoint):
        state = {name: tensor for name, tensor in checkpoint["model"].items() if "lm_head" not in name}
        checkpoint["model"] = {**state, "encoder._ema": torch.zeros(1)}

    source = saved(model, tmp_path / "source", tiny_source, change)
    roberta = roberta_flax.load(convert(source, tmp_path / "converted"), **EXACT)
    features = all_hidden(model, TOKENS)[1]
    assert largest_difference(features, roberta.extract_features(TOKENS)) <= FLOAT64
    for use in (
        lambda: forward.lm_logits(roberta.params, TOKENS, config=roberta.config),
        lambda: roberta.fill_mask("a <mask>"),
    ):
        with pytest.raises(InputError, match="no masked-LM head"):
            use()
    exported = export(tmp_path / "converted", tmp_path / "exported", to="fairseq")
    again = fairseq_roberta.RobertaModel.build_model(
        torch.load(exported / "model.pt", weights_only=False)["args"],
        argparse.Namespace(source_dictionary=dictionary(131), max_positions=lambda: 512),
    )
    again.args.load_checkpoint_heads = True
    again.load_state_dict(torch.load(exported / "model.pt", weights_only=False)["model"])


# models in several files


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("parts", [1, 3])
def test_fully_sharded_checkpoints_join_as_fairscale_joins_them(parts, tmp_path, tiny_source):
    from fairscale.nn.data_parallel import FullyShardedDataParallel

    model = build(**SMALL, dtype=torch.float64)
    source = write(model, tmp_path / "source", tiny_source)
    checkpoint = torch.load(source / "model.pt", weights_only=False)
    (source / "model.pt").unlink()
    flat = dict(model.named_parameters())
    layer = "encoder.sentence_encoder.layers.1"
    groups = {"": [n for n in flat if not n.startswith(layer)], layer: [n for n in flat if n.startswith(layer)]}
    states: list[dict] = [{} for _ in range(parts)]
    metadata: list[dict] = [
        {"param_metadata": [], "buffer_names": ["encoder.sentence_encoder.version"]} for _ in states
    ]
    for path, names in groups.items():
        whole = torch.cat([flat[name].detach().reshape(-1) for name in names])
        padding = -len(whole) % parts
        chunks = torch.cat([whole, whole.new_full((padding,), 7)]).chunk(parts)
        for rank, (state, described, chunk) in enumerate(zip(states, metadata, chunks, strict=True)):
            state[f"{path}.flat_param_0" if path else "flat_param_0"] = chunk.clone()
            described["param_metadata"].append({
                "fsdp_path": path, "no_broadcast_optim_state": False,
                "shared_param_info": []
                if path
                else [("encoder.sentence_encoder.embed_tokens.weight", "encoder.lm_head.weight")],
                "params": {"flat_param_0": {
                    "names": [name.removeprefix(f"{path}.") if path else name for name in names],
                    "shapes": [flat[name].shape for name in names], "numels": [flat[name].numel() for name in names],
                    "padding": padding if rank == parts - 1 else 0,
                }},
            })  # fmt: skip
    for rank, (state, described) in enumerate(zip(states, metadata, strict=True)):
        state["encoder.sentence_encoder.version"] = torch.tensor([3.0])
        torch.save({**checkpoint, "model": state, "fsdp_metadata": described}, source / f"model-shard{rank}.pt")
    # fairscale copies what is shared by the last wrapper's list alone
    for described in metadata:
        described["param_metadata"].reverse()
    expected = FullyShardedDataParallel.consolidate_shard_weights(states, metadata)

    files = shards.files_of(source / "model.pt")
    assert len(files) == parts
    ours = shards.join(files, [torch_file.load(file) for file in files])
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (ours[name].read() == tensor.numpy()).all(), name
    assert_agrees(model, source, tmp_path / "converted")


@pytest.mark.usefixtures("x64")
def test_tensor_parallel_parts_join_along_the_axes_that_megatron_divides(tmp_path, tiny_source):
    """Which layers are Column- and which RowParallelLinear: fairseq/model_parallel; Megatron itself is not to be had.

    The dictionary is padded there to a multiple of 8 for each part.
    """
    parts, vocab = 2, 144
    model = build(
        **{**SMALL, "vocab": vocab, "encoder_embed_dim": 48, "encoder_ffn_embed_dim": 50},
        encoder_normalize_before=True,
        layernorm_embedding=False,
        dtype=torch.float64,
    )
    source = write(model, tmp_path / "source", tiny_source)
    lines = (source / "dict.txt").read_text().splitlines(keepends=True)
    (source / "dict.txt").write_text("".join(lines[:131]))  # fairseq pads after <mask>
    checkpoint = torch.load(source / "model.pt", weights_only=False)
    checkpoint["args"].arch = "model_parallel_roberta_large"
    (source / "model.pt").unlink()
    column = ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias", "fc1.weight",
              "fc1.bias", "embed_tokens.weight", "lm_head.weight", "dense.weight", "dense.bias")  # fmt: skip
    row = ("self_attn.out_proj.weight", "fc2.weight")
    for part in range(parts):
        state = {}
        for name, tensor in checkpoint["model"].items():
            axis = 0 if name.endswith(column) else 1 if name.endswith(row) else None
            state[name] = tensor if axis is None else tensor.chunk(parts, axis)[part].clone()
        torch.save({**checkpoint, "model": state}, source / f"model-model_part-{part}.pt")
    directory = convert(source, tmp_path / "converted")
    roberta = roberta_flax.load(directory, **EXACT)
    assert_same_network(model, roberta, random_tokens([1, 30, 77], vocab), FLOAT64)
    assert roberta.tokenizer.mask_id == 4 + 131
    assert roberta.tokenizer.backend.dictionary.symbols[-1] == "madeupword0007"
    assert not verify(directory, source).problems


def test_parts_with_some_of_the_tensors_each_and_parts_that_do_not_fit(tmp_path, tiny_source):
    model = build(**SMALL)
    source = write(model, tmp_path / "source", tiny_source)
    expected = convert(source, tmp_path / "expected")
    checkpoint = torch.load(source / "model.pt", weights_only=False)
    (source / "model.pt").unlink()
    names = list(checkpoint["model"])
    for part in range(2):
        state = {name: checkpoint["model"][name] for name in names[part::2]}
        torch.save({**checkpoint, "model": state}, source / f"model_part{part}.pt")
    directory = convert(source, tmp_path / "converted")
    assert (directory / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    assert not verify(directory, source).problems

    (source / "model_part1.pt").rename(source / "model_part2.pt")
    with pytest.raises(CheckpointError, match="has parts 0, 2 of model_partN.pt"):
        convert(source, tmp_path / "other")
    checkpoint["model"] = {"encoder.sentence_encoder.layernorm_embedding.weight": torch.ones(36)}
    torch.save(checkpoint, source / "model_part1.pt")
    torch.save({**checkpoint, "model": {"encoder.sentence_encoder.layernorm_embedding.weight": torch.zeros(36)}},
               source / "model_part0.pt")  # fmt: skip
    (source / "model_part2.pt").unlink()
    with pytest.raises(CheckpointError, match="layernorm_embedding.weight differs among them"):
        convert(source, tmp_path / "other")


# the family


def xlmr_dictionary(pieces: list[str]) -> str:
    return "".join(f"{piece} 1\n" for piece in pieces[3:])


def camembert_dictionary(pieces: list[str]) -> str:
    lines = [f"{piece} 1 #fairseq:overwrite\n" for piece in pieces[:3]]
    return "".join([*lines, *(f"{piece} 1\n" for piece in pieces[3:])])


FAMILY = {
    "XLM-R": (xlmr_dictionary, {}),
    "XLM-R XL": (xlmr_dictionary, {"encoder_normalize_before": True, "layernorm_embedding": False}),
    "CamemBERT": (camembert_dictionary, {}),
}


@pytest.fixture
def family_member(request, tmp_path, sentencepiece_model):
    """A fairseq model over a sentencepiece vocabulary: its hub interface, and its directory."""
    import sentencepiece

    write_dictionary, changes = request.param
    processor = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model)
    pieces = [processor.IdToPiece(i) for i in range(processor.GetPieceSize())]
    source = tmp_path / "source"
    source.mkdir()
    (source / "dict.txt").write_text(write_dictionary(pieces))
    (source / "sentencepiece.bpe.model").write_bytes(sentencepiece_model)
    symbols = Dictionary.load(str(source / "dict.txt"))
    symbols.add_symbol("<mask>")
    model = build(**{**SMALL, "vocab": len(symbols)}, **changes, dtype=torch.float64)
    torch.save({"args": model.args, "model": model.state_dict()}, source / "model.pt")
    hub = RobertaHubInterface(
        argparse.Namespace(bpe=None),
        argparse.Namespace(source_dictionary=symbols, mask_idx=symbols.index("<mask>")),
        model,
    )
    hub.bpe = SentencepieceBPE(
        argparse.Namespace(
            sentencepiece_model=str(source / "sentencepiece.bpe.model"),
            sentencepiece_enable_sampling=False,
            sentencepiece_alpha=None,
        )
    )
    hub.eval()
    return hub, source


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("family_member", FAMILY.values(), indirect=True, ids=FAMILY)
def test_xlmr_and_camembert_agree(family_member, tmp_path, sick_pairs):
    hub, source = family_member
    directory = convert(source, tmp_path / "converted")
    roberta = roberta_flax.load(directory, **EXACT)
    texts = [text for pair in sick_pairs[:200] for text in pair]
    texts += [
        "",
        " ",
        "Ça va, Zoë?",
        "日本語",
        "emoji 👩‍👩‍👧",
        "a  b\tc\nd",
        "\u3000x\u00a0y",
        "ﬁ ① ½ <mask> </s>",
        "\u2028\u0085z",
    ]
    texts += [chr(i) for i in [*range(1, 0x3000, 7), 0x1F600, 0xFFFD, 0x10FFFF]]
    for text in texts:
        expected = hub.encode(text).tolist()
        assert roberta.encode(text).tolist() == expected, text
        if roberta.tokenizer.bos_id == 0 and len(expected) > 2:  # CamemBERT's fairseq prints its second <s> and </s>
            assert roberta.decode(expected) == hub.decode(torch.tensor(expected)), text
    pair = hub.encode("A man sleeps.", "Nobody is awake.")
    assert roberta.encode("A man sleeps.", "Nobody is awake.").tolist() == pair.tolist()
    assert roberta.decode(roberta.encode("A man sleeps.", "A dog")) == ["A man sleeps.", "A dog"]
    tokens = random_tokens([1, 2, 30, 77], roberta.config.vocab_size)
    tokens[3, :12] = pair[:12].numpy()
    assert_same_network(hub.model, roberta, tokens, FLOAT64)
    for text in ("A man is <mask> the guitar.", "<mask> is", "the<mask>"):
        theirs, ours = hub.fill_mask(text, topk=40), roberta.fill_mask(text, topk=40)
        if roberta.tokenizer.bos_id == 0:  # (fairseq pairs what follows a dropped special token wrongly)
            assert {(filled, token) for filled, _, token in ours} == {(filled, token) for filled, _, token in theirs}
    assert not verify(directory, source).problems
    roberta.save(tmp_path / "saved")
    saved = roberta_flax.load_tokenizer(tmp_path / "saved")
    assert all(saved.encode(text).tolist() == roberta.encode(text).tolist() for text in texts)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_gottbert_and_umberto_layouts(tmp_path, tiny_source, sentencepiece_model, sick_pairs):
    """GottBERT: vocab.json and merges.txt of the tokenizers package (hf_byte_bpe). UmBERTo: a *.model of another name."""
    load = partial(roberta_flax.load, **EXACT)
    model = build(**{**SMALL, "vocab": 581}, dtype=torch.float64)
    gottbert = write(model, tmp_path / "gottbert", tiny_source)
    shutil.copy(tiny_source / "dict.txt", gottbert / "dict.txt")
    (gottbert / "encoder.json").rename(gottbert / "vocab.json")
    (gottbert / "vocab.bpe").rename(gottbert / "merges.txt")
    theirs = HuggingFaceByteLevelBPE(
        argparse.Namespace(
            bpe_vocab=str(gottbert / "vocab.json"), bpe_merges=str(gottbert / "merges.txt"), bpe_add_prefix_space=False
        )
    )
    symbols = Dictionary.load(str(gottbert / "dict.txt"))
    roberta = load(convert(gottbert, tmp_path / "gottbert-converted"))
    assert_same_network(model, roberta, random_tokens([1, 30, 77], 581), FLOAT64)
    for text in [text for pair in sick_pairs[:200] for text in pair] + ["Größe 12 — 日本", " x  y "]:
        expected = symbols.encode_line(theirs.encode(text), append_eos=False, add_if_not_exist=False).tolist()
        assert roberta.tokenizer.encode_text(text).tolist() == expected

    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model)
    pieces = [processor.IdToPiece(i) for i in range(processor.GetPieceSize())]
    model = build(**{**SMALL, "vocab": len(pieces) + 5}, dtype=torch.float64)
    umberto = write(model, tmp_path / "umberto", tiny_source)
    for name in ("encoder.json", "vocab.bpe"):
        (umberto / name).unlink()
    (umberto / "umberto.model").write_bytes(sentencepiece_model)
    (umberto / "dict.txt").write_text(camembert_dictionary(pieces))
    roberta = load(convert(umberto, tmp_path / "umberto-converted"))
    assert_same_network(model, roberta, random_tokens([1, 30, 77], len(pieces) + 5), FLOAT64)
    assert roberta.encode("A man").tolist()[0] == 5


# and back


EXPORTED = {
    "main": {},
    "untied": {"untie_weights_roberta": True},
    "pre-norm": {"encoder_normalize_before": True},
    "pre-norm without layernorm_embedding": {"architecture": "roberta_prenorm"},
    "relu": {"activation_fn": "relu", "pooler_activation_fn": "relu"},
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", EXPORTED)
def test_fairseq_itself_loads_what_is_exported_bit_for_bit(variant, tmp_path, tiny_source):
    model = build(**{**SMALL, "vocab": 581}, **EXPORTED[variant], heads={"mnli": 3, "sts_b": 1})
    model.register_classification_head("wide", num_classes=4, inner_dim=50)
    source = write(model.eval(), tmp_path / "source", tiny_source)
    shutil.copy(tiny_source / "dict.txt", source / "dict.txt")
    directory = convert(source, tmp_path / "converted")
    exported = export(directory, tmp_path / "exported", to="fairseq")
    assert not verify(directory, exported).problems

    hub = load(exported)
    expected, state = model.state_dict(), hub.model.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name
    tokens = torch.from_numpy(random_tokens([30, 77], 581)).long()
    with torch.no_grad():
        for head in ("mnli", "sts_b", "wide"):
            assert torch.equal(
                hub.model(tokens, classification_head_name=head)[0], model(tokens, classification_head_name=head)[0]
            )
    assert hub.encode("Hello world!").tolist() == roberta_flax.load_tokenizer(directory).encode("Hello world!").tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_exported_as_it_is(dtype, tmp_path, tiny_source):
    model = build(**SMALL, dtype=dtype)
    directory = convert(write(model, tmp_path / "source", tiny_source), tmp_path / "converted")
    exported = export(directory, tmp_path / "exported", to="fairseq")
    state = torch.load(exported / "model.pt", weights_only=False)["model"]
    for name, tensor in model.state_dict().items():
        if not name.endswith("version"):
            assert state[name].dtype == dtype
            assert torch.equal(state[name], tensor), name


def test_a_model_from_fairseq_goes_to_transformers_and_back(tmp_path, tiny_source):
    transformers = pytest.importorskip("transformers")
    model = build(**{**SMALL, "vocab": 581}, heads={"mnli": 3})
    source = write(model, tmp_path / "source", tiny_source)
    shutil.copy(tiny_source / "dict.txt", source / "dict.txt")
    directory = convert(source, tmp_path / "converted")
    exported = export(directory, tmp_path / "exported", to="huggingface")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(exported).eval()
    tokens = random_tokens([30, 77], 581)
    inputs, mask = torch.from_numpy(tokens).long(), torch.from_numpy((tokens != 1).astype(np.int64))
    with torch.no_grad():
        logits = theirs(inputs, attention_mask=mask).logits
        assert largest_difference(model(inputs, classification_head_name="mnli")[0], logits) <= FLOAT32
    again = convert(exported, tmp_path / "again", head_name="mnli")
    assert (again / "model.safetensors").read_bytes() == (directory / "model.safetensors").read_bytes()
    back = export(again, tmp_path / "back", to="fairseq")
    state = torch.load(back / "model.pt", weights_only=False)["model"]
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("lacking", ["some pieces", "bytes that no text has"])
def test_a_dictionary_that_lacks_pieces_goes_to_transformers_where_no_text_needs_them(
    lacking, tmp_path, tiny_source, sick_pairs
):
    """fairseq gives <unk> for them; transformers' fast tokenizer does not load, or drops them."""
    transformers = pytest.importorskip("transformers")
    lines = (tiny_source / "dict.txt").read_text().splitlines()
    encoder = json.loads((tiny_source / "encoder.json").read_text())
    unused = {str(encoder[character]) for character in (byte_alphabet()[byte] for byte in (0xC0, 0xC1, 0xF5, 0xFF))}
    if lacking == "some pieces":
        kept = [line for i, line in enumerate(lines) if i % 37 != 5]
    else:
        kept = [line for line in lines if line.split()[0] not in unused]
    model = build(**{**SMALL, "vocab": len(kept) + 5})
    source = write(model, tmp_path / "source", tiny_source)
    (source / "dict.txt").write_text("\n".join(kept) + "\n")
    directory = convert(source, tmp_path / "converted")
    bpe = GPT2BPE(
        argparse.Namespace(gpt2_encoder_json=str(source / "encoder.json"), gpt2_vocab_bpe=str(source / "vocab.bpe"))
    )
    symbols = Dictionary.load(str(export(directory, tmp_path / "fairseq", to="fairseq") / "dict.txt"))
    ours = roberta_flax.load_tokenizer(directory)
    texts = [text for pair in sick_pairs[:100] for text in pair] + ["Zebra $~ 1977", "日本語"]
    expected = [symbols.encode_line(bpe.encode(t), append_eos=False, add_if_not_exist=False).tolist() for t in texts]
    assert [ours.encode_text(text).tolist() for text in texts] == expected
    if lacking == "some pieces":
        assert any(3 in ids for ids in expected)
        with pytest.raises(CheckpointError, match=f"dict.txt lacks {len(lines) - len(kept)} of the 576 pieces of its"):
            export(directory, tmp_path / "exported", to="huggingface")
        assert not (tmp_path / "exported").exists()
    else:
        assert len(kept) == len(lines) - 4
        exported = export(directory, tmp_path / "exported", to="huggingface")
        theirs = transformers.AutoTokenizer.from_pretrained(exported)
        assert theirs.is_fast
        assert theirs(texts, add_special_tokens=False)["input_ids"] == expected
        assert not verify(directory, exported, head_name="mnli").problems


@pytest.mark.slow
def test_a_model_that_was_trained_here_goes_to_torch(tiny, tmp_path):
    """Parameters changed in JAX, saved, exported to both libraries: the outputs of these are ours."""
    transformers = pytest.importorskip("transformers")
    key = jax.random.key(0)
    tiny.params = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(key, x.shape), tiny.params)
    tiny.register_classification_head("new", num_classes=4, seed=0)
    tiny.save(tmp_path / "saved")
    export(tmp_path / "saved", tmp_path / "fairseq", to="fairseq")
    export(tmp_path / "saved", tmp_path / "transformers", to="huggingface", heads=["new"])
    tokens = random_tokens([30, 77], 581)
    inputs, ours = torch.from_numpy(tokens).long(), np.asarray(tiny.predict("new", tokens, return_logits=True))

    checkpoint = torch.load(tmp_path / "fairseq" / "model.pt", weights_only=False)
    task = argparse.Namespace(source_dictionary=dictionary(581), max_positions=lambda: 512)
    model = fairseq_roberta.RobertaModel.build_model(checkpoint["args"], task)
    for name, classes in {"mnli": 3, "new": 4}.items():
        model.register_classification_head(name, num_classes=classes)
    model.load_state_dict(checkpoint["model"])
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "transformers").eval()
    with torch.no_grad():
        assert largest_difference(model.eval()(inputs, classification_head_name="new")[0], ours) <= FLOAT32
        logits = theirs(inputs, attention_mask=torch.from_numpy((tokens != 1).astype(np.int64))).logits
        assert largest_difference(logits, ours) <= FLOAT32


@pytest.mark.parametrize(
    ("changes", "heads", "to", "message"),
    [
        ({}, {"a": 2, "b": 3}, "huggingface", "one head, but this one has 'a', 'b'"),
        ({"pooler_activation_fn": "relu"}, {"a": 2}, "huggingface", "uses relu"),
        ({"activation_fn": "relu"}, {"a": 2}, "huggingface", "LM head uses gelu; this model's uses relu"),
        ({"layernorm_embedding": False}, {"a": 2}, "huggingface", "Transformers has no RoBERTa with"),
    ],
)
def test_what_the_other_library_cannot_have_is_refused(changes, heads, to, message, tmp_path, tiny_source):
    directory = convert(
        write(build(**SMALL, **changes, heads=heads), tmp_path / "source", tiny_source), tmp_path / "converted"
    )
    with pytest.raises(CheckpointError, match=message):
        export(directory, tmp_path / "exported", to=to)
    assert not (tmp_path / "exported").exists()


def test_export_refuses_what_is_not_a_converted_model_and_other_formats(tmp_path, tiny_directory):
    with pytest.raises(CheckpointError, match="is not a converted model"):
        export(tmp_path, tmp_path / "exported", to="fairseq")
    with pytest.raises(InputError, match="fairseq or huggingface or sentence-transformers; got 'onnx'"):
        export(tiny_directory, tmp_path / "exported", to="onnx")
    with pytest.raises(InputError, match="no head called 'rte'"):
        export(tiny_directory, tmp_path / "exported", to="fairseq", heads=["rte"])
