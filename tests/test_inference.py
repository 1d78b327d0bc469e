"""Many texts at once: the same answers as one at a time, in order, however they are laid out and on how many devices."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import roberta_flax
from roberta_flax import Classify, Embed, FillMask, HeadConfig, InputError, Predictor, Rejected
from roberta_flax.inference import predictor
from roberta_flax.inference.compilations import Compilations
from roberta_flax.inference.predictor import Stats
from roberta_flax.nn import forward
from roberta_flax.text import batching
from roberta_flax.text.encoding import encode_batch, encode_texts
from roberta_flax.text.truncation import longest_first
from tests.params import random_params

TOLERANCE = 5e-5  # float32, as in tests/parity/test_network.py


@pytest.fixture(scope="module")
def texts(sick_pairs, one_layer) -> list:
    """Single texts and pairs, short and long, empty ones and emoji among them. Of few buckets: each is a program."""
    words = " ".join(text for pair in sick_pairs[:200] for text in pair).split(" ")
    random = np.random.default_rng(0)
    singles = [" ".join(words[start : start + n]) for start, n in random.integers(1, 60, (12, 2))]
    mixed: list = [
        *sick_pairs[:20],
        *singles,
        " ".join(words[:100]),
        "",
        " ",
        "🙂",
        "日本語",
        ("", ""),
        ("a", "b", "c"),
        ["x", "y"],
    ]
    tokenizer = roberta_flax.load_tokenizer(one_layer)

    def bucket(item) -> int:
        return batching.length_bucket(len(tokenizer.encode(*([item] if isinstance(item, str) else item))), 512)

    buckets = {8, bucket(mixed[32]), *(size for size, _ in Counter(map(bucket, mixed[:20])).most_common(2))}
    few = [item for item in mixed if bucket(item) in buckets]
    assert len(few) > 20
    return [few[i] for i in random.permutation(len(few))]


@pytest.fixture
def roberta(shallow: roberta_flax.Roberta) -> roberta_flax.Roberta:
    """The embedded model with a token head, a regression and one of several labels."""
    heads = (
        HeadConfig("tags", 4, 0, "token"),
        HeadConfig("score", 1, 64),
        HeadConfig("topics", 3, 64, problem="multi_label"),
    )
    config = shallow.config
    for head in heads:
        config = config.with_head(head)
    made = random_params(config)["heads"]
    shallow.params = {**shallow.params, "heads": {**made, **shallow.params["heads"]}}
    shallow.config = config
    return shallow


def one_at_a_time(roberta, task, item):
    """Each in a row of its own, padded to one length: a program for each of the lengths takes long to compile."""
    ids = roberta.encode(*([item] if isinstance(item, str) else item))
    tokens = np.full((1, 256), roberta.tokenizer.pad_id, np.int32)
    tokens[0, : len(ids)] = ids
    if isinstance(task, Embed):
        features = np.asarray(roberta.extract_features(tokens))[0, : len(ids)]
        return {"first": features[0], "mean": features.mean(axis=0), "tokens": features}[task.pooling]
    found = np.asarray(roberta.predict(task.head, tokens, task.logits))[0]
    return found[: len(ids)] if roberta.config.head(task.head).kind == "token" else found


TASKS = [
    Classify("mnli"), Classify("mnli", logits=True), Classify("score"), Classify("topics"), Classify("tags"),
    Embed("first"), Embed("mean"), Embed("tokens"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "strategy"),
    [*((task, "buckets") for task in TASKS), *((task, "packing") for task in (Classify("mnli"), *TASKS[-4:]))],
    ids=str,
)
def test_results_are_those_of_one_text_at_a_time_and_in_order(roberta, texts, task, strategy):
    predictor = Predictor(roberta, task, strategy=strategy, window=17, tokens_per_batch=300)
    results = list(predictor(iter(texts)))
    assert len(results) == len(texts)
    for item, result in zip(texts, results, strict=True):
        expected = one_at_a_time(roberta, task, item)
        assert result.shape == expected.shape
        assert result.dtype == np.float32
        assert np.abs(result - expected).max() <= TOLERANCE, item


@pytest.mark.slow
def test_masks_are_filled_as_one_at_a_time(shallow, sick_pairs):
    masked = [
        "<mask>",
        "a <mask> b",
        *(first.replace(" is ", " <mask> ", 1) for first, _ in sick_pairs[:80] if " is " in first),
    ]
    results = list(Predictor(shallow, FillMask(4), window=30)(masked))
    for text, result in zip(masked, results, strict=True):
        expected = shallow.fill_mask(text, topk=4)
        assert [(filled, token) for filled, _, token in result] == [(filled, token) for filled, _, token in expected]
        assert [p for _, p, _ in result] == pytest.approx([p for _, p, _ in expected], abs=TOLERANCE)


@pytest.mark.slow
def test_eight_devices_give_the_answers_of_one(eight_devices, one_layer):
    """Data parallel, and with two and four devices sharing each layer; the last batch does not fill all of them.

    In fixed batches a text has the same bits alone and among others.
    """
    program = f"""
