"""Masked-LM batches, their exact resume, perplexity, and the commands preprocess, pretrain and perplexity."""

from __future__ import annotations

import dataclasses
import json
import math

import fsspec
import jax
import numpy as np
import pytest

import roberta_flax
from roberta_flax.checkpoint import converted
from roberta_flax.datasets.recipes import PRETRAINING
from roberta_flax.nn.tree import flatten
from roberta_flax.remote import to_path
from roberta_flax.text.tokenizer import Tokenizer
from roberta_flax.train.corpus import Blocks
from roberta_flax.train.masked_batches import MaskedBatches, training_batches
from roberta_flax.train.masking import Masking, mask_block
from roberta_flax.train.pretraining import Pretraining, mean_loss, new_model, perplexity
from roberta_flax.train.samples import Samples

pytest.importorskip("grain")

VOCAB, MASK, PAD = 131, 130, 1
MAX_POSITIONS = 64
NAMES = ("tokens", "positions", "targets", "weights")


def random_blocks(count: int, longest: int = MAX_POSITIONS) -> Blocks:
    """Blocks of 2 to `longest` tokens, <s> included, that all differ."""
    random = np.random.default_rng(count)
    lengths = random.integers(1, longest, count)
    ends = lengths.cumsum()
    return Blocks(random.integers(4, MASK, ends[-1]).astype(np.uint16), ends - lengths, ends, bos_id=0)


def masked_batches(blocks: Blocks, **options: object) -> MaskedBatches:
    options = {"rows": 4, "max_positions": MAX_POSITIONS, "seed": 1, **options}
    return MaskedBatches(blocks, options.pop("masking", Masking(VOCAB, MASK)), **options)


def originals(batch: dict[str, np.ndarray]) -> list[bytes]:
    """The blocks of a batch, as they were before they were masked; rows of padding left out."""
    tokens, positions, targets, weights = (batch[name].reshape(-1, batch[name].shape[-1]) for name in NAMES)
    found = []
    for row in range(len(tokens)):
        real = weights[row] == 1
        restored = tokens[row].copy()
        restored[positions[row][real]] = targets[row][real]
        if restored[0] != PAD:
            found.append(restored[restored != PAD].tobytes())
    return found


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


# Batches


@pytest.mark.parametrize(("rows", "accumulate"), [(4, None), (4, 1), (3, 2), (64, None), (200, 2)])
def test_an_epoch_has_every_block_once(rows, accumulate):
    blocks = random_blocks(101)
    batches = masked_batches(blocks, rows=rows, accumulate=accumulate)
    expected = sorted(block.tobytes() for block in blocks)
    for epoch in range(3):
        first = epoch * batches.steps_per_epoch
        made = [batches.shuffled(first + update) for update in range(batches.steps_per_epoch)]
        assert sorted(block for batch in made for block in originals(batch)) == expected
    assert batches.steps_per_epoch == math.ceil(101 / (rows * (accumulate or 1)))


def test_arrays_are_as_the_loss_takes_them():
    blocks = random_blocks(10)
    batch = masked_batches(blocks, rows=4, accumulate=2).shuffled(0)
    shape = (2, 4)
    assert {name: (array.shape[:2], array.dtype.name) for name, array in batch.items()} == {
        "tokens": (shape, "int32"),
        "positions": (shape, "int32"),
        "targets": (shape, "int32"),
        "weights": (shape, "float32"),
    }
    assert batch["positions"].shape == batch["targets"].shape == batch["weights"].shape
    batch = masked_batches(blocks, rows=16).shuffled(0)
    assert batch["tokens"].shape[0] == 16
    padding = (batch["tokens"] == PAD).all(axis=1)
    assert padding.sum() == 6
    assert not batch["weights"][padding].any()
    unused = batch["weights"] == 0
    assert not batch["positions"][unused].any()
    assert (batch["targets"][unused] == PAD).all()


