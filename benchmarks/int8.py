"""Show how close sentence vectors in int8 are to those in float32: python -m benchmarks.int8 MODEL SICK_FILE

MODEL is a trained sentence encoder in a Hugging Face directory with tokenizer.json. Texts are SICK's sentences; their
vectors are means over all tokens. Prints for bfloat16 and int8 the cosines with the vectors in float32, and the rank
correlation of the similarities of all pairs of texts with those in float32.

With --outlier N, one feature of each token is about N times the size of the others in every layer, as in many large
trained models: LayerNorm's parameters, and the rows of the kernels that read the feature, are changed so that the
other features are nearly those of the model. The last LayerNorm leaves it out.

"smoothed" is int8 with features smoothed by their largest values in the first 32 texts.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr
from tokenizers import Tokenizer

from benchmarks.measurement import print_record
from roberta_flax import Numerics, RobertaConfig, collate_tokens
from roberta_flax.checkpoint import converted
from roberta_flax.convert import convert
from roberta_flax.nn import forward
from roberta_flax.nn.quantize import quantize

Vectors = npt.NDArray[np.float64]
READERS = (("attention", "query"), ("attention", "key"), ("attention", "value"), ("feed_forward", "intermediate"))


def sick_sentences(path: Path, number: int) -> list[str]:
    pairs = (line.split("\t")[1:3] for line in path.read_text(encoding="utf-8").splitlines()[1:])
    return list(dict.fromkeys(sentence for pair in pairs for sentence in pair))[:number]


def with_outlier(params: Any, ratio: float, feature: int = 77) -> Any:
    """A network with one feature of `ratio` in the stream of every token, and otherwise nearly the same."""
    params = jax.tree.map(np.array, params)
    hidden = len(params["embeddings"]["layer_norm"]["bias"])
    # LayerNorm makes of a vector with one dominant feature sqrt(hidden) there, and divides the others by as much less
    restoring = ratio / np.sqrt(hidden)
    params["embeddings"]["layer_norm"]["bias"][feature] = ratio
    params["embeddings"]["layer_norm"]["scale"][feature] = 0
    for layer in params["layers"].values():
        for block, name in READERS:
            layer[block][name]["kernel"][feature] /= ratio
        for name in ("attention_layer_norm", "feed_forward_layer_norm"):
            layer[name]["scale"] *= restoring
            layer[name]["scale"][feature] = restoring
            layer[name]["bias"][feature] = 0
    params["layers"][str(len(params["layers"]) - 1)]["feed_forward_layer_norm"]["scale"][feature] = 0
    return jax.tree.map(jnp.asarray, params)


def vectors(params: Any, config: RobertaConfig, tokens: npt.NDArray[np.int32], dtype: str) -> Vectors:
    numerics = Numerics(dtype)
    return np.concatenate(
        [
            np.asarray(forward.pooled_features(params, rows, pooling="mean", config=config, numerics=numerics))
            for rows in np.split(tokens, len(tokens) // 32)
        ]
    ).astype(np.float64)


def compare(expected: Vectors, actual: Vectors, **record: Any) -> None:
    expected, actual = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (expected, actual))
    cosines = (expected * actual).sum(axis=1)
    pairs = np.triu_indices(len(expected), 1)
    correlation = spearmanr((expected @ expected.T)[pairs], (actual @ actual.T)[pairs]).statistic
    print_record(
        **record,
        cosine_mean=float(cosines.mean()),
        cosine_min=float(cosines.min()),
        rank_correlation=float(correlation),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="Hugging Face directory of a sentence encoder")
    parser.add_argument("sick", type=Path, help="SICK's file of pairs")
    parser.add_argument("--texts", type=int, default=256, help="number of sentences, a multiple of 32")
    parser.add_argument("--outlier", type=float, help="size of one feature relative to the others")
    options = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    tokenizer.no_padding()
    with tempfile.TemporaryDirectory(prefix="benchmark-int8-") as folder:
        config, params = converted.read(convert(options.model, Path(folder) / "model", with_tokenizer=False))
    encoded = tokenizer.encode_batch(sick_sentences(options.sick, options.texts))
    tokens = collate_tokens([each.ids for each in encoded], config.pad_id, max_positions=config.max_positions)
    if options.outlier:
        params = with_outlier(params, options.outlier)
    expected = vectors(params, config, tokens, "float32")
    compare(expected, vectors(params, config, tokens, "bfloat16"), dtype="bfloat16", outlier=options.outlier)
    largest = forward.largest_inputs(params, tokens[:32], config=config)
    for name, int8 in (("int8", quantize(params)), ("int8, smoothed", quantize(params, largest_inputs=largest))):
        compare(expected, vectors(int8, config, tokens, "bfloat16"), dtype=name, outlier=options.outlier)


if __name__ == "__main__":
    main()
