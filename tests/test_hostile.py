"""Files made to harm: each ends in one clear line, with nothing run, nothing written outside, and memory bounded."""

from __future__ import annotations

import argparse
import base64
import io
import itertools
import json
import logging
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import roberta_flax
from roberta_flax import CheckpointError
from roberta_flax.checkpoint.tensors import Values, read_tensors
from roberta_flax.convert import convert, export, hf_tokenizer, msgpack_file, torch_file, verify
from roberta_flax.convert.source import same_values
from roberta_flax.nn.tree import flatten
from roberta_flax.text.fairseq_tokenizer import ByteLevelBPE
from tests import fuzz_reader, processes

torch = pytest.importorskip("torch")

MEMORY = 40 << 20  # bytes that reading a small hostile file may take: Python's objects, and nothing that it claims


@pytest.fixture
def source(tiny_source: Path, tmp_path: Path) -> Path:
    """A copy of the embedded model's directory, to spoil."""
    return Path(shutil.copytree(tiny_source, tmp_path / "source"))


@pytest.fixture(autouse=True)
def _nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Each file tries to make `it-ran`, here or in the directory that the tests run in."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "it-ran").exists()


def refusal(read: Callable[[], Any], memory: int = MEMORY) -> str:
    """The one line with which something is refused, in bounded memory."""
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as error:
            read()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < memory, f"{peak} bytes"
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 4000
    return message


def load_pickle(tmp_path: Path, data: bytes) -> Any:
    """What the reader makes of a zip checkpoint with this pickle and one storage of 32 bytes, arguments opened."""
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("m/data.pkl", data)
        archive.writestr("m/data/0", bytes(32))
    loaded = torch_file.load(tmp_path / "m.pt")
    return torch_file.plain(loaded)


def refused_pickle(tmp_path: Path, data: bytes) -> str:
    return refusal(lambda: load_pickle(tmp_path, data))


TOUCH = b"touch it-ran"
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x08tQ"
SET_STATE = b"}X\x01\x00\x00\x00xK\x01sb"  # {"x": 1}, then BUILD


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"cos\nsystem\n(S'" + TOUCH + b"'\ntR.", "os.system"),
        (b"cposix\nsystem\n(S'" + TOUCH + b"'\ntR.", "posix.system"),
        (b"csubprocess\nPopen\n((lS'touch'\naS'it-ran'\natR.", "subprocess.Popen"),
        (b'cbuiltins\neval\n(S\'open("it-ran", "w")\'\ntR.', "builtins.eval"),
        (b'c__builtin__\nexec\n(S\'open("it-ran", "w")\'\ntR.', "__builtin__.exec"),
        (b"cbuiltins\ngetattr\n(cos\nsystem\nS'x'\ntR.", "builtins.getattr"),
        (b"cfunctools\npartial\n(cos\nsystem\nS'" + TOUCH + b"'\ntR.", "functools.partial"),
        (b"coperator\nattrgetter\n(S'system'\ntR.", "operator.attrgetter"),
        (b"ctorch\nload\n(S'other.pt'\ntR.", "torch.load"),
        (b"ctorch.serialization\nload\n(S'other.pt'\ntR.", "torch.serialization.load"),
        (b"ctorch.hub\nload\n(S'a'\ntR.", "torch.hub.load"),
        (b"cpickle\nloads\n(S'x'\ntR.", "pickle.loads"),
        (b"cruntime\nrun\n(S'x'\ntR.", "runtime.run"),
        (b"ccollections\nnamedtuple\n(S'x'\ntR.", "collections.namedtuple"),
        (b"(S'" + TOUCH + b"'\nios\nsystem\n.", "os.system"),  # INST
        (b"(cos\nsystem\nS'" + TOUCH + b"'\no.", "os.system"),  # OBJ
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93(\x8c\x0ctouch it-ran\x94t\x81.", "os.system"),  # NEWOBJ
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93)}\x92.", "os.system"),  # NEWOBJ_EX
        (b"ctorch\nFloatStorage.__reduce__\n.", "torch.FloatStorage.__reduce__"),
        (b"ccollections\nOrderedDict.fromkeys\n.", "collections.OrderedDict.fromkeys"),
    ],
)
def test_a_global_that_no_checkpoint_needs_is_named_and_not_run(tmp_path, data, name):
    message = refused_pickle(tmp_path, data)
    assert f"requests {name}" in message
    assert "none of its code was run" in message


@pytest.mark.parametrize(
    "data",
    [
        b"cargparse\nNamespace\n(S'os'\ntR(S'system'\ntR.",  # calling what a call gave
        b"cfairseq.evil\nrun\n)R(S'x'\ntR.",
        b"cfairseq.evil\nrun\nS'name'\ns.",  # an item of a class
        b"ctorch._utils\n_rebuild_tensor_v2\n" + SET_STATE + b".",  # state of our own function
        b"cargparse\nNamespace\n" + SET_STATE + b".",  # state of a class
        b"ctorch\nFloatStorage\n" + SET_STATE + b".",
        b"ctorch\nFloatStorage\n)\x81.",  # an instance of a storage's class
        b"ccollections\nOrderedDict\n)\x81.",
        b"K\x01" + SET_STATE + b".",
        b"\x82\x01.",  # EXT1: a class by number
        b"\x83\x01\x00.",
        b"\x84\x01\x00\x00\x00.",
        b"\x97.",  # NEXT_BUFFER
        b"K\x01\x98.",
    ],
)
def test_calls_and_states_that_are_none_are_damage(tmp_path, data):
    assert "damaged" in refused_pickle(tmp_path, data)


