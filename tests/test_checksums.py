"""A converted directory has checksums of its files: what was changed is found, in part at once and by verify() in whole."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import roberta_flax
from roberta_flax import CheckpointError, InputError
from roberta_flax.convert import verify

FILES = ("config.json", "conversion.json", "dict.txt", "encoder.json", "model.safetensors", "vocab.bpe")


@pytest.fixture
def copy(tiny_directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_directory, tmp_path / "copy"))


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0x04
    path.write_bytes(content)


def without_checksums(directory: Path) -> Path:
    """As a version before checksums wrote it."""
    conversion = json.loads((directory / "conversion.json").read_text())
    del conversion["checksums"]
    (directory / "conversion.json").write_text(json.dumps(conversion, indent=2) + "\n")
    return directory


def test_what_was_written_is_what_is_there(tiny_directory):
    result = verify(tiny_directory)
    assert (result.problems, result.comparisons) == ([], [])
    assert {file.name: file.size for file in result.files} == {
        path.name: path.stat().st_size for path in tiny_directory.iterdir()
    }


@pytest.mark.parametrize("name", FILES)
def test_one_bit_flipped_anywhere_in_a_file_is_found(name, tiny_directory, tmp_path):
    size = (tiny_directory / name).stat().st_size
    for number, place in enumerate(np.random.default_rng(0).integers(0, size, 12)):
        copy = Path(shutil.copytree(tiny_directory, tmp_path / str(number)))
        flip(copy / name, place)
        try:
            problems = verify(copy).problems
        except CheckpointError as error:  # of a conversion.json that is no JSON any more
            problems = [str(error)]
        (problem,) = problems
        assert name in problem, place


@pytest.mark.parametrize("name", ["dict.txt", "encoder.json", "vocab.bpe"])
def test_a_changed_tokenizer_is_refused_whether_the_parameters_are_loaded_or_not(name, copy):
    flip(copy / name, -3)
    for load in (roberta_flax.load, roberta_flax.load_tokenizer):
        with pytest.raises(CheckpointError, match=f"{name} is not the file that was written: its SHA-256"):
            load(copy)


def test_parameters_of_another_size_are_loaded_with_a_warning(copy, caplog):
    path = copy / "model.safetensors"
    save_file(load_file(path), path, metadata={"written by": "somebody else" * 100})
    roberta_flax.load(copy)
    (message,) = caplog.messages
    assert re.search(r"model.safetensors is not the file that was written \(it has \d+ bytes, and had \d+\)", message)
    assert [problem.split(":")[0] for problem in verify(copy).problems] == ["model.safetensors"]


def test_tokenizer_files_that_were_added_are_refused(copy):
    """A sentencepiece model beside a byte-level vocabulary would become the tokenizer."""
    (copy / "sentencepiece.bpe.model").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"sentencepiece.bpe.model was not there when the model was written"):
        roberta_flax.load(copy)
    assert verify(copy).problems == ["sentencepiece.bpe.model: it was added"]


def test_an_edited_configuration_is_loaded_with_a_warning(copy, caplog):
    config = json.loads((copy / "config.json").read_text())
    config["heads"][0]["labels"] = ["no", "perhaps", "yes"]
    (copy / "config.json").write_text(json.dumps(config))
    assert roberta_flax.load(copy).config.head("mnli").labels == ("no", "perhaps", "yes")
    assert "config.json is not the file that was written" in caplog.text
    assert [problem.split(":")[0] for problem in verify(copy).problems] == ["config.json"]


def test_a_model_that_is_saved_or_exported_to_programs_has_checksums(tiny, tiny_directory, tmp_path):
    tiny.save(tmp_path / "saved")
    roberta_flax.stablehlo.export(tiny_directory, tmp_path / "programs", heads=[], platforms=["cpu"])
    for directory in ("saved", "programs"):
        assert len(verify(tmp_path / directory).files) == len(FILES)


def test_a_directory_of_an_older_version_loads_and_says_that_it_has_no_checksums(copy, tiny, caplog):
    without_checksums(copy)
    flip(copy / "model.safetensors", -1)
    assert roberta_flax.load(copy).config == tiny.config
    assert caplog.messages == []
    with pytest.raises(CheckpointError, match=r"has no checksums, because an older version converted it: compare it"):
        verify(copy)


@pytest.mark.parametrize(
    "checksums",
    [[], {"../x": {"bytes": 1, "sha256": ""}}, {"a/b": {"bytes": 1, "sha256": ""}}, {"x": 1}, {"x": {"sha256": 1}}, {"x": {"bytes": "1", "sha256": ""}}],
)  # fmt: skip
def test_checksums_that_are_none_are_damage(checksums, copy):
    conversion = json.loads((copy / "conversion.json").read_text())
    (copy / "conversion.json").write_text(json.dumps({**conversion, "checksums": checksums}))
    with pytest.raises(CheckpointError, match=r"conversion.json is damaged; convert the model again"):
        roberta_flax.load(copy)


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", "\ud800"], ids=["too long", "null", "surrogate"])
def test_a_file_that_no_disk_could_have_is_missing(name, copy):
    conversion = json.loads((copy / "conversion.json").read_text())
    conversion["checksums"][name] = {"bytes": 1, "sha256": "0"}
    (copy / "conversion.json").write_text(json.dumps(conversion))
    with pytest.raises(CheckpointError, match="is not the file that was written: it is missing"):
        roberta_flax.load(copy)


def test_options_for_a_source_need_a_source(tiny_directory, tmp_path):
    with pytest.raises(InputError, match=r"are for a source; name it with against \(--against\)"):
        verify(tiny_directory, head_name="mnli")
    for missing in (tmp_path, tmp_path / "none"):
        with pytest.raises(CheckpointError, match="is not a converted model"):
            verify(missing)


def test_verify_prints_a_line_for_every_file(run, copy):
    status, out, err = run("verify", copy)
    assert (status, err) == (0, "")
    assert out.splitlines()[0].split() == ["file", "bytes", "result"]
    assert out.splitlines()[-1] == "6 of 6 files are those that were written, byte for byte"
    flip(copy / "model.safetensors", -1)
    status, out, err = run("verify", copy)
    assert status == 1
    assert "5 of 6 files are those that were written" in out
    assert err.endswith("is not what was written: model.safetensors: its SHA-256 is another one\n")
    result = json.loads(run("verify", copy, "--json")[1])
    assert (result["identical"], len(result["files"]), len(result["problems"])) == (5, 6, 1)
