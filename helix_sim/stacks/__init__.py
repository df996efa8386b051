"""What TensorRT-LLM, vLLM and SGLang accept: rules over columns of layouts, each with a sentence and a source."""