@pytest.mark.parametrize(
    "saved_id",
    [
        b"S'0'\n", b"(S'storage'\ncos\nsystem\nS'0'\nS'cpu'\nK\x08t", b"(S'module'\nS'os'\nS'system'\nt",
        b"(S'storage'\nctorch\nFloatStorage\nS'../../0'\nS'cpu'\nK\x08t", b"(S'storage'\nctorch\nFloatStorage\nS'/etc/passwd'\nS'cpu'\nK\x08t",
        b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nJ\xff\xff\xff\xfft", b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nK\x09t",
        b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nL99999999999999999999999999L\nt", b"(t", b"(lt", b"N",
        b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nK\x08(S'view'\nK\x00K\x01tt",
    ],
)  # fmt: skip
def test_references_to_storages_that_are_not_there_or_are_no_storages(tmp_path, saved_id):
    refused_pickle(tmp_path, saved_id + b"Q.")


def long(number: int) -> bytes:
    return b"L" + str(number).encode() + b"L\n"


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, [9], [1]), (9, [0, 5], [1, 1]), (0, [3], [4]), (7, [2], [1]), (-1, [1], [1]), (0, [-1], [1]), (0, [2, 2], [-1, 1]),
        (0, [1 << 40], [1]), (0, [1 << 62], [0]), (0, [1 << 70], [0]), (0, [10**30], [10**30]), (0, [1 << 40] * 2, [0, 0]),
        (0, [2], [1, 1]), (0, [1] * 70, [1] * 70), (1 << 62, [1], [1]), (10**4000, [1], [1]), (0, [1], [10**4000]),
    ],
)  # fmt: skip
def test_shapes_and_strides_that_reach_out_of_their_storage_or_count_for_ever(tmp_path, offset, shape, strides):
    """Also through the whole conversion: a tensor that is stretched by strides of zero is never unrolled."""
    numbers = [b"(" + b"".join(map(long, part)) + b"t" for part in (shape, strides)]
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + long(offset) + numbers[0] + numbers[1] + b"\x89)tR"
    if np.prod([float(size) for size in shape]) == 0 or all(stride == 0 for stride in strides):
        try:
            loaded = load_pickle(tmp_path, b"}S'x'\n" + tensor + b"s.")  # nothing is read: it cannot harm yet
        except CheckpointError:
            return
        assert loaded["x"].shape == tuple(shape)
        return
    assert "damaged" in refused_pickle(tmp_path, tensor + b".")


@pytest.mark.parametrize(
    ("shape", "strides"), [([1, 2], [1 << 61, 1]), ([0, 5], [1 << 61, 1]), ([1], [1 << 61]), ([], [])]
)
def test_strides_that_are_never_taken_may_be_any_number(tmp_path, shape, strides):
    numbers = [b"(" + b"".join(map(long, part)) + b"t" for part in (shape, strides)]
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + long(0) + numbers[0] + numbers[1] + b"\x89)tR"
    assert load_pickle(tmp_path, tensor + b".").read().shape == tuple(shape)


def test_a_shape_with_a_zero_in_it_has_no_sizes_beyond_numpys(tmp_path):
    numbers = [b"(" + b"".join(map(long, part)) + b"t" for part in ([0, 1 << 40, 1 << 40], [1, 1, 1])]
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + long(0) + numbers[0] + numbers[1] + b"\x89)tR"
    assert "a tensor of shape (0, 1099511627776" in refused_pickle(tmp_path, tensor + b".")


def doubling(depth: int, make: bytes) -> bytes:
    """A pickle of an object that holds the one before it twice, `depth` times over: 2**depth things to walk."""
    data = b"K\x00q\x000"  # remembered, and taken off the stack
    for i in range(depth):
        data += b"(h" + bytes([i]) + b"h" + bytes([i]) + make + b"q" + bytes([i + 1]) + b"0"
    return data + b"h" + bytes([depth])


@pytest.mark.parametrize("make", [b"l", b"t", b"d"])
def test_objects_that_double_are_not_walked_twice(tmp_path, make):
    data = b"}S'args'\n" + doubling(100, make) + b"s."
    if make == b"d":  # a dict that is its own key
        assert "key of type dict" in refused_pickle(tmp_path, data)
    else:
        load_pickle(tmp_path, data)


@pytest.mark.parametrize(
    "data",
    [
        b"}" + doubling(60, b"t") + b"K\x01s.",  # a key whose hash takes for ever
        b"}(" + doubling(60, b"t") + b"K\x01u.",
        b"(" + doubling(60, b"t") + b"K\x01d.",
        b"\x80\x04\x8f(" + doubling(60, b"t") + b"\x90.",  # a set's element
        b"\x80\x04(" + doubling(60, b"t") + b"\x91.",
        b"cbuiltins\nset\n((" + doubling(60, b"t") + b"ltR.",
        b"ccollections\nOrderedDict\n(((" + doubling(60, b"t") + b"K\x01tltR.",
    ],
)
def test_keys_that_take_for_ever_to_hash(tmp_path, data):
    assert "key of type tuple" in refused_pickle(tmp_path, data)


def test_a_list_that_holds_itself_and_a_list_as_deep_as_the_file_is_long(tmp_path):
    assert load_pickle(tmp_path, b"}S'args'\n(lq\x01h\x01as.") == {"args": [None]}
    load_pickle(tmp_path, b"}S'args'\n" + b"(" * 200_000 + b"l" * 200_000 + b"s.")


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x05\x96\x00\x00\x00\x00\x02\x00\x00\x00.",  # BYTEARRAY8 of 8 GiB
        b"\x80\x04\x8e\x00\x00\x00\x00\x02\x00\x00\x00.",  # BINBYTES8
        b"\x80\x04\x8d\x00\x00\x00\x00\x02\x00\x00\x00.",  # BINUNICODE8
        b"\x80\x04\x95\x00\x00\x00\x00\x02\x00\x00\x00.",  # FRAME
        b"X\xff\xff\xff\x7fabc.",
        b"\x8b\xff\xff\xff\x7fabc.",  # LONG4
        b"I" + b"9" * 100_000 + b"\n.",
        b"L" + b"9" * 5_000 + b"L\n.",
        b"S'" + b"a" * 100_000 + b"'\n.",
        b"c" + b"a" * 100_000 + b"\nb\n.",
    ],
)
def test_what_a_file_claims_takes_no_memory(tmp_path, data):
    refused_pickle(tmp_path, data)


@pytest.mark.parametrize("data", [b"K\x01r\xff\xff\xff\x7f.", b"K\x01p2147483647\n."])
def test_a_large_number_in_the_memo_takes_no_room(tmp_path, data):
    """pickle's C machine makes 2**32 slots for it."""
    tracemalloc.start()
    assert load_pickle(tmp_path, data) == 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MEMORY


def text(content: str) -> bytes:
    return b"X" + struct.pack("<I", len(content.encode())) + content.encode()


def integer(number: int) -> bytes:
    return b"\x8a" + bytes([16]) + number.to_bytes(16, "little", signed=True)


MANY = 30_000
LONG = text("a" * 500_000)
ONES = b"(" + b"K\x01" * MANY
FLOAT_STORAGE = b"X\x07\x00\x00\x00storagectorch\nFloatStorage\n"


def call(module_and_name: bytes, arguments: bytes) -> bytes:
    """A pickle that calls one function many times with the same arguments, and keeps what it gives."""
    return b"c" + module_and_name + b"\nq\x000" + arguments + b"q\x010(l" + b"h\x00h\x01Ra" * MANY + b"."