import jax, numpy as np, roberta_flax
from roberta_flax import Classify, Embed, Predictor
assert len(jax.devices()) == 8
roberta = roberta_flax.load({str(one_layer)!r})
texts = [" ".join(["word", "another", "dog"][i % 3] for i in range(3 + n % 2 * 9)) for n in range(67)]
for task in (Classify("mnli"), Embed("tokens")):
    one = list(Predictor(roberta, task, devices=jax.devices()[:1])(texts))
    for tensor_parallel in (1, 2, 4):
        for strategy in ("buckets", "packing"):
            eight = Predictor(roberta, task, tensor_parallel=tensor_parallel, strategy=strategy, tokens_per_batch=128)
            for a, b in zip(one, eight(texts), strict=True):
                assert np.abs(a - b).max() <= {TOLERANCE}
        order = np.random.default_rng(0).permutation(len(texts))
        for tensor_parallel in (1, 4):  # in fixed batches, bit by bit
            fixed = Predictor(roberta, task, tensor_parallel=tensor_parallel, strategy="fixed", tokens_per_batch=128)
            whole, shuffled = list(fixed(texts)), fixed([texts[i] for i in order])
            assert all(np.array_equal(whole[i], result) for i, result in zip(order, shuffled, strict=True))
            assert all(np.array_equal(result, *fixed([text])) for text, result in zip(texts[:9], whole))
