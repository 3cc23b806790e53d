"""Text in and out: tokenizers, incremental detokenization, chat templates. Imports no torch."""