@pytest.mark.slow
@pytest.mark.parametrize(
    "data",
    [
        call(b"_codecs\nencode", b"(" + LONG + b"X\x06\x00\x00\x00latin1t"),
        call(b"collections\nOrderedDict", b"((" + b"(K\x01K\x02t" * MANY + b"lt"),
        call(b"collections\nOrderedDict", b"((" + b"".join(integer(i) + b"N" for i in range(MANY)) + b"dt"),
        call(b"builtins\nset", b"(" + ONES + b"lt"),
        call(b"__builtin__\nset", b"(" + ONES + b"tt"),
        call(b"argparse\nNamespace", ONES + b"t"),
        b"cargparse\nNamespace\nq\x000" + ONES + b"tq\x010(l" + b"h\x00h\x01\x81a" * MANY + b".",  # NEWOBJ
        b"cargparse\nNamespace\nq\x000" + ONES + b"tq\x010(l" + b"h\x00h\x01}\x92a" * MANY + b".",  # NEWOBJ_EX
        ONES + b"tq\x010}" + b"h\x01Ns" * MANY + b".",  # a key that is hashed again and again
        ONES + b"tq\x010(" + b"h\x01N" * MANY + b"d.",
        ONES + b"tq\x010\x8f(" + b"h\x01" * MANY + b"\x90.",
        ONES + b"tq\x010(" + b"h\x01" * MANY + b"\x91.",
        LONG + b"q\x010" + LONG + b"q\x020}" + b"h\x01Nsh\x02Ns" * MANY + b".",  # compared again and again
        text("fairseq") + b"q\x010" + LONG + b"q\x020(l" + b"h\x01h\x02\x93a" * MANY + b".",  # a long class name
        b"(" + FLOAT_STORAGE + LONG + b"X\x03\x00\x00\x00cpuK\x08tq\x010(l" + b"h\x01Qa" * MANY + b".",
    ],
    ids=lambda data: repr(data[:30]),
)
def test_what_a_pickle_makes_of_little_again_and_again_is_counted(tmp_path, data):
    """Each asks for gigabytes, or for minutes, in under 1.3 MB."""
    assert len(data) < 1_300_000
    assert re.search(r"creates more than its size allows|no storage", refused_pickle(tmp_path, data))


@pytest.mark.slow
@pytest.mark.parametrize("operation", [b"\x8f", b"(", b"\x94", b")R0h\x00"])
def test_a_pickle_of_millions_of_operations_in_a_small_file_is_refused(forked, tmp_path, operation):
    """Empty sets, marks, things to remember, records: under 300 bytes each. In a process, whose memory tells how many."""
    data = b"cargparse\nNamespace\nq\x00" + operation * 1_300_000 + b"."
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("m/data.pkl", data)
    answers = forked.SimpleQueue()
    process = forked.Process(target=processes.memory_to_refuse, args=(tmp_path / "m.pt", answers))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    message, memory = answers.get()
    assert memory < len(data) + (300 << 20)
    assert "requests more work than its size allows" in message


@pytest.mark.parametrize(
    "keys",
    [
        [i * (2**61 - 1) for i in range(1, MANY)],  # which all have the hash 0
        [-i * (2**61 - 1) - 5 for i in range(1, MANY)],
        [1 << 120],
    ],
)
def test_keys_that_are_numbers_made_to_collide(tmp_path, keys):
    data = b"}(" + b"".join(integer(key) + b"N" for key in keys) + b"u."
    assert "a number of over 60 bits as a key" in refused_pickle(tmp_path, data)


def test_keys_that_are_tuples_made_to_collide_are_looked_up_under_no_hash(tmp_path):
    """The hashes of -1 and -2 are the same: so are those of all tuples of them."""
    keys = list(itertools.islice(itertools.product((-1, -2), repeat=14), 5000))
    assert len({hash(key) for key in keys}) == 1
    loaded = load_pickle(tmp_path, pickle.dumps(dict.fromkeys(keys), 2))
    assert len({hash(key) for key in loaded}) == 5000
    assert [key.arguments for key in loaded] == keys


def test_a_shape_of_very_many_axes_is_refused_before_it_is_looked_at(tmp_path):
    shape = b"(" + b"K\x01" * 100 + b"t"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\x00" + shape + shape + b"\x89)tR."
    assert "a tensor of 100 axes" in refused_pickle(tmp_path, tensor)


@pytest.mark.parametrize("zip_format", [False, True])
def test_a_checkpoint_of_robertas_size_needs_little_of_its_budget(tmp_path, monkeypatch, zip_format):
    """roberta.large with Adam's moments, but for the values; and it would do with what a small file may, too."""
    layer = {f"{part}.{kind}": 0 for part in ("q", "k", "v", "out", "fc1", "fc2", "norm1", "norm2") for kind in "wb"}
    names = [f"decoder.sentence_encoder.layers.{i}.self_attn.{name}" for i in range(24) for name in layer]
    names += [f"decoder.{i}" for i in range(9)]
    state = {name: torch.zeros(2, 2) for name in names}
    moments = {i: {"step": 1, "exp_avg": torch.zeros(2, 2), "exp_avg_sq": torch.zeros(2, 2)} for i in range(len(names))}
    optimizer = {"state": moments, "param_groups": [{"lr": 1e-3, "params": list(moments)}]}
    saved = {
        "args": argparse.Namespace(**dict(state_of_arguments())),
        "model": state,
        "last_optimizer_state": optimizer,
    }
    torch.save(saved, tmp_path / "m.pt", _use_new_zipfile_serialization=zip_format)
    size = 355_411_033 * 4 * 3  # bytes of its parameters and their moments
    budget = torch_file.Budget.of(size)
    allowed = budget.operations, budget.size
    monkeypatch.setattr(torch_file.Budget, "of", lambda _: budget)
    torch_file.load(tmp_path / "m.pt")
    operations, earned = allowed[0] - budget.operations, 2 * (tmp_path / "m.pt").stat().st_size
    used = allowed[1] + earned - budget.size  # with what the file's storages have not earned: an upper bound
    print(f"{operations} operations of {allowed[0]}, at most {used} bytes of {allowed[1]}")
    assert operations < torch_file.Budget.of(0).operations / 20
    assert operations < allowed[0] / 100
    assert used < allowed[1] / 20


def state_of_arguments() -> Iterator[tuple[str, Any]]:
    """As many as fairseq's trainer has."""
    for i in range(200):
        yield f"argument_number_{i}", [i, None, True, f"value {i}", 0.1, [0.9, 0.98]][i % 6]


@pytest.mark.parametrize("kind", fuzz_reader.KINDS)
def test_files_changed_at_random_are_read_or_refused_in_one_line(kind, tmp_path, monkeypatch):
    """A few of the files that `python -m tests.fuzz_reader` tries for as long as it is let; always the same ones."""
    monkeypatch.setattr(fuzz_reader, "FOLDER", tmp_path)
    read, seeds = fuzz_reader.KINDS[kind]
    random = np.random.default_rng(0)
    for seed in seeds():
        with suppress(roberta_flax.RobertaFlaxError):
            read(seed)
        for _ in range(60):
            fuzz_reader.try_one(read, fuzz_reader.mutated(seed, random))