print("the same")
"""
    assert eight_devices(program) == "the same\n"


def ragged_texts(count: int) -> list[str]:
    """Texts of 1 to 25 words, half of them of 10 at most."""
    random = np.random.default_rng(0)
    lengths = np.clip(np.exp(random.normal(np.log(10), 1.0, count)), 1, 25).astype(int)
    return [" ".join(random.choice(["a", "dog", "runs", "home"], length)) for length in lengths]


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "quantize"), [("float32", None), ("bfloat16", None), ("float32", "int8")], ids=str)
@pytest.mark.parametrize("task", [Classify("mnli"), Embed("tokens")], ids=str)
def test_in_fixed_batches_no_bit_of_a_result_depends_on_other_texts(one_layer, task, dtype, quantize):
    """In another order, in other windows and alone."""
    roberta = roberta_flax.load(one_layer, dtype=dtype, quantize=quantize)
    texts = ragged_texts(150)
    options = {"strategy": "fixed", "tokens_per_batch": 256}
    expected = list(Predictor(roberta, task, **options)(texts))
    order = np.random.default_rng(1).permutation(len(texts))
    shuffled = Predictor(roberta, task, window=40, **options)([texts[i] for i in order])
    alone = Predictor(roberta, task, window=1, **options)(texts[:20])
    for i, result in [*zip(order, shuffled, strict=True), *enumerate(alone)]:
        np.testing.assert_array_equal(result, expected[i])


def test_the_shape_of_a_fixed_batch_depends_on_the_length_of_its_sequences_alone():
    lengths = np.random.default_rng(0).integers(1, 513, 500)
    shapes: dict[int, set] = {}
    for some in (lengths, lengths[:100], *np.split(lengths[:50], 50)):
        sequences = [np.full(length, 7, np.int32) for length in some]
        for batch in batching.lay_out(sequences, tokens_per_batch=1024, pad_id=1, max_positions=512, strategy="fixed"):
            for number in batch.indices:
                shapes.setdefault(int(some[number]), set()).add(batch.tokens.shape)
    assert all(len(found) == 1 for found in shapes.values())
    assert {shape for (shape,) in shapes.values()} == {
        (batching.rows_per_batch(length, 1024, 1), length)
        for length in {batching.length_bucket(int(length), 512) for length in lengths}
    }


def test_devices_and_widths_that_do_not_divide_are_refused(shallow):
    with pytest.raises(InputError, match="tensor_parallel must divide the number of devices, got 3 and 1 devices"):
        Predictor(shallow, Embed(), tensor_parallel=3)
    with pytest.raises(InputError, match="got 0 and 1"):
        Predictor(shallow, Embed(), tensor_parallel=0)


# texts that are too long


def test_texts_that_are_too_long_are_refused_by_number_or_truncated_and_counted(shallow):
    texts = ["a b", "c " * 600, "d"]
    with pytest.raises(InputError, match=r"input 1: 603 tokens, over the maximum length of 512"):
        list(Predictor(shallow, Classify("mnli"), on_long="error")(texts))
    predictor = Predictor(shallow, Classify("mnli"))
    results = list(predictor(texts))
    ids = shallow.encode("c " * 600)
    expected = np.asarray(shallow.predict("mnli", np.concatenate([ids[:511], ids[-1:]])))[0]
    assert np.abs(results[1] - expected).max() <= TOLERANCE
    assert predictor.stats.truncated == 1


def test_a_maximum_length_below_the_models_holds_for_every_way(shallow):
    text = "c " * 20
    ids = shallow.encode(text)
    with pytest.raises(InputError, match=rf"input 0: {len(ids)} tokens, over the maximum length of 16"):
        list(Predictor(shallow, Classify("mnli"), on_long="error", max_length=16)([text]))
    predictor = Predictor(shallow, Classify("mnli"), max_length=16)
    (result,) = predictor([text])
    expected = np.asarray(shallow.predict("mnli", np.concatenate([ids[:15], ids[-1:]])))[0]
    assert np.abs(result - expected).max() <= TOLERANCE
    assert predictor.stats.truncated == 1
    windows = Predictor(shallow, Classify("mnli"), on_long="window", max_length=16)
    list(windows([text]))
    assert windows.stats.sequences > 1


def test_pairs_are_truncated_as_transformers_truncates_them(gpt2_tokenizer, gpt2_bpe, tmp_path, sick_pairs):
    """longest_first, of its own slow tokenizers."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizer.truncate_sequences
    slow = transformers.BertTokenizer.__new__(transformers.BertTokenizer)
    for a, b, room in itertools.product(range(0, 30, 3), range(0, 30, 4), range(1, 40, 7)):
        excess = a + b - room
        if excess <= 0 or room < 2:
            continue
        slow.truncation_side = "right"
        first, second, _ = theirs(slow, list(range(a)), list(range(b)), excess, "longest_first")
        assert longest_first([a, b], room) == [len(first), len(second)], (a, b, room)


