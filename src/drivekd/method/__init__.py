"""The paper as pure functions: no model family, no configuration, no file."""