def test_what_fuzzing_found(tmp_path):
    """Cases from tests/fuzz_reader.py, each once an exception that was not a CheckpointError."""
    scalar = b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'f1'\nK\x00K\x01tRC\x01atR"  # no such float
    assert isinstance(load_pickle(tmp_path, b"\x80\x03}S'args'\n" + scalar + b"s.")["args"], torch_file.Record)


# zip files


@pytest.mark.parametrize(
    "name", ["/tmp/x", "../x", "m/../../x", "C:\\x", "\\\\server\\x", "m\\..\\..\\x", "m/data/../../../x"]
)
def test_a_zip_member_that_leads_out(source, tmp_path, name):
    with zipfile.ZipFile(source / "model.pt", "w") as archive:
        archive.writestr("m/data.pkl", b"}.")
        archive.writestr(zipfile.ZipInfo(name), b"x")
    assert "leads out of it" in refusal(lambda: convert(source, tmp_path / "converted"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_file_whose_members_expand_come_twice_or_are_not_what_they_say(source, tmp_path):
    def made(change: Callable[[zipfile.ZipFile], Any]) -> str:
        with zipfile.ZipFile(source / "model.pt", "w") as archive:
            change(archive)
        return refusal(lambda: convert(source, tmp_path / "converted"))

    bomb = zipfile.ZipInfo("m/data.pkl")
    bomb.compress_type = zipfile.ZIP_DEFLATED
    assert "is compressed or encrypted" in made(lambda archive: archive.writestr(bomb, bytes(200 << 20)))
    order = zipfile.ZipInfo("m/byteorder")
    order.compress_type = zipfile.ZIP_DEFLATED
    assert "is compressed" in made(lambda a: (a.writestr("m/data.pkl", b"}."), a.writestr(order, bytes(200 << 20))))
    assert "twice" in made(lambda a: [a.writestr("m/data.pkl", b"}.") for _ in range(2)])
    assert "big-endian" in made(lambda a: (a.writestr("m/data.pkl", b"}."), a.writestr("m/byteorder", b"big")))

    with zipfile.ZipFile(source / "model.pt", "w") as archive:
        archive.writestr("m/data.pkl", b"}.")
    content = (source / "model.pt").read_bytes()
    for size in (3, 1 << 30):  # another size than the member has, in its entry of the directory at the end
        at = content.rindex(b"PK\x01\x02") + 20
        (source / "model.pt").write_bytes(content[:at] + struct.pack("<II", size, size) + content[at + 8 :])
        assert "damaged" in refusal(lambda: convert(source, tmp_path / "converted"))
    at = content.rindex(b"PK\x05\x06") + 12  # the directory's size
    (source / "model.pt").write_bytes(content[:at] + struct.pack("<I", 1 << 31) + content[at + 4 :])
    assert "damaged" in refusal(lambda: convert(source, tmp_path / "converted"))
    at = content.rindex(b"PK\x01\x02") + 42  # the member's place in the file
    (source / "model.pt").write_bytes(content[:at] + struct.pack("<I", 1 << 31) + content[at + 4 :])
    assert "damaged" in refusal(lambda: convert(source, tmp_path / "converted"))


def test_a_zip_file_of_very_many_members(tmp_path):
    """Their directory alone is larger than any checkpoint's, and each entry makes an object."""
    name = b"m/data/0"
    entry = struct.pack("<4s6H3I5H2I", b"PK\x01\x02", *[0] * 6, *[0] * 3, len(name), *[0] * 4, 0, 0) + name
    count = 200_000
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 65535, 65535, count * len(entry), 4, 0)
    (tmp_path / "m.pt").write_bytes(b"PK\x03\x04" + entry * count + end)
    assert "its directory claims" in refusal(lambda: torch_file.load(tmp_path / "m.pt"))


def test_a_damaged_value_is_found_by_the_checksum_of_its_member(source, tmp_path):
    """One bit of a weight, which no shape and no size would tell of."""
    saved = torch.load(source / "model.pt", weights_only=False)
    torch.save(saved, source / "model.pt")
    convert(source, tmp_path / "whole")
    with zipfile.ZipFile(source / "model.pt") as archive:
        member = max(archive.infolist(), key=lambda member: member.file_size)
    content = bytearray((source / "model.pt").read_bytes())
    content[member.header_offset + 30 + len(member.filename) + 1000] ^= 1
    (source / "model.pt").write_bytes(content)
    message = refusal(lambda: convert(source, tmp_path / "damaged"))
    assert f"{member.filename!r} does not match its checksum; copy it again" in message
    assert not (tmp_path / "damaged").exists()


def test_a_file_that_torch_wrote_without_checksums_is_read(source, tmp_path):
    saved = torch.load(source / "model.pt", weights_only=False)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(saved, source / "model.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(source / "model.pt") as archive:
        assert {member.CRC for member in archive.infolist()} == {0}
    convert(source, tmp_path / "converted")


def test_tensors_that_share_their_values_do_not_make_a_model_larger_than_its_file(source, tmp_path):
    """A thousand layers of one small storage: what would be written is many times what was read."""
    saved = torch.load(source / "model.pt", weights_only=False)
    layer = {name: tensor for name, tensor in saved["model"].items() if ".layers.0." in name}
    for i in range(1000):
        saved["model"] |= {name.replace(".layers.0.", f".layers.{i}."): tensor for name, tensor in layer.items()}
    saved["args"].encoder_layers = 1000
    torch.save(saved, source / "model.pt")
    with pytest.raises(CheckpointError, match="its tensors share their values"):
        convert(source, tmp_path / "converted")


def stretched(*shape: int) -> Any:
    """A tensor of one number that claims to be huge."""
    return torch.zeros(1).as_strided(shape, (0,) * len(shape))


HEAD = "classification_heads.mnli.dense"
EMBEDDINGS = ("decoder.sentence_encoder.embed_tokens.weight", "decoder.lm_head.weight")


@pytest.mark.parametrize(
    "tensors",
    [
        dict.fromkeys(EMBEDDINGS, (1 << 40, 1 << 10)),
        dict.fromkeys(EMBEDDINGS, (1 << 25, 64)),
        {f"{HEAD}.weight_orig": (1 << 40, 1 << 10), f"{HEAD}.weight_u": (1 << 40,), f"{HEAD}.weight_v": (1 << 10,)},
        {"decoder.sentence_encoder.version": (1 << 50,)},
        {"decoder._ema.weight": (1 << 30, 1 << 20)},
    ],
)
def test_tensors_stretched_by_strides_of_zero_are_refused_before_a_value_is_read(source, tmp_path, tensors):
    saved = torch.load(source / "model.pt", weights_only=False)
    saved["model"] |= {name: stretched(*shape) for name, shape in tensors.items()}
    torch.save(saved, source / "model.pt")
    message = refusal(lambda: convert(source, tmp_path / "converted"))
    assert "larger than its file: " + next(iter(sorted(tensors))) in message


def test_stretched_tensors_in_the_parts_of_a_model(source, tmp_path):
    """A tensor that is in every part is compared among them."""
    saved = torch.load(source / "model.pt", weights_only=False)
    for i in range(2):
        part = {"decoder.sentence_encoder.layer_norm.weight": stretched(1 << 40, 1 << 10)}
        torch.save({**saved, "model": {**saved["model"], **part}}, source / f"model-model_part-{i}.pt")
    (source / "model.pt").unlink()
    assert "larger than its file: decoder.sentence_encoder.layer_norm" in refusal(
        lambda: convert(source, tmp_path / "out")
    )


@pytest.mark.slow
def test_metadata_of_shards_that_repeat_themselves(source, tmp_path):
    """One list of names in one dictionary of tensors in one module, a thousand times each: a billion names in 10 kB."""
    saved = torch.load(source / "model.pt", weights_only=False)
    count = 1000
    described = {"names": ["weight"] * count, "shapes": [[0]] * count, "padding": 0}
    module = {"fsdp_path": "", "params": {f"flat{i}": described for i in range(count)}, "no_broadcast_optim_state": False,
              "shared_param_info": []}  # fmt: skip
    empty = {**described, "names": [], "shapes": []}
    long = {
        **module,
        "fsdp_path": "a" * 100_000,
        "params": {"flat0": {**described, "names": [*map(str, range(count))]}},
    }
    for what in (module, {**module, "params": dict.fromkeys(module["params"], empty)}, long):
        metadata = {"param_metadata": [what] * count, "buffer_names": []}
        flat = {
            f"{prefix}flat{i}": torch.zeros(0)
            for i in range(count)
            for prefix in ("", f"{long['fsdp_path']}.")[: 1 + (i == 0)]
        }
        torch.save({**saved, "model": flat, "fsdp_metadata": metadata}, source / "model-shard0.pt")
        assert "metadata that do not match" in refusal(
            lambda: convert(source, tmp_path / "out", checkpoint_file="model-shard0.pt")
        )


@pytest.mark.parametrize("name", ["embeddings.token_type_embeddings", "lm_head.decoder", "embeddings.position_ids"])
def test_stretched_tensors_in_a_file_of_transformers(tmp_path, name):
    folder = transformers_directory(tmp_path / "source", '{"model_type": "roberta", "num_hidden_layers": 1}')
    (folder / "model.safetensors").unlink()
    huge = stretched(1 << 40, 1 << 10)
    state = {
        "embeddings.word_embeddings.weight": huge if "decoder" in name else torch.zeros(8, 4),
        f"{name}.weight": huge,
    }
    torch.save(state, folder / "pytorch_model.bin")
    assert f"larger than its file: {name}" in refusal(lambda: convert(folder, tmp_path / "converted"))


def test_one_tensor_by_many_names_is_not_read_once_for_each(source, tmp_path):
    saved = torch.load(source / "model.pt", weights_only=False)
    weight, vector = torch.ones(300, 300), torch.ones(300)
    for i in range(1000):
        name = f"classification_heads.head{i}.dense.weight"
        saved["model"] |= {f"{name}_orig": weight, f"{name}_u": vector, f"{name}_v": vector}
    torch.save(saved, source / "model.pt")
    assert "its tensors share their values" in refusal(lambda: convert(source, tmp_path / "converted"))


def test_tensors_are_compared_a_part_at_a_time_however_they_lie():
    values = np.zeros((6000, 4000), np.float32).T  # 96 MB
    tracemalloc.start()
    assert same_values(Values(values), Values(values))
    assert same_values(Values(values.reshape(1, 4000, 6000)), Values(values.reshape(1, 4000, 6000)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MEMORY
    for position in ((0, 0), (2000, 3000), (3999, 5999)):
        other = values.copy(order="K")
        other[position] = 1
        assert not same_values(Values(values), Values(other))
    not_a_number = np.array([np.nan, 1], np.float32)
    assert same_values(Values(not_a_number), Values(not_a_number.copy()))
    assert not same_values(Values(not_a_number), Values(np.array([0, 1], np.float32)))
    assert not same_values(Values(np.zeros((2, 3))), Values(np.zeros((3, 2))))
    assert same_values(Values(np.float32(1)[None].reshape(())), Values(np.ones((), np.float32)))
    assert same_values(Values(np.zeros((0, 3))), Values(np.zeros((0, 3))))


@pytest.mark.parametrize(
    ("orig", "u", "v", "message"),
    [
        ((), (), (), "wrong shape"), ((64,), (64,), (), "wrong shape"), ((64, 64, 64), (64,), (64, 64), "wrong shape"),
        ((64, 64), (64,), (63,), "wrong shape"), ((64, 64), (64, 1), (64,), "wrong shape"), ((64, 64), None, (64,), "wrong shape"),
    ],
)  # fmt: skip
def test_spectral_norms_of_odd_shapes(source, tmp_path, orig, u, v, message):
    parts = {"orig": orig, "u": u, "v": v}
    tensors = {part: torch.ones(shape) for part, shape in parts.items() if shape is not None}
    assert f"{message}: {HEAD} has no weight_u [rows]" in with_spectral_norm(source, tmp_path, tensors)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 1e300])
def test_spectral_norms_that_nothing_can_be_divided_by(source, tmp_path, value):
    dtype = torch.float64 if value == 1e300 else torch.float32
    tensors = {"orig": torch.full((64, 64), value, dtype=dtype), "u": torch.ones(64), "v": torch.ones(64)}
    if value == 1e300:
        tensors["u"] = torch.full((64,), 1e300, dtype=dtype)
    assert f"wrong values: {HEAD} has a spectral norm of" in with_spectral_norm(source, tmp_path, tensors)


def test_a_spectral_norm_of_integers(source, tmp_path):
    tensors = {"orig": torch.ones(64, 64, dtype=torch.int64), "u": torch.ones(64), "v": torch.ones(64)}
    assert "wrong shape" in with_spectral_norm(source, tmp_path, tensors)


def with_spectral_norm(source: Path, tmp_path: Path, tensors: dict[str, Any]) -> str:
    saved = torch.load(source / "model.pt", weights_only=False)
    del saved["model"][f"{HEAD}.weight"]
    saved["model"] |= {f"{HEAD}.weight_{part}": tensor for part, tensor in tensors.items()}
    torch.save(saved, source / "model.pt")
    return refusal(lambda: convert(source, tmp_path / "converted"))


# archives


def test_archives_with_links_devices_and_paths_that_lead_out(tiny_source, tmp_path):
    def made(*members: tuple[tarfile.TarInfo, bytes]) -> str:
        path = tmp_path / "model.tar.gz"
        with tarfile.open(path, "w:gz") as tar:
            for name in ("dict.txt", "encoder.json", "vocab.bpe"):
                tar.add(tiny_source / name, f"m/{name}")
            for member, content in members:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return refusal(lambda: convert(path, tmp_path / "converted"))

    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
        member = tarfile.TarInfo("m/model.pt")
        member.type, member.linkname = kind, "/etc/passwd"
        assert "is a link or a device" in made((member, b""))
    for name in ("/it-ran", "../it-ran", "m/../../it-ran"):
        assert "leads out of it" in made((tarfile.TarInfo(name), b"x"))
    link = tarfile.TarInfo("m/link")
    link.type, link.linkname = tarfile.SYMTYPE, ".."
    assert "is a link" in made((link, b""), (tarfile.TarInfo("m/link/it-ran"), b"x"))


# values


def with_values(source: Path, **values: float) -> None:
    saved = torch.load(source / "model.pt", weights_only=False)
    for name, value in values.items():
        tensor = saved["model"][f"decoder.sentence_encoder.layers.{name}"]
        tensor.view(-1)[:3] = value
    torch.save(saved, source / "model.pt")


def test_values_that_are_not_finite_are_counted_or_refused(source, tmp_path, caplog):
    with_values(source, **{"0.fc1.weight": float("nan"), "1.fc2.bias": float("inf"), "1.fc1.bias": float("-inf")})
    with caplog.at_level(logging.WARNING):
        convert(source, tmp_path / "converted")
    (message,) = caplog.messages
    assert "not finite in 3 of its tensors" in message
    assert "layers.0.fc1.weight has 3 NaN" in message
    assert "layers.1.fc2.bias has 3 infinite" in message
    with pytest.raises(CheckpointError, match=r"layers.1.fc1.bias has 3 infinite.* strict"):
        convert(source, tmp_path / "strict", strict=True)
    assert not (tmp_path / "strict").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_a_stored_dtype_rounds_to_nearest_and_says_what_overflows(dtype, source, tmp_path, caplog):
    with_values(source, **{"0.fc1.weight": 1e6})
    directory = convert(source, tmp_path / "converted", dtype=dtype)
    exact = read_tensors(convert(source, tmp_path / "exact") / "model.safetensors")
    with np.errstate(over="ignore"):
        for name, tensor in read_tensors(directory / "model.safetensors").items():
            assert tensor.dtype.name == dtype
            expected = torch.from_numpy(np.array(exact[name].read())).to(getattr(torch, dtype)).double().numpy()
            assert (tensor.read().astype(np.float64) == expected).all()
    assert any("3 too large for the dtype" in message for message in caplog.messages) == (dtype == "float16")
    roberta = roberta_flax.load(directory)
    assert {leaf.dtype.name for leaf in flatten(roberta.params).values()} == {"float32"}


def test_a_dtype_that_parameters_are_not_stored_in(tiny_source, tmp_path):
    with pytest.raises(roberta_flax.InputError, match="float64, float32, float16, bfloat16; got 'int8'"):
        convert(tiny_source, tmp_path / "converted", dtype="int8")


# Flax's, safetensors' and JSON files


def array(shape: Any, dtype: Any, content: bytes) -> msgpack.ExtType:
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, content)))