@given(st.lists(st.integers(0, 700), min_size=1, max_size=4), st.integers(0, 600))
def test_what_is_kept_fits_and_no_text_is_truncated_below_a_shorter_one(lengths, room):
    kept = longest_first(lengths, room)
    assert sum(kept) == min(sum(lengths), room)
    assert all(0 <= k <= n for k, n in zip(kept, lengths, strict=True))
    truncated = [k for k, n in zip(kept, lengths, strict=True) if k < n]
    assert not truncated or max(kept) - min(truncated) <= 1


@pytest.mark.slow
def test_windows_slide_over_the_last_text_by_half_and_are_joined(roberta):
    long, given = " ".join(f"w{i}" for i in range(400)), "a question"
    tokenizer, max_length = roberta.tokenizer, roberta.config.max_positions
    windows = encode_texts(tokenizer, (given, long), max_length, "window")
    last, whole = tokenizer.encode_text(long), tokenizer.encode(given, long)
    assert len(windows) > 2
    assert all(len(window.ids) == max_length for window in windows)
    prefix = windows[0].prefix_length
    for window in windows:
        assert window.prefix_length == prefix
        assert (window.ids[:prefix] == whole[:prefix]).all()
        assert (window.ids[prefix:-1] == last[window.begin : window.end]).all()
    covered = set(itertools.chain.from_iterable(range(window.begin, window.end) for window in windows))
    assert covered == set(range(len(last)))

    logits = [np.asarray(roberta.predict("mnli", window.ids))[0] for window in windows]
    (joined,) = Predictor(roberta, Classify("mnli"), on_long="window")([(given, long)])
    assert np.abs(joined - np.log(np.exp(logits).mean(axis=0))).max() <= TOLERANCE
    (tokens,) = Predictor(roberta, Embed("tokens"), on_long="window")([(given, long)])
    assert len(tokens) == len(whole)
    features = [np.asarray(roberta.extract_features(window.ids))[0] for window in windows]
    assert np.abs(tokens[: prefix + 10] - features[0][: prefix + 10]).max() <= TOLERANCE
    assert np.abs(tokens[-10:] - features[-1][-10:]).max() <= TOLERANCE
    (mean,) = Predictor(roberta, Embed("mean"), on_long="window")([(given, long)])
    assert np.abs(mean - np.mean([f.mean(axis=0) for f in features], axis=0)).max() <= TOLERANCE


def test_inputs_that_are_encoded_together_are_what_they_are_alone(shallow):
    long, wrong = ("word " * 20, "more " * 300), "\ud800"
    items = ["a text", long, wrong, "", ("a", "pair"), 7, Rejected("a bad row"), ["one", "two", "three"]]
    together = encode_batch(shallow.tokenizer, items, 200, "window")
    for item, found in zip(items, together, strict=True):
        if isinstance(item, Rejected):
            assert found is item
        elif isinstance(found, Rejected):
            with pytest.raises(InputError, match=re.escape(found.reason)):
                encode_texts(shallow.tokenizer, item, 200, "window")
        else:
            alone = encode_texts(shallow.tokenizer, item, 200, "window")
            assert [(p.ids.tolist(), *p[1:]) for p in found] == [(p.ids.tolist(), *p[1:]) for p in alone]
    assert [isinstance(found, Rejected) for found in together] == [False, False, True, False, False, True, True, False]
    assert len(together[1]) > 1
    assert encode_batch(shallow.tokenizer, [], 200, "window") == []


@pytest.mark.parametrize("before", [0, 100, 900])
def test_what_stands_around_a_mask_is_kept_of_a_text_that_is_too_long(shallow, before):
    text = "a " * before + "<mask>" + " b" * 700
    with pytest.raises(InputError, match="over the maximum length of 512"):
        list(Predictor(shallow, FillMask(3), on_long="error")([text]))
    ((sequence,),) = FillMask(3).encode(shallow.tokenizer, [text], 512, "truncate")
    assert len(sequence.ids) == 512
    assert sequence.ids[sequence.prefix_length] == shallow.tokenizer.mask_id
    assert (sequence.ids[0], sequence.ids[-1]) == (shallow.tokenizer.bos_id, shallow.tokenizer.eos_id)
    (filled,) = Predictor(shallow, FillMask(3), on_long="truncate")([text])
    assert len(filled) <= 3
    assert all(
        len(found) == len(text) - len("<mask>") + len(token) for found, _, token in filled if " <mask>" not in text
    )


