"""A chat server for one model, where vLLM or SGLang cannot run."""