def chunked(shape: Any, chunks: Any) -> dict[str, Any]:
    return {"__msgpack_chunked_array__": True, "shape": shape, "chunks": chunks}


@pytest.mark.parametrize(
    "tree",
    [
        {"a": array([1 << 40], "float32", b"")}, {"a": array([2], "float32", b"123")}, {"a": array([-1], "float32", b"1234")},
        {"a": array([1], "object", b"12345678")}, {"a": array([1], "O", b"12345678")}, {"a": array(1, "float32", b"1234")},
        {"a": array([1.5], "float32", b"1234")}, {"a": msgpack.ExtType(2, b"x")}, {"a": msgpack.ExtType(77, b"os.system")},
        {"a": 5}, [1, 2], {"a": {"__msgpack_chunked_array__": True}}, 5,
        {"a": {"__msgpack_chunked_array__": True, "shape": {"0": 1 << 40}, "chunks": {"0": array([1], "float32", b"1234")}}},
        {"a": chunked({"0": -1}, {"0": array([1], "float32", b"1234")})}, {"a": chunked({"0": 1}, {"0": {}})},
        {"a": chunked({"0": 2}, {"0": array([1], "float32", b"1234"), "1": array([1], "float16", b"12")})},
        {"a": chunked(array([1], "float32", b"1234"), {})}, {"a": chunked({str(i): 1 for i in range(70)}, {"0": array([1], "float32", b"1234")})},
        {"a": array([1] * 100, "float32", b"1234")}, {"a": array([1 << 63] * 100_000, "float32", b"1234")},
        {"a": array([[[[[1]]]]], "float32", b"1234")}, {"a": array([1], {"a": 1}, b"1234")}, {"a": array([0, 1 << 62, 1 << 62], "float32", b"")},
        {"a" * 2000: array([1], "float32", b"1234")}, {"a": array([1], "float32" * 100, b"1234")},
        {f"{i}": {f"{j}": {} for j in range(20)} for i in range(4000)}, {str(i): {} for i in range(5000)},
    ],
)  # fmt: skip
def test_flax_files_that_are_not_what_they_claim(tmp_path, tree):
    (tmp_path / "flax_model.msgpack").write_bytes(msgpack.packb(tree))
    refusal(lambda: msgpack_file.tensors(tmp_path / "flax_model.msgpack"))