# what cannot be taken


def test_a_bad_input_keeps_its_place_in_a_window_and_others_have_their_results(shallow):
    window = ["a", 5, ("b", None), Rejected("it was null"), "\ud800", [], "c"]
    predictor = Predictor(shallow, Classify("mnli"))
    (results,) = predictor.windows([window])
    assert [isinstance(result, Rejected) for result in results] == [False, True, True, True, True, True, False]
    assert results[1].reason == "expected a text or a list of texts, got int: '5'"
    assert results[3].reason == "it was null"
    assert predictor.stats.to_json()["rejected"] == 5
    with pytest.raises(InputError, match=r"input 1: expected a text or a list of texts, got int"):
        list(predictor(window))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_long": "cut"}, "on_long must be one of error, truncate, window, got 'cut'"),
        ({"strategy": "magic"}, "strategy must be one of auto, buckets, packing, fixed"),
        ({"window": 0}, "window must be a positive integer, got 0"),
        ({"tokens_per_batch": -1}, "tokens_per_batch must be a positive integer"),
        ({"max_length": 7}, "max_length must be from 8 to the model's 512, got 7"),
        ({"max_length": 513}, "max_length must be from 8 to the model's 512, got 513"),
    ],
)
def test_options_that_cannot_be_are_refused(shallow, options, message):
    with pytest.raises(InputError, match=message):
        Predictor(shallow, Embed(), **options)


