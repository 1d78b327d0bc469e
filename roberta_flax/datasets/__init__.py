"""Labeled files: rows of tables, the layouts of GLUE and its kin, examples that a model is trained on."""