@pytest.mark.parametrize(
    "content",
    [b"", b"\xc1", b"\xdf\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x01", b"\x81\xa1a" * 5000 + b"\x01", b"\x91" * 100_000, b"\x80\x80",
     b"\xdd\x00\x10\x00\x00" * 1000 + bytes(1 << 20), b"\x81\xa1a" + b"\xdf\x00\x10\x00\x00\xa1a" * 1000 + bytes(1 << 20)],
)  # fmt: skip
def test_flax_files_that_are_damaged(tmp_path, content):
    (tmp_path / "flax_model.msgpack").write_bytes(content)
    refusal(lambda: msgpack_file.tensors(tmp_path / "flax_model.msgpack"))


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 1 << 40]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}},
        {"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}},
        {"a": {"dtype": "O", "shape": [1], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
        {}, [1], "x", {"a": 1},
        {"a": {"dtype": "F32", "shape": [1] * 100 + [2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [1] * 200_000 + [2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [0, 1 << 62, 1 << 62], "data_offsets": [0, 0]}, "b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
    ],
)  # fmt: skip
def test_safetensors_files_that_are_not_what_they_claim(tmp_path, header):
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    refusal(lambda: read_tensors(tmp_path / "model.safetensors"))


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 8, b"\xff" * 7 + b"\x7f{}", (1 << 62).to_bytes(8, "little") + b"{}"]
)
def test_safetensors_files_that_are_damaged(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    refusal(lambda: read_tensors(tmp_path / "model.safetensors"))


def test_a_safetensors_header_larger_than_any_models(tmp_path):
    """100 MB of it, which the library itself would take, becomes gigabytes of objects."""
    tensors = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "__metadata__": {"a": "x" * (17 << 20)}}
    header = json.dumps(tensors).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    assert "its header has 1782" in refusal(lambda: read_tensors(tmp_path / "model.safetensors"), memory=1 << 20)


def test_names_of_a_flax_file_that_are_long_and_shared_by_many_tensors(tmp_path):
    """A megabyte of names, which would be written out for each of 60,000 tensors."""
    leaves: Any = {str(i): {str(j): array([], "float32", b"1234") for j in range(15)} for i in range(4000)}
    for level in range(20):
        leaves = {f"{level:x}" * 900: leaves}
    (tmp_path / "flax_model.msgpack").write_bytes(msgpack.packb(leaves))
    refusal(lambda: msgpack_file.tensors(tmp_path / "flax_model.msgpack"), memory=200 << 20)


def transformers_directory(folder: Path, config: str, tokenizer: str = "{}") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(config)
    (folder / "tokenizer.json").write_text(tokenizer)
    save_file({"embeddings.word_embeddings.weight": np.zeros((8, 4), np.float32)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    "config",
    [
        '{"model_type": "roberta", "a": ' + "[" * 100_000 + "]" * 100_000 + "}", '{"model_type": "roberta"', "\x00",
        '{"model_type": ["roberta"]}', '{"model_type": {}}', '{"model_type": "roberta", "num_hidden_layers": 1e308}',
        '{"model_type": "roberta", "num_attention_heads": 0}', '{"model_type": "roberta", "num_attention_heads": -4}',
        '{"model_type": "roberta", "num_hidden_layers": ' + "9" * 4000 + "}", '{"model_type": "roberta", "hidden_act": []}',
        '{"model_type": "roberta", "id2label": {"99999999": "a"}}', '{"model_type": "roberta", "hidden_dropout_prob": NaN}',
        '{"model_type": "roberta", "num_hidden_layers": ' + "9" * 9000 + "}",
    ],
)  # fmt: skip
def test_a_config_json_that_makes_no_sense(tmp_path, config):
    refusal(lambda: convert(transformers_directory(tmp_path / "source", config), tmp_path / "converted"))
    assert not (tmp_path / "converted").exists()


@pytest.fixture
def damaged(tiny_directory: Path, tmp_path: Path) -> Path:
    """A copy of the embedded model, converted, to spoil."""
    return Path(shutil.copytree(tiny_directory, tmp_path / "converted-copy"))


def test_json_that_is_nested_deep(damaged, tiny_source, tmp_path):
    deep = "[" * 100_000
    (damaged / "conversion.json").write_text(deep)
    assert "conversion.json is damaged" in refusal(lambda: verify(damaged, tiny_source))
    assert "sha256 nothing recorded" in refusal(lambda: roberta_flax.load(damaged, sha256="00"))
    (damaged / "conversion.json").write_text("{}")
    (damaged / "config.json").write_text(deep)
    assert "config.json is not JSON" in refusal(lambda: roberta_flax.load(damaged))


def test_a_depth_that_is_merely_claimed_costs_nothing(damaged, tiny_source, tmp_path):
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps({**config, "num_layers": 10_000_000}))
    for use in (
        lambda: roberta_flax.load(damaged),
        lambda: verify(damaged, tiny_source),
        lambda: export(damaged, tmp_path / "exported", to="huggingface"),
    ):
        assert "it has 45 tensors, too few for 10000000 layers" in refusal(use)


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "bool"])
@pytest.mark.parametrize("name", ["position_ids", "layers.0.attention.key.bias"])
def test_a_converted_model_with_tensors_of_integers(damaged, tiny_source, dtype, name):
    tensors = load_file(damaged / "model.safetensors")
    save_file({**tensors, name: np.ones(64, dtype)}, damaged / "model.safetensors")
    expected = f"unexpected: {name}" if name == "position_ids" else f"wrong dtype: {name} is {dtype}"
    assert expected in refusal(lambda: roberta_flax.load(damaged))
    assert expected in refusal(lambda: verify(damaged, tiny_source))


