#!/usr/bin/env python3
"""The same kernels by gradgram and by its peers, in one go: same weights, inputs and processors, interleaved.

    bench/peers/run.py --build build            (README.md beside this file tells the rest)
"""

import argparse
import dataclasses
import json
import os
import platform
import select
import statistics
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# How well two programs must agree in f64, in sqrt(k_ii k_jj).
F64_TOLERANCE = 1e-11


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--build", type=Path, default=ROOT / "build", help="folder built with -Dbuildtype=release -Dbenchmarks=true")
    add("--venv", type=Path, help="virtual environment of the peers, made if absent [BUILD/peers-venv]")
    add("--out", type=Path, help="folder for peers.md, peers.json and the logs [BUILD/peers]")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="mode", action="store_const", const="quick", help="fewer examples, minutes")
    size.add_argument("--smoke", dest="mode", action="store_const", const="smoke", help="a few examples, proves agreement")
    parser.set_defaults(mode="full")
    add("--cases", default="", help="comma-separated, of: " + " ".join(cases().CASES))
    add("--methods", default="", help="comma-separated, of: " + " ".join(cases().METHOD_NAMES))
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="processors for everybody [all]")
    add("--repeat", type=int, default=3, help="timed runs of each, fewer when they are long [3]")
    add("--time-limit", type=float, default=30, help="seconds a peer may take for one run [30]")
    add("--budget", type=float, default=8, help="seconds of timed runs of one peer on one case [8]")
    add("--minutes", type=float, default=0, help="begin no further comparison after this [no end]")
    add("--memory-limit", type=float, default=0.6, help="share of the machine's memory that a peer may hold [0.6]")
    add("--tolerance", type=float, default=1e-3, help="largest difference of an entry, in sqrt(k_ii k_jj) [1e-3]")
    add("--median-tolerance", type=float, default=2e-4, help="the same for the median entry [2e-4]")
    add("--tune", action="store_true", help="try the batches of cases.py at the --quick sizes and print seconds")
    return parser.parse_args()


def cases():
    sys.path.insert(0, str(HERE))
    import cases as module

    return module


def enter_environment(folder):
    """Makes the virtual environment when there is none, and goes on inside it."""
    python = folder / "bin" / "python"
    if Path(sys.prefix).resolve() == folder.resolve():
        return
    marker = folder / "complete"
    wanted = (HERE / "requirements.txt").read_text() + (HERE / "requirements-alone.txt").read_text()
    if not marker.exists() or marker.read_text() != wanted:
        print(f"Installing the peers into {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", str(HERE / "requirements.txt")], check=True)
        subprocess.run([*pip, "--no-deps", "-r", str(HERE / "requirements-alone.txt")], check=True)
        marker.write_text(wanted)
    os.execv(str(python), [str(python), *sys.argv])


class Ended(Exception):
    """A peer that did not finish; the text says why."""


class Worker:
    """A process that answers each line with one line of JSON."""

    def __init__(self, command, threads, log, memory_limit=None):
        processors = sorted(os.sched_getaffinity(0))[:threads]
        self.log = log
        self.memory_limit = memory_limit
        self.peak = 0
        environment = dict(os.environ, OMP_NUM_THREADS=str(threads), JAX_PLATFORMS="cpu", CUDA_VISIBLE_DEVICES="")
        self.process = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=open(log, "wb"),
            env=environment, preexec_fn=lambda: os.sched_setaffinity(0, processors))

    def answer(self, limit):
        begin = time.monotonic()
        while not select.select([self.process.stdout], [], [], 0.05)[0]:
            if time.monotonic() - begin > limit:
                self.stop()
                raise Ended(f"over {limit:.0f} s")
            if self.memory_limit and self.resident() > self.memory_limit:
                self.peak = self.resident()
                self.stop()
                raise Ended(f"over {self.memory_limit / 2**30:.1f} GiB")
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            text = Path(self.log).read_text(errors="replace").strip().splitlines()
            memory = any(word in "".join(text[-5:]) for word in ("RESOURCE_EXHAUSTED", "allocate", "MemoryError"))
            raise Ended("out of memory" if memory else "failed: " + (text[-1][:200] if text else "no message"))
        answer = json.loads(line)
        self.peak = max(self.peak, answer.get("peak_kilobytes", 0) * 1024)
        return answer

    def resident(self):
        try:
            return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):
            return 0

    def ask(self, text, limit):
        self.process.stdin.write((text + "\n").encode())
        self.process.stdin.flush()
        return self.answer(limit)

    def run(self, n, limit=600):
        return self.ask(f"run {n}", limit)["seconds"]

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def spread(times):
    return {"median": statistics.median(times), "low": min(times), "high": max(times), "runs": len(times)}


