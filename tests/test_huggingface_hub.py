"""hf:org/name, from a server on this machine that answers as Hugging Face's hub does."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save

import roberta_flax
from roberta_flax import CheckpointError, DownloadError, SentenceEncoder
from roberta_flax.convert import convert, export, huggingface

constants = pytest.importorskip("huggingface_hub.constants")
file_download = pytest.importorskip("huggingface_hub.file_download")

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repository:
    """What the server has, and what it was asked for."""

    files: dict[str, bytes]
    gated: bool = False
    downloaded: list[str] = field(default_factory=list)


@pytest.fixture
def hub(monkeypatch, tmp_path, tiny_directory):
    """A hub with one model, org/tiny, whose main revision is COMMIT."""
    exported = export(tiny_directory, tmp_path / "exported", to="huggingface")
    repository = Repository({file.name: file.read_bytes() for file in exported.iterdir()})

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self):
            if repository.gated:
                return self.answer(403, b"{}", X_Error_Code="GatedRepo")
            if self.path.split("?")[0] in (
                "/api/models/org/tiny/revision/main",
                f"/api/models/org/tiny/revision/{COMMIT}",
            ):
                siblings = [{"rfilename": name} for name in repository.files]
                return self.answer(200, json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": siblings}).encode())
            name = self.path.removeprefix(f"/org/tiny/resolve/{COMMIT}/")
            if name not in repository.files:
                return self.answer(404, b"{}", X_Error_Code="RepoNotFound")
            if self.command == "GET":
                repository.downloaded.append(name)
            body = repository.files[name]
            return self.answer(200, body, ETag=f'"{hashlib.sha256(body).hexdigest()}"', X_Repo_Commit=COMMIT)

        do_HEAD = do_GET  # noqa: N815

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, args=[0.01], daemon=True).start()
    endpoint = f"http://127.0.0.1:{listening.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):  # which has a copy of it
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield repository
    listening.shutdown()
    listening.server_close()


@pytest.mark.parametrize("name", ["hf:org/tiny", "hf:org/tiny@main", f"hf:org/tiny@{COMMIT}"])
def test_a_model_on_the_hub_loads_by_its_name_and_answers_as_the_one_it_was_made_from(hub, tiny, tmp_path, name):
    roberta = roberta_flax.load(name, cache_dir=tmp_path / "cache")
    pair = tiny.encode("A man is sleeping.", "Nobody is awake.")
    assert roberta.encode("A man is sleeping.", "Nobody is awake.").tolist() == pair.tolist()
    head = huggingface.HEAD_NAMES["sentence"]
    assert (roberta.predict(head, pair, True) == tiny.predict("mnli", pair, True)).all()


def test_a_model_is_downloaded_once_and_then_loads_without_the_hub(hub, tmp_path):
    roberta_flax.load("hf:org/tiny", cache_dir=tmp_path / "cache")
    assert sorted(hub.downloaded) == sorted(hub.files)
    hub.gated = True
    roberta_flax.load("hf:org/tiny", cache_dir=tmp_path / "cache")
    assert len(hub.downloaded) == len(hub.files)


def test_one_set_of_weights_and_nothing_that_is_not_needed_is_downloaded(hub, tmp_path):
    hub.files |= dict.fromkeys(
        ("pytorch_model.bin", "flax_model.msgpack", "tf_model.h5", "README.md", "training_args.bin"), b"not wanted"
    )
    convert("hf:org/tiny", tmp_path / "converted", cache_dir=tmp_path / "cache")
    assert sorted(hub.downloaded) == sorted(
        ["config.json", "model.safetensors", "tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"]
    )


def test_the_modules_of_a_sentence_encoder_are_downloaded_with_it(hub, tiny, tiny_directory, tmp_path):
    exported = export(tiny_directory, tmp_path / "sentences", to="sentence-transformers", heads=[])
    hub.files = {
        file.relative_to(exported).as_posix(): file.read_bytes() for file in exported.rglob("*") if file.is_file()
    }
    hub.files |= {"onnx/model.onnx": b"not wanted", "1_Pooling/pytorch_model.bin.gz": b"not wanted"}
    encoder = SentenceEncoder("hf:org/tiny", cache_dir=tmp_path / "cache")
    assert {"modules.json", "1_Pooling/config.json"} <= set(hub.downloaded)
    assert not any(hub.files[name] == b"not wanted" for name in hub.downloaded)
    features = np.asarray(tiny.extract_features(tiny.encode("a dog"))[0])
    np.testing.assert_allclose(encoder.encode("a dog"), features.mean(axis=0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["model.fp16.safetensors", "weights.safetensors", "0_RoBERTa/model.safetensors"])
def test_the_only_weights_of_a_repository_are_downloaded_whatever_their_name_is(hub, tmp_path, name):
    expected = convert("hf:org/tiny", tmp_path / "expected", cache_dir=tmp_path / "cache")
    hub.files[name] = hub.files.pop("model.safetensors")
    if "/" in name:
        folder = name.split("/")[0]
        hub.files = {f"{folder}/{Path(file).name}": content for file, content in hub.files.items()}
        modules = [(folder, "RoBERTa"), ("1_Pooling", "Pooling")]
        hub.files["modules.json"] = json.dumps(
            [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in modules]
        ).encode()
        hub.files["1_Pooling/config.json"] = b"{}"
    hub.files["training_args.bin"] = b"not wanted"
    hub.downloaded.clear()
    directory = convert("hf:org/tiny", tmp_path / "converted", cache_dir=tmp_path / "fresh")
    assert name in hub.downloaded
    assert "training_args.bin" not in hub.downloaded
    assert (directory / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()


def test_a_variant_that_another_program_left_in_the_cache_does_not_hide_the_model(hub, tmp_path):
    import huggingface_hub

    hub.files["model.fp16.safetensors"] = b"not wanted"
    huggingface_hub.snapshot_download(
        "org/tiny", cache_dir=tmp_path / "cache" / "huggingface", allow_patterns=["*.fp16.*", "config.json"]
    )
    hub.files["pytorch_model.bin"] = hub.files.pop("model.safetensors")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin"):  # whose content it is not
        convert("hf:org/tiny", tmp_path / "converted", cache_dir=tmp_path / "cache")


def test_a_repository_with_several_files_that_may_be_the_model_is_refused(hub, tmp_path):
    weights = hub.files.pop("model.safetensors")
    hub.files |= {"first.safetensors": weights, "second.safetensors": weights}
    with pytest.raises(CheckpointError, match=r"hf:org/tiny has .*may be the model \(first.safetensors, second.saf"):
        convert("hf:org/tiny", tmp_path / "converted", cache_dir=tmp_path / "cache")


@pytest.fixture
def adapter(tiny) -> dict[str, bytes]:
    """The files of an adapter for org/tiny, which adds 0.5 to the weight of a query's first input to its first output."""
    first = np.eye(1, tiny.config.hidden_size, dtype=np.float32)
    name = "base_model.model.roberta.encoder.layer.0.attention.self.query.lora_"
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 0.5, "base_model_name_or_path": "org/tiny"}
    return {
        "adapter_config.json": json.dumps(settings).encode(),
        "adapter_model.safetensors": save({f"{name}A.weight": first, f"{name}B.weight": first.T.copy()}),
    }