def test_a_task_that_the_model_cannot_do_is_refused(shallow):
    shallow.config = shallow.config.with_head(HeadConfig("span", 2, 0, "span"))
    for task, message in (
        (Classify("sst"), "no head called 'sst'"), (Classify("span"), "is of kind span"), (Embed("max"), "pooling must be one of"),
        (FillMask(0), "topk must be an integer"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            Predictor(shallow, task)
    with pytest.raises(InputError, match="give a list of texts"):
        list(Predictor(shallow, Embed())("text"))


# what is known of a run


@dataclasses.dataclass(frozen=True)
class Watched(Classify):
    """Classify, that keeps what has come from the device."""

    seen: list = dataclasses.field(default_factory=list)

    def unpack(self, batch, sequences, outputs, config):
        self.seen.append((batch.tokens.size, [len(sequence.ids) for sequence in sequences]))
        return super().unpack(batch, sequences, outputs, config)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["buckets", "packing"])
def test_what_is_said_to_be_done_is_what_has_come_from_the_device(shallow, strategy):
    task = Watched("mnli")
    predictor = Predictor(shallow, task, strategy=strategy, on_long="window", tokens_per_batch=256)
    texts = ["w " * (n % 90) for n in range(200)]
    told: list[int] = []

    def told_of_a_batch() -> None:
        stats, lengths = predictor.stats, [length for _, some in task.seen for length in some]
        assert (stats.batches, stats.slots) == (len(task.seen), sum(slots for slots, _ in task.seen))
        assert (stats.texts, stats.sequences, stats.tokens) == (len(lengths), len(lengths), sum(lengths))
        told.append(stats.texts)

    for results in predictor.windows([texts, texts[:50]], told_of_a_batch):
        assert told[-1] >= len(results)
    assert len(told) == predictor.stats.batches == len(task.seen) > 10
    assert told[-1] == 250


def test_a_text_in_parts_is_done_when_its_last_part_is(shallow):
    predictor = Predictor(shallow, Classify("mnli"), on_long="window", tokens_per_batch=512)  # a batch for each part
    told: list[tuple[int, int]] = []
    list(
        predictor.windows([["w " * 1500, "a"]], lambda: told.append((predictor.stats.sequences, predictor.stats.texts)))
    )
    parts = predictor.stats.sequences - 1
    assert parts > 2
    assert told == [*((n, 0) for n in range(1, parts)), (parts, 1), (parts + 1, 2)]


def test_the_share_that_is_done_goes_by_slots_and_takes_what_is_not_laid_out_for_the_mean():
    assert Stats().share_done(40) == 0
    assert Stats(slots=100, laid_out_slots=400, laid_out_texts=10).share_done(40) == 1 / 16
    assert Stats(slots=400, laid_out_slots=400, laid_out_texts=10).share_done(10) == 1


@pytest.mark.slow
def test_a_program_is_compiled_once_and_the_next_process_has_it_from_the_cache(in_a_process, one_layer, tmp_path):
    program = """
import json
import roberta_flax
from roberta_flax import Classify, Predictor
roberta = roberta_flax.load(MODEL)
for _ in range(2):
    predictor = Predictor(roberta, Classify("mnli"), tokens_per_batch=8, strategy="buckets")
    list(predictor(["a", "w " * 50, "w " * 300]))
    print(json.dumps(predictor.stats.to_json()))
"""
    for hits in (0, 3):
        printed = in_a_process(program.replace("MODEL", repr(str(one_layer))), programs=tmp_path / "compiled")
        first, again = map(json.loads, printed.splitlines())
        assert (first["shapes"], first["compilations"], first["compilations_from_cache"]) == (3, 3, hits)
        assert (again["shapes"], again["compilations"], again["compilations_from_cache"]) == (3, 0, 0)
        assert again["compilation_seconds"] == 0 < first["compilation_seconds"]


def test_only_what_its_own_thread_compiles_in_the_block_is_counted():
    compilations, function = Compilations(), jax.jit(lambda x: x + 1)
    function(np.zeros(1))
    with compilations.counted():
        function(np.zeros(2))
        thread = threading.Thread(target=lambda: function(np.zeros(3)))
        thread.start()
        thread.join()
    function(np.zeros(4))
    assert compilations.programs == 1


def test_nothing_in_is_nothing_out(shallow):
    predictor = Predictor(shallow, Embed())
    assert list(predictor([])) == []
    assert predictor.stats.to_json()["texts"] == 0


def test_an_error_of_the_input_comes_through_and_threads_end(shallow):
    def broken():
        yield "a"
        raise RuntimeError("the disk is gone")

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="the disk is gone"):
        list(Predictor(shallow, Embed(), window=1)(broken()))
    endless = Predictor(shallow, Embed(), window=4)(itertools.repeat("a"))
    assert [next(endless).shape for _ in range(9)] == [(64,)] * 9
    endless.close()
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_inputs_are_taken_a_few_windows_ahead_and_no_more(shallow):
    seen = 0

    def counted():
        nonlocal seen
        while True:
            seen += 1
            yield "a"

    results = Predictor(shallow, Embed(), window=10)(counted())
    for _ in range(25):
        next(results)
    time.sleep(0.3)
    assert seen <= 25 + 6 * 10
    results.close()