def differences(ours, theirs, job):
    """Of each entry in sqrt(k_ii k_jj)."""
    import numpy as np

    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    if ours.shape != theirs.shape:
        raise SystemExit(f"shapes differ: gradgram {ours.shape}, peer {theirs.shape}")
    scale = ours if job == "diagonal" else np.sqrt(np.outer(ours.diagonal(), ours.diagonal()))
    return np.abs(theirs - ours) / scale


def largest(error):
    """NaN counts as a difference without end."""
    import numpy as np

    return float(np.nan_to_num(error, nan=np.inf).max(initial=0))


def culprits(error, tolerance):
    """The examples without which no entry differs by more: greedily, those of most such entries first."""
    import numpy as np

    bad = ~(error <= tolerance)
    if error.ndim == 1:
        return [int(i) for i in np.flatnonzero(bad)]
    found = []
    while bad.any():
        worst = int(bad.sum(1).argmax())
        found.append(worst)
        bad[worst, :] = bad[:, worst] = False
    return found


class Comparison:
    def __init__(self, options):
        self.options = options
        self.begin = time.monotonic()
        self.memory_limit = options.memory_limit * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self.work = options.out / "work"
        self.work.mkdir(parents=True, exist_ok=True)
        self.disagreements = []
        self.proofs = {}

    def prepare(self, name, case, n):
        """Inputs and weights as files, for everybody."""
        import numpy as np

        inputs = self.work / f"{name}-x.npy"
        np.save(inputs, np.random.default_rng(1).standard_normal((n, *case.shape), dtype=np.float32))
        weights = "-"
        if case.job != "infinite":
            weights = self.work / f"{name}-w.npz"
            shape = "x".join(map(str, case.shape))
            self.program("init", "--model", case.model, "--input", shape, "--outputs", case.outputs, "--seed", 1, "--out", weights)
        return inputs, weights

    def program(self, *words):
        """The program gradgram itself; seconds of the wall clock and peak bytes."""
        command = [str(self.options.build / "cli" / "gradgram"), *map(str, words), "--quiet"]
        processors = sorted(os.sched_getaffinity(0))[: self.options.threads]
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=lambda: os.sched_setaffinity(0, processors))
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
        return time.perf_counter() - begin, usage.ru_maxrss * 1024

    def gradgram_worker(self, case, inputs, weights, name):
        program = self.options.build / "bench" / "peers_gradgram_worker"
        worker = Worker([program, case.model, inputs, weights, case.outputs, case.job, self.options.threads],
                        self.options.threads, self.work / f"{name}-gradgram.log")
        worker.answer(120)
        return worker

    def peer_worker(self, name, method, inputs, weights, batch):
        worker = Worker([sys.executable, HERE / "worker.py", name, method, inputs, weights, self.options.threads, batch],
                        self.options.threads, self.work / f"{name}-{method}.log", self.memory_limit)
        worker.answer(120)
        return worker

    def reference(self, name, case, inputs, weights):
        import numpy as np

        out = self.work / f"{name}-gradgram.npy"
        words = ["kernel", "--model", case.model, "--data", inputs, "--threads", self.options.threads, "--out", out]
        if case.job == "infinite":
            words += ["--infinite"]
        else:
            words += ["--weights", weights, "--outputs", case.outputs, "--reduce", "trace-mean", "--restart"]
        if case.job == "diagonal":
            words = [word for word in words if word != "--restart"] + ["--diagonal"]
        seconds, peak = self.program(*words)
        return np.load(out), seconds, peak

    def agreement(self, name, method, worker, kernel, n, job):
        import numpy as np

        file = self.work / f"{name}-{method}.npy"
        worker.ask(f"save {file}", 600)
        part = kernel[:n] if job == "diagonal" else kernel[:n, :n]
        error = differences(part, np.load(file), job)
        file.unlink()
        # neural-tangents' f32 loses digits where x = x' at infinite width: those entries are held by the largest alone.
        typical = error[~np.eye(n, dtype=bool)] if job == "infinite" else error
        median = float(np.median(typical))
        edges = culprits(error, self.options.tolerance)
        kept = np.delete(error, edges, 0)
        if kept.ndim == 2:
            kept = np.delete(kept, edges, 1)
        found = {"largest": largest(error), "median": median, "edges": len(edges), "largest_without_edges": largest(kept)}
        # A few examples may sit on the edge of a ReLU or max pool; that they do is proven, not assumed.
        good = median <= self.options.median_tolerance and len(edges) <= max(1, n // 100)
        if good and edges:
            found["in_f64"] = self.difference_in_f64(name, edges)
            good = found["in_f64"] <= F64_TOLERANCE
        found["agrees"] = good
        if not good:
            self.disagreements.append(f"{name}, {method}: {found}")
        told = f"largest difference {found['largest']:.1e}"
        if "in_f64" in found:
            told += (f" ({found['largest_without_edges']:.1e} but for examples {', '.join(map(str, edges))}, which PyTorch and gradgram "
                     f"compute alike in f64, to {found['in_f64']:.1e})")
        print(f"  {method}: n={n}, {told}, median {median:.1e} sqrt(k_ii k_jj): {'agrees' if good else 'DISAGREES'}", file=sys.stderr)
        return found

    def difference_in_f64(self, name, examples):
        """Between PyTorch and gradgram, both in f64, on these examples and a few others."""
        import numpy as np

        import peer_torch

        key = (name, *sorted(examples))
        if key not in self.proofs:
            case = self.current
            inputs, weights = self.work / f"{name}-x.npy", self.work / f"{name}-w.npz"
            every = np.load(inputs)
            others = [i for i in range(min(len(every), 4 + len(examples))) if i not in examples][:4]
            chosen = every[sorted([*examples, *others])]
            few, out = self.work / f"{name}-few.npy", self.work / f"{name}-few-kernel.npy"
            np.save(few, chosen)
            self.program("kernel", "--model", case.model, "--data", few, "--weights", weights, "--outputs", case.outputs,
                         "--reduce", "trace-mean", "--dtype", "f64", "--restart", "--out", out)
            theirs = peer_torch.kernel_in_f64(case, chosen, np.load(weights))
            self.proofs[key] = largest(differences(np.load(out), theirs, "kernel"))
        return self.proofs[key]

    def case(self, name):
        options = self.options
        case = cases().CASES[name]
        n = case.n[options.mode]
        print(f"{name} (n={n})", file=sys.stderr)
        if options.mode == "smoke":
            case = dataclasses.replace(case, model=case.smoke_model)
        self.current = case
        inputs, weights = self.prepare(name, case, n)
        kernel, command_seconds, command_peak = self.reference(name, case, inputs, weights)
        ours = self.gradgram_worker(case, inputs, weights, name)
        ours.run(n)
        result = {"title": case.title, "n": n, "outputs": case.outputs, "peers": {}}
        if n != case.n["full"]:
            result["title"] += f" (here n = {n:,})"
        self.agreement(name, "gradgram-library", ours, kernel, n, case.job)
        all_ours = []
        for method, batch in case.methods.items():
            if options.methods and method not in options.methods.split(","):
                continue
            peer = {"batch": batch}
            result["peers"][method] = peer
            worker = None
            try:
                if options.minutes and time.monotonic() - self.begin > 60 * options.minutes:
                    raise Ended("not run")
                worker = self.peer_worker(name, method, inputs, weights, batch)
                self.measure(name, case, method, peer, worker, ours, all_ours, kernel, n)
            except Ended as ended:
                peer["ended"] = str(ended)
                print(f"  {method}: {ended}", file=sys.stderr)
            if worker:
                peer["peak_bytes"] = worker.peak
                worker.stop()
        while len(all_ours) < min(options.repeat, 3):
            all_ours.append(ours.run(n))
        result["gradgram"] = dict(spread(all_ours), peak_bytes=ours.peak, command_seconds=command_seconds,
                                  command_peak_bytes=command_peak)
        ours.stop()
        for file in self.work.glob(f"{name}-*.np*"):
            file.unlink()
        return result

    def measure(self, name, case, method, peer, worker, ours, all_ours, kernel, n):
        options = self.options
        # A small run first: it compiles what is compiled for a batch, and tells whether the whole can be done in time.
        small = min(n, max(2 * peer["batch"] or n // 64, 2))
        worker.run(small, 2 * options.time_limit)
        peer["small"] = {"n": small, "seconds": worker.run(small, options.time_limit), "gradgram_seconds": ours.run(small)}
        if small < n:
            peer["agreement"] = self.agreement(name, method, worker, kernel, small, case.job)
            # No method grows more slowly than the examples.
            if peer["small"]["seconds"] * n / small > 1.5 * options.time_limit:
                raise Ended(f"over {options.time_limit:.0f} s, going by n = {small}")
        first = worker.run(n, options.time_limit) if small < n else peer["small"]["seconds"]
        times, beside = [], []
        if first > options.budget:
            compiled_in_it = peer["batch"] == 0 and method.startswith("nt-")
            times, beside = [worker.run(n, options.time_limit) if compiled_in_it else first], [ours.run(n)]
        else:
            for _ in range(max(2, min(options.repeat, int(options.budget / max(first, 1e-9))))):
                beside.append(ours.run(n))
                times.append(worker.run(n, options.time_limit))
        all_ours += beside
        peer["seconds"] = spread(times)
        peer["ratio"] = statistics.median(times) / statistics.median(beside)
        peer["agreement"] = self.agreement(name, method, worker, kernel, n, case.job)

    def tune(self, name):
        case = cases().CASES[name]
        n = case.n["quick"]
        inputs, weights = self.prepare(name, case, n)
        for method in case.methods:
            if self.options.methods and method not in self.options.methods.split(","):
                continue
            for batch in cases().TUNING[case.job]:
                if batch > n:
                    continue
                try:
                    worker = self.peer_worker(name, method, inputs, weights, batch)
                    try:
                        small = min(n, max(2 * batch, 4))
                        worker.run(small, self.options.time_limit)
                        if batch == 0:
                            worker.run(n, self.options.time_limit)
                        seconds = min(worker.run(n, self.options.time_limit) for _ in range(2))
                        print(f"{name} {method} n={n} batch={batch}: {seconds:.3f} s, {worker.peak / 2**30:.2f} GiB", flush=True)
                    finally:
                        worker.stop()
                except Ended as ended:
                    print(f"{name} {method} n={n} batch={batch}: {ended}", flush=True)


def seconds_text(what):
    def number(x):
        return f"{x:.3g}" if x < 100 else f"{x:.0f}"

    if what["runs"] == 1:
        return number(what["median"])
    return f"{number(what['median'])} ({number(what['low'])} to {number(what['high'])})"


def gigabytes(size):
    return f"{size / 1e9:.2f}"


def ratio_text(ratio):
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"


def difference_text(found):
    if not found["edges"]:
        return f"{found['largest']:.0e}"
    return f"{found['largest_without_edges']:.0e}, but for {found['edges']} on an edge {found['largest']:.0e}"


def markdown(document):
    names = cases().METHOD_NAMES
    lines = [f"Measured on {document['processor']}, {document['threads']} threads, f32; medians (and ranges) of interleaved runs; "
             + ", ".join(f"{k} {v}" for k, v in document["versions"].items()) + ".", "",
             "| case | program | seconds | times gradgram | peak memory, GB | largest difference |", "|---|---|---|---|---|---|"]
    for result in document["cases"].values():
        ours = result["gradgram"]
        lines.append(f"| {result['title']} | **gradgram** | **{seconds_text(ours)}** | 1 | {gigabytes(ours['peak_bytes'])} | |")
        for method, peer in result["peers"].items():
            differs = peer.get("agreement")
            differs = difference_text(differs) if differs else ""
            if "seconds" in peer:
                seconds, ratio = seconds_text(peer["seconds"]), ratio_text(peer["ratio"])
            else:
                seconds, ratio = peer["ended"], ""
                small = peer.get("small")
                if small:
                    ratio = f"{ratio_text(small['seconds'] / small['gradgram_seconds'])} at n = {small['n']:,}"
            memory = gigabytes(peer["peak_bytes"]) if peer.get("peak_bytes") else ""
            lines.append(f"| | {names[method]} | {seconds} | {ratio} | {memory} | {differs} |")
    return "\n".join(lines) + "\n"


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def main():
    options = arguments()
    options.build = options.build.resolve()
    options.venv = options.venv or options.build / "peers-venv"
    options.out = options.out or options.build / "peers"
    for program in ("cli/gradgram", "bench/peers_gradgram_worker"):
        if not (options.build / program).exists():
            raise SystemExit(f"{options.build / program} is missing: meson setup {options.build} -Dbuildtype=release "
                             "-Dbenchmarks=true, then ninja")
    chosen = options.cases.split(",") if options.cases else list(cases().CASES)
    for unknown in set(chosen) - set(cases().CASES):
        raise SystemExit(f"--cases: '{unknown}' is unknown; expected some of {', '.join(cases().CASES)}")
    for unknown in set(filter(None, options.methods.split(","))) - set(cases().METHOD_NAMES):
        raise SystemExit(f"--methods: '{unknown}' is unknown; expected some of {', '.join(cases().METHOD_NAMES)}")
    enter_environment(options.venv)
    begin = time.monotonic()
    comparison = Comparison(options)
    if options.tune:
        for name in chosen:
            comparison.tune(name)
        return
    document = {
        "processor": processor(), "threads": options.threads, "mode": options.mode,
        "time_limit_seconds": options.time_limit, "memory_limit_bytes": int(comparison.memory_limit),
        "tolerance": {"largest": options.tolerance, "median": options.median_tolerance},
        "versions": {p: metadata.version(p) for p in ("neural-tangents", "jax", "torch", "nngeometry")},
        "load_before": os.getloadavg()[0], "cases": {},
    }
    for name in chosen:
        document["cases"][name] = comparison.case(name)
        document["seconds"] = time.monotonic() - begin
        (options.out / "peers.json").write_text(json.dumps(document, indent=2) + "\n")
        (options.out / "peers.md").write_text(markdown(document))
    print(markdown(document))
    print(f"{document['seconds']:.0f} s; wrote peers.md and peers.json in {options.out}")
    if comparison.disagreements:
        raise SystemExit("kernels disagree:\n" + "\n".join(comparison.disagreements))


if __name__ == "__main__":
    main()