VOCAB = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4, "b": 5, "ab": 6, "<mask>": 7}
BPE = {"pre_tokenizer": {"type": "ByteLevel"}, "model": {"type": "BPE", "vocab": VOCAB, "merges": ["a b"]}}
UNIGRAM = [["<s>", 0], ["<pad>", 0], ["</s>", 0], ["<unk>", 0], ["a", -1], ["b", -2], ["<mask>", 0]]


@pytest.mark.parametrize(
    "tokenizer",
    [
        {}, {"model": 5}, {"model": {"type": "WordPiece"}}, {**BPE, "model": {**BPE["model"], "vocab": {**VOCAB, "c": 1 << 40}}},
        {**BPE, "model": {**BPE["model"], "vocab": {**VOCAB, "<pad>": 0}}}, {**BPE, "model": {**BPE["model"], "vocab": []}},
        {**BPE, "model": {**BPE["model"], "merges": [5]}}, {**BPE, "model": {**BPE["model"], "merges": None}},
        {**BPE, "added_tokens": [5]}, {"model": {"type": "Unigram", "vocab": [["a"]]}}, {"model": {"type": "Unigram", "vocab": 5}},
        {"model": {"type": "Unigram", "vocab": [["a", 1e999]] * 4}},
        {"model": {"type": "Unigram", "vocab": UNIGRAM}, "normalizer": {"type": "Precompiled", "precompiled_charsmap": "%"}},
        {"model": {"type": "Unigram", "vocab": UNIGRAM},
         "normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(b"\xff\xff\xff\x7f").decode()}},
    ],
)  # fmt: skip
def test_a_tokenizer_json_that_makes_no_sense(tmp_path, tokenizer):
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    refusal(lambda: hf_tokenizer.read([tmp_path], "roberta", 8, []))


def grown(path: Path, size: int) -> None:
    """Makes a file as large, without a byte on the disk."""
    with path.open("ab") as file:
        file.truncate(size)


@pytest.mark.parametrize(
    "name", ["dict.txt", "encoder.json", "vocab.bpe", "sentencepiece.bpe.model", "tokenizer.json", "config.json"]
)
def test_files_of_a_tokenizer_or_configuration_larger_than_any_is(source, tmp_path, name):
    grown(source / name, 65 << 20)
    message = refusal(lambda: convert(source, tmp_path / "converted"))
    assert f"{name} has {65 << 20} bytes, more than the" in message
    folder = tmp_path / "bpe"
    folder.mkdir()
    (source / name).rename(folder / name)
    assert "bytes, more than the" in refusal(lambda: convert(source, tmp_path / "converted", bpe_dir=folder))


def test_files_of_a_transformers_directory_larger_than_any_is(tmp_path):
    folder = transformers_directory(tmp_path / "source", '{"model_type": "roberta", "num_hidden_layers": 1}')
    for name in ("added_tokens.json", "merges.txt", "model.safetensors.index.json"):
        grown(folder / name, 65 << 20)
        assert f"{name} has {65 << 20} bytes, more than the" in refusal(lambda: convert(folder, tmp_path / "converted"))
        (folder / name).unlink()


@pytest.mark.parametrize("name", ["dict.txt", "encoder.json", "vocab.bpe", "config.json"])
def test_files_of_a_converted_directory_larger_than_any_is(damaged, name):
    grown(damaged / name, 65 << 20)
    if name != "config.json":  # which people edit
        assert f"it has {65 << 20} bytes, and had" in refusal(lambda: roberta_flax.load(damaged))
    (damaged / "conversion.json").write_text("{}")  # without checksums
    assert f"{name} has {65 << 20} bytes, more than the" in refusal(lambda: roberta_flax.load(damaged))


def test_a_warning_does_not_steer_the_terminal(source, tmp_path, caplog):
    """The name of a head is a file's own; the class of a tokenizer, which no rule holds to, is quoted in a note."""
    folder = transformers_of_tiny(source, tmp_path)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "\x1b[2J\r\n\u202eEvil"}))
    convert(folder, tmp_path / "converted")
    said = "".join(caplog.messages)
    assert "\\x1b[2J\\r\\n\\u202eEvil" in said
    assert said.isprintable()


