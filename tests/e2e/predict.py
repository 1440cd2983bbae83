"""Load models in the real llama.cpp and print what each predicts after a prompt, one line of JSON a model.

Run as a program of its own, so that neither a crash of the engine nor its log ends or soils a test run:

    python tests/e2e/predict.py NUMBER_OF_TOKENS PROMPT MODEL[::mtp=[DRAFT]|::eagle3=DRAFT]...

A model with `::mtp=` behind it drafts with its own MTP layer, as `--spec-type draft-mtp` does, or that of DRAFT; with
`::eagle3=DRAFT` the model DRAFT drafts for it.
"""

import json
import sys
import time
from typing import Any

import xllamacpp

N_LOGPROBS = 400  # more than the tiny models have tokens: all are printed


def predict(spec: str, prompt: str, n_tokens: int) -> dict[str, Any]:
    """Continue `prompt` greedily; a model that does not load raises."""
    path, _, how = spec.partition("::")
    kind, _, draft = how.partition("=")
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = 128
    params.n_parallel = 1
    params.warmup = False
    params.cpuparams.n_threads = 1
    # As F16, and in flash attention, keys and values would turn differences of the last bit into some of 1e-4.
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if kind:
        kinds = xllamacpp.common_speculative_type
        mtp, eagle3 = kinds.COMMON_SPECULATIVE_TYPE_DRAFT_MTP, kinds.COMMON_SPECULATIVE_TYPE_DRAFT_EAGLE3
        params.speculative.types = [mtp if kind == "mtp" else eagle3]
        params.speculative.draft.mparams.path = draft
    request = {"prompt": prompt, "max_tokens": n_tokens, "temperature": 0, "seed": 1, "n_probs": N_LOGPROBS}
    answer = xllamacpp.Server(params).handle_completions({**request, "logprobs": N_LOGPROBS, "ignore_eos": True})
    steps = answer["choices"][0]["logprobs"]["content"]
    return {
        "text": answer["choices"][0]["text"],
        "tokens": [step["id"] for step in steps],
        "logprobs": [{top["id"]: top["logprob"] for top in step["top_logprobs"]} for step in steps],
        "drafted": answer["timings"].get("draft_n", 0),
        "accepted": answer["timings"].get("draft_n_accepted", 0),
    }


def main(n_tokens: str, prompt: str, *specs: str) -> None:
    for spec in specs:
        try:
            result = predict(spec, prompt, int(n_tokens))
        except RuntimeError as error:
            result = {"refused": str(error)}
            time.sleep(0.2)  # the log, which says why, has a thread of its own
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
