"""Export trained models in formats that other programs load: Transformers, vLLM, SGLang and llama.cpp."""