def test_masks_are_those_of_the_block_and_the_epoch():
    blocks = random_blocks(23)
    masking = Masking(VOCAB, MASK)
    index_of = {block.tobytes(): index for index, block in enumerate(blocks)}
    batches = masked_batches(blocks, seed=5)
    for epoch in (0, 1, 4):
        for update in range(batches.steps_per_epoch):
            batch = batches.shuffled(epoch * batches.steps_per_epoch + update)
            for row, original in enumerate(originals(batch)):
                index = index_of[original]
                tokens, positions = mask_block(blocks[index], masking, seed=5, epoch=epoch, index=index)
                np.testing.assert_array_equal(batch["tokens"][row][: len(tokens)], tokens)
                count = int(batch["weights"][row].sum())
                np.testing.assert_array_equal(batch["positions"][row][:count], positions)


def test_every_epoch_has_another_order_and_other_masks():
    blocks = random_blocks(40, longest=9)
    batches = masked_batches(blocks)
    epochs = [
        [batches.shuffled(epoch * batches.steps_per_epoch + update) for update in range(batches.steps_per_epoch)]
        for epoch in range(3)
    ]
    orders = [[originals(batch) for batch in epoch] for epoch in epochs]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert {tuple(batch) for batch in orders[0]} != {tuple(batch) for batch in orders[1]}
    assert not equal(masked_batches(blocks, seed=2).shuffled(0), batches.shuffled(0))
    assert equal(masked_batches(blocks).shuffled(0), batches.shuffled(0))


def test_blocks_of_about_one_length_share_a_batch_and_shapes_are_few():
    blocks = random_blocks(500)
    batches = masked_batches(blocks, rows=8)
    made = [batches.shuffled(update) for update in range(batches.steps_per_epoch)]
    shapes = {(batch["tokens"].shape, batch["positions"].shape) for batch in made}
    # one width of positions to each length: the most that 15 % of it may be
    assert shapes == {((8, time), (8, most)) for time, most in ((16, 3), (24, 4), (32, 5), (48, 8), (64, 10))}
    slots = sum(batch["tokens"].size for batch in made)
    assert blocks.lengths.sum() / slots > 0.75
    lengths = [batch["tokens"].shape[1] for batch in made]
    assert lengths != sorted(lengths)


def test_whole_words_have_room_whatever_their_number():
    begins = np.zeros(VOCAB, bool)
    begins[[*range(4), 4]] = True  # few words, and long ones
    blocks = random_blocks(200)
    batches = masked_batches(blocks, masking=Masking(VOCAB, MASK, word_begins=begins))
    made = [batches.shuffled(update) for update in range(batches.steps_per_epoch)]
    assert sorted(block for batch in made for block in originals(batch)) == sorted(block.tobytes() for block in blocks)
    widths = {}
    for batch in made:
        widths.setdefault(batch["tokens"].shape[1], set()).add(batch["positions"].shape[1])
    assert max(len(of_length) for of_length in widths.values()) <= 4
    assert all(width <= length for length, of_length in widths.items() for width in of_length)


def test_validation_is_the_same_every_time_and_for_every_batch_size():
    blocks = random_blocks(50)

    def predicted(rows: int) -> list[tuple[bytes, bytes]]:
        found = []
        for batch in masked_batches(blocks, rows=rows, seed=3).in_order():
            assert batch["tokens"].shape[0] == rows
            for row, original in enumerate(originals(batch)):
                masked = batch["tokens"][row]
                found.append((original, masked[masked != PAD].tobytes()))
        return sorted(found)

    assert predicted(4) == predicted(4) == predicted(7) == predicted(64)
    assert len(predicted(4)) == 50


# Exact resume


@pytest.mark.parametrize("accumulate", [None, 2])
def test_a_state_saved_at_any_batch_goes_on_with_equal_batches(accumulate):
    blocks = random_blocks(30)
    batches = masked_batches(blocks, accumulate=accumulate)
    count = 2 * batches.steps_per_epoch + 3
    iterator = training_batches(batches)
    states, made = [], []
    for _ in range(count):
        states.append(json.dumps(iterator.get_state()))
        made.append(next(iterator))
    for at in range(count):
        again = training_batches(masked_batches(blocks, accumulate=accumulate))
        again.set_state(json.loads(states[at]))
        for number in range(at, min(at + 3, count)):
            assert equal(next(again), made[number])
    iterator.set_state(json.loads(states[2]))  # and back, in one that is under way
    assert equal(next(iterator), made[2])


# Perplexity


