"""Models as GGUF files, run by llama.cpp's server in a process of its own."""
