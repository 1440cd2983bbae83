"""Load a model in the real llama.cpp and print the text that it continues a prompt with, as JSON.

Run as a program of its own, so that neither a crash of the engine nor its log ends or soils a test run:

    python tests/e2e/greedy.py MODEL PROMPT NUMBER_OF_TOKENS
"""

import json
import sys

import xllamacpp


def greedy(path: str, prompt: str, n_tokens: int) -> str:
    """Return `n_tokens` tokens after `prompt`, always the likeliest one; a model that does not load raises."""
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = 128
    params.n_parallel = 1
    params.warmup = False
    params.cpuparams.n_threads = 2
    request = {"prompt": prompt, "max_tokens": n_tokens, "temperature": 0, "seed": 1}
    answer = xllamacpp.Server(params).handle_completions(request)
    return answer["choices"][0]["text"]


if __name__ == "__main__":
    print(json.dumps(greedy(sys.argv[1], sys.argv[2], int(sys.argv[3]))), flush=True)