def first_query(directory: Path) -> np.ndarray:
    return load_file(directory / "model.safetensors")["layers.0.attention.query.kernel"]


def test_an_adapter_on_disk_is_merged_into_the_model_on_the_hub_that_it_names(hub, adapter, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name, content in adapter.items():
        (folder / name).write_bytes(content)
    plain = first_query(convert("hf:org/tiny", tmp_path / "plain", cache_dir=tmp_path / "cache"))
    merged = first_query(convert(folder, tmp_path / "converted", cache_dir=tmp_path / "cache"))
    plain[0, 0] += 0.5
    np.testing.assert_array_equal(merged, plain)
    assert json.loads((tmp_path / "converted" / "conversion.json").read_text())["base_model"] == "hf:org/tiny"


def test_an_adapter_on_the_hub_is_merged_into_the_model_that_is_named(hub, adapter, tiny_directory, tmp_path):
    base = export(tiny_directory, tmp_path / "base", to="huggingface")
    plain = first_query(convert(base, tmp_path / "plain"))
    hub.files = {**adapter, "README.md": b"not wanted", "checkpoint-10/adapter_model.safetensors": b"not wanted"}
    directory = convert("hf:org/tiny", tmp_path / "converted", base_model=base, cache_dir=tmp_path / "cache")
    plain[0, 0] += 0.5
    np.testing.assert_array_equal(first_query(directory), plain)
    assert sorted(hub.downloaded) == sorted(adapter)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:org/other", "cannot fetch hf:org/other: .*404"),
        ("hf:org/tiny@v7", "cannot fetch hf:org/tiny@v7"),
        ("hf:", "cannot fetch hf:"),
        ("hf:a/b/c", "cannot fetch hf:a/b/c"),
    ],
)
def test_a_name_that_the_hub_does_not_have_is_one_line(hub, tmp_path, name, message):
    with pytest.raises(DownloadError, match=message) as error:
        convert(name, tmp_path / "converted", cache_dir=tmp_path / "cache")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "converted").exists()


def test_a_gated_model_and_one_without_weights_are_said_to_be_such(hub, tmp_path):
    del hub.files["model.safetensors"]
    with pytest.raises(
        DownloadError, match=r"hf:org/tiny has none of model.safetensors, pytorch_model.bin, flax_model.msgpack"
    ):
        convert("hf:org/tiny", tmp_path / "converted", cache_dir=tmp_path / "cache")
    hub.gated = True
    with pytest.raises(DownloadError, match="cannot fetch hf:org/tiny: .*403"):
        convert("hf:org/tiny", tmp_path / "converted", cache_dir=tmp_path / "fresh")


def test_a_hub_that_is_not_reached_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="cannot fetch hf:org/tiny") as error:
        convert("hf:org/tiny", tmp_path / "converted", cache_dir=tmp_path / "cache")
    assert "\n" not in str(error.value)


def test_downloads_go_to_the_cache_that_is_named_and_otherwise_to_the_hubs_own(hub, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "own"))
    roberta_flax.load("hf:org/tiny")
    assert list(Path(tmp_path / "own").glob("models--org--tiny/snapshots/*/config.json"))
    roberta_flax.load("hf:org/tiny", cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache" / "huggingface").glob("models--org--tiny/snapshots/*/config.json"))