def test_perplexity_is_of_the_mean_over_tokens_hand_worked():
    # 2 tokens of 1/2 and 1/8, and one of 1/4: 2 to the mean of 1, 3 and 2 bits
    results = iter([(math.log(2) + math.log(8), 2.0), (math.log(4), 1.0)])
    found = mean_loss(lambda params, batch: next(results), None, [{}, {}])
    assert found == pytest.approx({"loss": 2 * math.log(2), "perplexity": 4.0, "size": 3.0})
    assert mean_loss(lambda params, batch: (1e6, 1.0), None, [{}])["perplexity"] == math.inf


@pytest.mark.slow
def test_a_mesh_of_eight_devices_has_one_devices_loss(eight_devices, one_layer):
    program = f"""
import jax, numpy as np
import roberta_flax
from roberta_flax.nn import sharding
from roberta_flax.train import make_eval_step, masked_lm_loss
from roberta_flax.train.masked_batches import MaskedBatches
from roberta_flax.train.masking import Masking
from roberta_flax.train.pretraining import mean_loss
from tests.train.test_pretrain import random_blocks
roberta = roberta_flax.load({str(one_layer)!r})
config = roberta.config
batches = MaskedBatches(random_blocks(40, longest=12), Masking.of(roberta.tokenizer), rows=8, max_positions=64, seed=1)
step = make_eval_step(masked_lm_loss(config=config))
mesh = sharding.mesh(tensor_parallel=2)
one = mean_loss(step, roberta.params, batches.in_order())
eight = mean_loss(step, sharding.place(roberta.params, config, mesh), batches.in_order(), mesh)
assert len(mesh.devices.flat) == 8
np.testing.assert_allclose(one["loss"], eight["loss"], rtol=1e-5)
assert one["size"] == eight["size"]
print("same")
"""
    assert "same" in eight_devices(program)


# The commands


TEXT = "".join(
    f"The {animal} {verb} the {thing}.\nThe {thing} is seen by the {animal}.\n\n"
    for animal in ("dog", "cat", "horse", "man")
    for verb in ("sees", "likes", "has")
    for thing in ("ball", "house", "tree", "guitar", "boy")
)
SMALL = ("--layers", 1, "--hidden", 32, "--heads", 2, "--intermediate", 64, "--max-positions", 48)
ONE_SHAPE = ("--sample-break-mode", "none", "--tokens-per-sample", 32, "--update-freq", 1)
SHORT = ("--steps", 8, "--warmup-steps", 2, "--validate-every", 4, "--save-every", 4, "--log-every", 2)


