"""What tests and benchmarks both need: the libraries that roberta-flax is compared with, and models for them.

`fairseq` builds fairseq's models with random weights, writes them as its trainer does, and loads them as its users do;
`transformers` says a configuration in transformers' words; `tpu` compiles programs for TPUs, on machines without one.
Importing a module imports its library. Nothing here knows of tests or benchmarks, and the wheel has none of it.
"""
