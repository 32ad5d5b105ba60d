"""Vision-language models: families, loading, samples to tensors, one forward, generation."""
