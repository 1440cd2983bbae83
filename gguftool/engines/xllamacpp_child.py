"""The program that loads a model in xllamacpp: MODEL TOKENS, where 0 tokens means to load it only.

It runs in a process of its own and imports nothing of gguftool. It reports success by "loaded" and "generated" on
standard output; llama.cpp's log goes to standard error, from a thread that needs a moment before the process ends.
"""

import os
import sys
import time
from typing import NoReturn

LOADED = "xllamacpp: loaded"
GENERATED = "xllamacpp: generated"
_MOMENT = 0.2  # seconds


def main(path: str, tokens: int) -> NoReturn:
    """Load `path`, generate, and end the process."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.warmup = False
    params.offline = True
    params.no_extra_bufts = True  # repacking would make a copy of the weights in memory
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_parallel = 64, 8, 8, 1
    params.n_gpu_layers = 0
    try:
        server = xllamacpp.Server(params)
        print(LOADED, flush=True)
        if tokens:
            answer = server.handle_completions({"prompt": "a", "max_tokens": tokens, "temperature": 0})
            if not isinstance(answer, dict) or "choices" not in answer:
                raise RuntimeError(f"error: {answer}")
            print(GENERATED, flush=True)
        os._exit(0)  # with the server alive: shutting down an idle one may take forever
    except Exception as error:
        time.sleep(_MOMENT)
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