# layout


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 512), max_size=300),
    st.integers(1, 3000),
    st.sampled_from([1, 2, 8]),
    st.sampled_from(["auto", "buckets", "packing", "fixed"]),
)
def test_every_sequence_is_laid_out_once_and_whole(lengths, tokens_per_batch, multiple, strategy):
    sequences = [np.arange(2, 2 + length, dtype=np.int32) + i for i, length in enumerate(lengths)]
    seen = []
    options = {"tokens_per_batch": tokens_per_batch, "rows_multiple": multiple, "pad_id": 1, "max_positions": 512}
    for batch in batching.lay_out(sequences, strategy=strategy, **options):
        rows, length = batch.tokens.shape
        assert rows % multiple == 0
        assert rows <= batching.rows_per_batch(length, tokens_per_batch, multiple)
        used = np.zeros_like(batch.tokens, bool)
        for number, row, segment, column in zip(batch.indices, batch.row, batch.segment, batch.column, strict=True):
            end = column + len(sequences[number])
            assert (batch.tokens[row, column:end] == sequences[number]).all()
            assert not used[row, column:end].any()
            used[row, column:end] = True
            if batch.segments is not None:
                assert (batch.segments[row, column:end] == segment).all()
                assert batch.starts[row, segment] == column
        assert (batch.tokens[~used] == 1).all()
        assert batch.segments is None or (batch.segments[~used] == -1).all()
        seen += batch.indices.tolist()
    assert sorted(seen) == list(range(len(lengths)))


def test_shapes_are_few_and_padding_is_little():
    random = np.random.default_rng(0)
    lengths = np.clip(np.exp(random.normal(np.log(40), 0.8, 20_000)), 5, 512).astype(int)
    sequences = [np.full(length, 7, np.int32) for length in lengths]
    for strategy, most in (("buckets", 1 / 8), ("packing", 0.05)):  # a bucket's length is an eighth more at most
        shapes, slots = set(), 0
        for start in range(0, len(sequences), 8192):
            options = {"tokens_per_batch": 2048, "pad_id": 1, "max_positions": 512, "strategy": strategy}
            for batch in batching.lay_out(sequences[start : start + 8192], **options):
                shapes.add((batch.tokens.shape, strategy))
                slots += batch.tokens.size
        assert len(shapes) <= 20 + 4  # the lengths' buckets, and what the last batch of a window has
        assert 1 - lengths.sum() / slots <= most


def layouts(lengths: list[int], strategy: str) -> list[tuple]:
    sequences = [np.full(length, 7, np.int32) for length in lengths]
    options = {"tokens_per_batch": 1024, "pad_id": 1, "max_positions": 512, "strategy": strategy}
    cost = batching.relative_attention_cost(768, 3072)  # base's
    batches = batching.lay_out(sequences, attention_cost=cost, **options)
    return [(batch.tokens.tobytes(), batch.segments is not None) for batch in batches]


def test_attention_to_a_whole_row_of_base_costs_a_tenth_of_its_matrix_products():
    # by hand: base's products with matrices take 24 h^2 operations a token, attention 4 h a position; at 1.6 times the
    # time of others, attention to 256 positions is 1.6 * 4 * 768 * 256 / (24 * 768^2) of these
    cost = batching.relative_attention_cost(768, 3072)
    assert cost * 256 == pytest.approx(0.0889, abs=1e-4)
    assert batching.estimated_cost([(4, 256, False)], cost) == pytest.approx(1024 * 1.0889, abs=0.1)
    assert batching.estimated_cost([(8, 128, False), (4, 256, True)], cost) == pytest.approx(
        1024 * (1.0444 + 1.0889 + 0.05), abs=0.2
    )


@pytest.mark.parametrize(
    ("lengths", "cheaper"),
    [
        ([25] * 500, "packing"),  # a bucket of 32 would be a fifth of padding
        ([32] * 500, "buckets"),  # no padding in either
        ([128] * 100, "buckets"),
        ([*range(5, 256, 3)] * 5, "packing"),
        ([9] * 1000, "packing"),
        ([300, 400, 500] * 5, "buckets"),  # the same in both, as nothing is packed
    ],
)
def test_sequences_are_laid_out_by_what_costs_less_for_their_lengths(lengths, cheaper):
    random = np.random.default_rng(0)
    for _ in range(2):
        assert layouts(lengths, "auto") == layouts(lengths, cheaper)
        random.shuffle(lengths)