def transformers_of_tiny(source: Path, tmp_path: Path) -> Path:
    return export(convert(source, tmp_path / "first"), tmp_path / "transformers", to="huggingface", heads=[])


def test_merges_that_take_long_to_check_are_walked_as_fairseq_walks_them():
    """1,500 merges, each of the last one's piece and a byte: a billion comparisons to know that each is reachable."""
    letters = np.random.default_rng(0).integers(97, 123, 1500, dtype=np.uint8).tobytes()
    merges = [(letters[: i + 1], letters[i + 1 : i + 2]) for i in range(len(letters) - 1)]
    bpe = ByteLevelBPE({}, merges)
    assert b"".join(bpe.pieces[i] for i in bpe.encode(letters[:40].decode())) == letters[:40]


@pytest.mark.parametrize("name", ["classifier.out_proj", "lm_head.decoder"])
def test_tensors_without_elements_and_with_sizes_beyond_counting(tmp_path, name):
    """A head of a million million classes takes no bytes where it is 0 wide, and a label for each would be made."""
    config = '{"model_type": "roberta", "num_hidden_layers": 1, "id2label": {"0": "a"}}'
    for size in (1 << 40, 1 << 62):
        folder = transformers_directory(tmp_path / f"source{size}", config)
        (folder / "model.safetensors").unlink()
        header = {f"{name}.weight": {"dtype": "F32", "shape": [size, 0], "data_offsets": [0, 0]}}
        header["classifier.dense.weight"] = {"dtype": "F32", "shape": [0, 4], "data_offsets": [0, 0]}
        text = json.dumps(header).encode()
        (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
        assert f"damaged: {name}.weight has 2 axes" in refusal(lambda folder=folder: convert(folder, tmp_path / "out"))


# a full disk


def one_line(said: str) -> str:
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("roberta-flax: ")]
    return line


@pytest.mark.slow
def test_an_output_that_nobody_reads_is_no_fault(tiny_directory):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", "from roberta_flax.cli import main; main()", "encode", "hi", "-m", tiny_directory]
    with open(writing, "w") as closed:
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("command", ["convert", "fairseq", "huggingface"])
def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(forked, tiny_directory, tiny_source, tmp_path, command):
    arguments = ["convert", tiny_source] if command == "convert" else ["export", "--to", command, tiny_directory]
    said_to = tmp_path / "said"
    os.mkfifo(said_to)  # which may be of any size
    options = {"stderr": said_to, "largest_file": 100_000}
    given = [*map(str, arguments), str(tmp_path / "made")]
    process = forked.Process(target=processes.command_line, args=given, kwargs=options)
    process.start()
    said = said_to.read_text()
    process.join(60)
    assert process.exitcode == 1
    assert "cannot write" in one_line(said)
    assert list(tmp_path.iterdir()) == [said_to]


# being stopped


@pytest.mark.slow
def test_a_conversion_that_is_killed_never_leaves_a_directory_that_loads(forked, tiny_source, tiny_directory, tmp_path):
    """At random moments, until ten kills found a conversion under way; conversions run until the moment comes."""
    random = np.random.default_rng(0)
    expected = {name.name: name.read_bytes() for name in tiny_directory.iterdir()}
    partial = whole = 0
    for kill in itertools.count():
        if partial >= 10 and whole >= 10:
            break
        assert kill < 500, "the moments were all between conversions"
        folder = tmp_path / str(kill)
        folder.mkdir()
        started = forked.Event()
        worker = forked.Process(target=processes.convert_again_and_again, args=(tiny_source, folder, started))
        worker.start()
        try:
            assert started.wait(60)
            worker.join(float(random.uniform(0, 0.3)))
        finally:
            worker.kill()
            worker.join()
        for left in folder.iterdir():
            if left.name.startswith("."):
                partial += 1
                with pytest.raises(CheckpointError):
                    roberta_flax.load(left)
            else:
                whole += 1
                assert {file.name: file.read_bytes() for file in left.iterdir()} == expected
                if whole <= 3:
                    roberta_flax.load(left)
        shutil.rmtree(folder)


def test_what_a_stopped_conversion_left_is_not_loaded_even_where_every_file_is_there(tiny_directory, tmp_path):
    left = shutil.copytree(tiny_directory, tmp_path / ".model-x.partial")
    with pytest.raises(CheckpointError, match="left by a conversion that was interrupted"):
        roberta_flax.load(left)


def test_pickle_is_the_machine_that_is_restricted():
    """The opcodes that this reader restricts are those of the Python it runs on: a new one must be looked at."""
    known = {
        name for name, value in vars(pickle).items() if isinstance(value, bytes) and name.isupper() and len(value) == 1
    }
    assert len(known) == 68, sorted(known)
