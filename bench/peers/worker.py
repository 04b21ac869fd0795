"""A peer's side of run.py: one case and method in one process, spoken to in lines (see gradgram_worker.cpp).

    worker.py CASE METHOD INPUTS.npy WEIGHTS.npz|- THREADS BATCH
"""

import json
import resource
import sys
import time

import numpy as np


def say(**what):
    what["peak_kilobytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps(what), flush=True)


def main():
    from cases import CASES

    name, method, inputs, weights, threads, batch = sys.argv[1:]
    case = CASES[name]
    if method.startswith("nt-"):
        import peer_neural_tangents as peer
    else:
        import peer_torch as peer
    x = np.load(inputs)
    run = peer.prepare(method, case, x, None if weights == "-" else np.load(weights), int(threads), int(batch))
    say(ready=True)
    result = None
    for line in sys.stdin:
        verb, _, what = line.strip().partition(" ")
        if verb == "quit":
            break
        if verb == "save":
            np.save(what, result)
            say(saved=True)
            continue
        result = None
        begin = time.perf_counter()
        result = run(int(what))
        say(seconds=time.perf_counter() - begin)


main()