@pytest.mark.slow
def test_programs_of_a_window_are_compiled_at_the_same_time_but_not_under_settings_of_one_thread(shallow, monkeypatch):
    """Each once, with the same results; a run of one shape waits for that of another, so that they must overlap."""
    texts = ["a", "w " * 20, "w " * 50, "b"]
    meeting = threading.Barrier(2, timeout=60)
    threads = []

    class Meeting(Classify):
        def run(self, *arguments):
            threads.append(threading.current_thread())
            if len(threads) <= 2:
                meeting.wait()
            return super().run(*arguments)

    def predicted():
        together = Predictor(shallow, Meeting("mnli"), tokens_per_batch=8, strategy="buckets")
        results = list(together(texts))
        assert together.stats.texts == len(texts)
        assert together.stats.compilations.programs == len(together.stats.shapes) == 3
        return results

    expected = list(Predictor(shallow, Classify("mnli"), tokens_per_batch=8, strategy="buckets")(texts))
    monkeypatch.setitem(predictor.COMPILED_AT_ONCE, "cpu", 3)
    with ThreadPoolExecutor(1) as pool:  # without the settings under which all tests run
        np.testing.assert_array_equal(pool.submit(predicted).result(), expected)
    assert len(set(threads)) > 2

    number = len(threads)
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(predicted(), expected, atol=TOLERANCE)
    assert set(threads[number:]) == {threading.current_thread()}


def test_a_bucket_adds_at_most_seven_tokens_or_an_eighth_of_the_power_of_two_above():
    for length in range(1, 513):
        bucket = batching.length_bucket(length, 512)
        power = 1 << (length - 1).bit_length()
        assert length <= bucket < length + max(8, power // 8)
    assert len({batching.length_bucket(length, 512) for length in range(1, 513)}) == 20
    assert batching.length_bucket(500, 510) == 510


def test_lengths_on_tpu_are_multiples_of_sixteen():
    lengths = {batching.length_bucket(length, 512, 16) for length in range(1, 513)}
    assert len(lengths) == 16
    assert not [length for length in lengths if length % 16]
    sequences = [np.zeros(length, np.int32) for length in range(1, 129)]
    for strategy in ("buckets", "fixed", "packing"):
        sizes = {"tokens_per_batch": 256, "pad_id": 1, "max_positions": 128, "strategy": strategy}
        batches = batching.lay_out(sequences, length_multiple=16, **sizes)
        assert not [batch.tokens.shape for batch in batches if batch.tokens.shape[1] % 16]


# packing


def test_a_sequence_does_not_see_its_neighbors(shallow):
    """Whatever else stands in its row, its features are the same."""
    first, second, third = (shallow.encode(text) for text in ("a dog", "a longer text about a cat", "x"))

    def features(*sequences):
        (batch,) = batching.lay_out(sequences, tokens_per_batch=256, pad_id=1, max_positions=512, strategy="packing")
        states = np.asarray(forward.features(shallow.params, batch.tokens, batch.segments, config=shallow.config))
        place = batch.indices.tolist().index(0)
        row, column = batch.row[place], batch.column[place]
        return states[row, column : column + len(sequences[0])]

    alone = np.asarray(shallow.extract_features(first))[0]
    for others in ((), (second,), (third, second, first)):
        assert np.abs(features(first, *others) - alone).max() <= TOLERANCE


def test_spans_are_not_taken_from_packed_rows(shallow):
    config = shallow.config.with_head(HeadConfig("span", 2, 0, "span"))
    params = random_params(config)
    with pytest.raises(InputError, match="kind span"):
        forward.head_log_probs(
            params, np.zeros((1, 8), np.int32), np.zeros((1, 8), np.int32), head="span", config=config
        )


@pytest.mark.slow
def test_half_precision_comes_back_as_float32(one_layer):
    roberta = roberta_flax.load(one_layer, dtype=jnp.bfloat16)
    (features,) = Predictor(roberta, Embed("tokens"))(["a b c"])
    assert features.dtype == np.float32