@pytest.fixture
def data(run, tiny_source, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    path = tmp_path / "data.bin"
    assert run("preprocess", tmp_path / "text.txt", "-o", path, "--tokenizer", tiny_source)[0] == 0
    return path


@pytest.mark.slow
def test_from_text_to_a_model_that_has_learned(run, data, tiny_source, tmp_path):
    out = tmp_path / "run"
    options = ("--steps", 40, "--warmup-steps", 4, "--lr", 0.02, "--update-freq", 2, "--validate-every", 20)
    arguments = ("pretrain", data, "--valid", data, "-o", out, "--tokenizer", tiny_source, *SMALL, *options)
    status, stdout, err = run(*arguments, "--mask-whole-words", "--json")
    assert status == 0, err
    summary = json.loads(stdout)
    assert (summary["steps"], summary["stopped"], summary["model"]) == (40, "done", str(out / "best"))
    assert json.loads((out / "summary.json").read_text()) == summary
    assert summary["perplexity"] < 60  # of 581, where it began
    model = roberta_flax.load(out / "best")
    assert (model.config.num_layers, model.config.max_positions, model.config.heads) == (1, 48, ())
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 40
    options = ("--mask-whole-words", "--batch-size", 5, "--json")
    status, stdout, _ = run("perplexity", data, "--model", out / "best", *options)
    found = json.loads(stdout)
    assert status == 0
    assert found["perplexity"] == pytest.approx(summary["perplexity"], rel=1e-4)
    assert 2 ** found["loss"] == pytest.approx(found["perplexity"])
    # the same command again has nothing left to do
    status, stdout, _ = run(*arguments, "--mask-whole-words", "--json")
    assert (status, json.loads(stdout)) == (0, summary)
    # and another is another run
    status, _, err = run(*arguments)
    assert (status, err.count("\n"), "whole_words" in err) == (1, 1, True)


@pytest.mark.slow
def test_pretraining_from_python_and_at_a_url_is_the_commands(run, data, tiny_source, tmp_path):
    """The same bytes of records, and the same perplexity."""
    fsspec.filesystem("memory").rm("/", recursive=True)
    arguments = ("pretrain", data, "--valid", data, "-o", tmp_path / "command", "--tokenizer", tiny_source)
    status, out, err = run(*arguments, *SMALL, *SHORT, *ONE_SHAPE, "--seed", 3, "--json")
    assert status == 0, err
    sizes = {"num_layers": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "max_positions": 48}
    model = new_model(Tokenizer.from_directory(tiny_source), seed=3, **sizes)
    pretraining = Pretraining(
        data, data, total_steps=8, warmup_steps=2, validate_every=4, save_every=4, log_every=2,
        samples=Samples("none", tokens_per_sample=32, seed=3), recipe=dataclasses.replace(PRETRAINING, update_freq=1),
    )  # fmt: skip
    bucket = to_path("memory://pretraining/run")
    result = pretraining.run(model, bucket, progress=False)
    summary = {**json.loads(out), "model": "memory://pretraining/run/best"}
    assert result.to_json() == summary
    assert json.loads((bucket / "summary.json").read_bytes()) == summary
    records = [(directory / "metrics.jsonl").read_bytes() for directory in (tmp_path / "command", bucket)]
    assert records[0] == records[1]
    found = perplexity(roberta_flax.load(result.model), data, pretraining.samples)
    assert found["loss"] == pytest.approx(result.loss, rel=1e-5)
    assert found["bits"] == pytest.approx(found["loss"] / math.log(2))


def test_a_uniform_models_perplexity_is_its_vocabulary(run, data, tiny, tmp_path):
    params = jax.tree.map(lambda leaf: leaf, tiny.params)
    params["lm_head"] = jax.tree.map(np.zeros_like, params["lm_head"])
    params["embeddings"] = {**params["embeddings"], "token": jax.tree.map(np.zeros_like, params["embeddings"]["token"])}
    converted.save(tmp_path / "uniform", tiny.config, params, tiny.tokenizer)
    status, out, err = run("perplexity", data, "--model", tmp_path / "uniform")
    assert status == 0, err
    assert out.startswith(f"loss {math.log2(581):.3f} bits, perplexity 581.00, of ")


@pytest.mark.slow
def test_a_model_is_pretrained_further_without_its_heads(run, data, one_layer, tmp_path):
    arguments = ("pretrain", data, "--valid", data, "-o", tmp_path / "run", "--model", one_layer)
    begun = roberta_flax.load(one_layer)
    status, out, err = run(*arguments, *SHORT, *ONE_SHAPE)
    assert status == 0, err
    assert f"{tmp_path / 'run' / 'best'}: validation loss " in out
    further = roberta_flax.load(tmp_path / "run" / "best")
    assert (further.config.num_layers, further.config.heads) == (begun.config.num_layers, ())
    before, after = flatten(begun.params), flatten(further.params)
    assert all(before[name].shape == after[name].shape for name in after)
    assert not np.array_equal(before["embeddings.token.embedding"], after["embeddings.token.embedding"])


@pytest.mark.slow
def test_an_adapter_that_is_pretrained_is_loaded_with_its_network(run, data, one_layer, tmp_path):
    arguments = ("pretrain", data, "--valid", data, "-o", tmp_path / "run", "--model", one_layer)
    options = (*SHORT, *ONE_SHAPE, "--lora-rank", 2, "--lora-targets", "value", "--lr", 0.01, "--lora-apart", "--json")
    begun = roberta_flax.load(one_layer)
    status, out, err = run(*arguments, *options)
    assert status == 0, err
    assert sorted(path.name for path in (tmp_path / "run" / "best").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    further = roberta_flax.load(tmp_path / "run" / "best")
    before, after = flatten(begun.params), flatten(further.params)
    changed = {name for name in after if not np.array_equal(before[name], after[name])}
    assert changed == {"layers.0.attention.value.kernel"}
    status, found, err = run("perplexity", data, "--model", tmp_path / "run" / "best", *ONE_SHAPE[:4], "--json")
    assert status == 0, err
    assert json.loads(found)["perplexity"] == pytest.approx(json.loads(out)["perplexity"], rel=1e-4)


@pytest.mark.slow
def test_two_hosts_and_one_agree(run, two_hosts, data, tiny_source, tmp_path):
    options = (data, "--valid", data, "--tokenizer", tiny_source, *SMALL, *SHORT, *ONE_SHAPE)
    assert run("pretrain", "-o", tmp_path / "one", *options)[0] == 0
    hosts = two_hosts("pretrain", "-o", tmp_path / "two", *options, "--distributed")
    said = [host.communicate(timeout=300) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], said
    assert ["validation loss" in out for out, _ in said] == [True, False]
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert len(one) == len(two)
    for ours, theirs in zip(one, two, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.slow
def test_what_cannot_be_done_is_said_in_one_line(run, data, tiny_directory, tiny_source, gpt2_bpe, tmp_path):
    start = ("--tokenizer", tiny_source, *SMALL)
    (tmp_path / "cut.bin").write_bytes(data.read_bytes()[:-1])
    out = tmp_path / "run"
    for data_file, options, message in (
        (data, (), "say where to begin: --model"),
        (data, ("--model", tiny_directory, *start), "--model has a tokenizer and sizes of its own"),
        (data, (*start, "--heads", 3), "hidden_size must be a multiple of num_heads, got 32 and 3"),
        (data, ("--tokenizer", gpt2_bpe, *SMALL), "was encoded with another tokenizer, with 581 ids"),
        (tmp_path / "cut.bin", start, "is not a complete file from roberta-flax preprocess"),
        (
            data,
            (*start, "--tokens-per-sample", 49),
            "tokens_per_sample must be at most the model's 48 positions, got 49",
        ),
        (data, (*start, "--mask-prob", 1.5), "mask_prob must be over 0 and under 1"),
        (data, (*start, "--batch-size", 0), "batch_size must be a positive integer, got 0"),
        (data, (*start, "--update-freq", 0), "update_freq must be a positive integer, got 0"),
        (data, (*start, "--seed", -1), "seed must be 0 or more, got -1"),
        (data, (*start, "--dtype", "float16"), "float16"),
        (data, (*start, "--tensor-parallel", 3), "tensor_parallel must divide"),
        (data, (*start, "--lora-rank", 4), "adapters are for a network that is trained already: give --model"),
        (data, ("--model", tiny_directory, "--dora"), "options of adapters need their rank"),
    ):
        status, _, err = run("pretrain", data_file, "--valid", data, "-o", out, *options, *SHORT)
        assert (status, err.count("\n"), message in err) == (1, 1, True), (options, err)
    assert not out.exists()
    status, _, err = run("preprocess", data, "-o", tmp_path / "x.bin")
    assert (status, err.count("\n"), "give --model, or --tokenizer" in err) == (1, 1, True)


def test_long_samples_are_left_out_and_counted(run, data, tiny_directory):
    options = ("--tokens-per-sample", 24, "--sample-break-mode", "eos", "--model", tiny_directory)
    status, _, err = run("perplexity", data, *options)
    assert (status, err) == (0, "")
    status, _, err = run("perplexity", data, "--tokens-per-sample", 13, *options[2:])
    assert status == 0
    assert err.count("\n") == 1
    assert "samples are over 13 tokens and are dropped" in err


@pytest.mark.slow
def test_rows_that_the_devices_cannot_share_are_refused_in_one_line(eight_devices, data, one_layer, tmp_path):
    program = f"""
import sys
from roberta_flax.cli import main
sys.argv = {["roberta-flax", "perplexity", str(data), "--model", str(one_layer), "--batch-size", "12"]!r}
try:
    main()
except SystemExit as stopped:
    print(stopped.code)
sys.argv += ["--data-parallel", "2", "--tensor-parallel", "2"]
main()
"""
    message, status, perplexity = eight_devices(f"import sys; sys.stderr = sys.stdout\n{program}").splitlines()
    assert "batch_size (--batch-size) must be a multiple of the 8 devices that share its rows, got 12" in message
    assert status == "1"
    assert perplexity.startswith("loss ")
