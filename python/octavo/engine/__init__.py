"""The engine in this process: `LLM` for whole jobs, `LLMEngine` for requests and steps."""
