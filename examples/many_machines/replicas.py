"""
Ray Serve LLM with two replicas of a combination, one of which is killed under load: is every request answered, and rightly?

    python examples/many_machines/replicas.py run ORACLE      # where Ray, vLLM and vllm-eft are: writes replicas.json
    python examples/many_machines/replicas.py picture         # where hf_eft[report] is: draws replicas.png out of it

ORACLE is the folder that `vllm_eft/tests/oracle.py` writes: the embedded family, prompts, and hf_eft's answers to them. Clients send one
prompt after the other at mixed strengths, and send again what fails. CPUs will do.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LOG, PICTURE = HERE / "replicas.json", HERE / "replicas.png"
CLIENTS, BEFORE, AFTER, LONGEST = 8, 20.0, 20.0, 420.0  # seconds
_DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
AGAIN = 0.5  # seconds before a request is sent again
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}  # fmt: skip


def deploy(folder: Path) -> str:
    """Start two replicas; returns where they are reached."""
    os.environ.setdefault("RAY_worker_niceness", "0")  # on a machine that does other things, workers at 15 hardly get to run
    import ray
    from ray import serve
    from ray.serve.llm import LLMConfig, build_openai_app

    ray.init(
        num_cpus=8,
        object_store_memory=200 << 20,
        include_dashboard=False,
        runtime_env={"env_vars": {**ENVIRONMENT, **_paths()}},
    )
    config = LLMConfig(
        model_loading_config={"model_id": "eft", "model_source": str(folder)},
        engine_kwargs={
            "dtype": "float32", "enforce_eager": True, "max_model_len": 512, "block_size": 32, "max_num_seqs": 16,
            "max_num_batched_tokens": 64, "kv_cache_memory_bytes": 64 << 20,
        },
        deployment_config={"num_replicas": 2, "health_check_period_s": 2, "health_check_timeout_s": 60, "max_ongoing_requests": 64},
        placement_group_config={"bundles": [{"CPU": 1}]},
        accelerator_config={"kind": "cpu"},
    )  # fmt: skip
    serve.run(build_openai_app({"llm_configs": [config]}), blocking=False)
    return "http://127.0.0.1:8000/v1/completions"


def _paths() -> dict[str, str]:
    return {name: os.environ[name] for name in ("PYTHONPATH", "VLLM_CACHE_ROOT") if name in os.environ}


def replicas() -> dict[int, Any]:
    """The processes of the replicas, by id."""
    import psutil

    found = {}
    for process in psutil.process_iter(["cmdline"]):
        said = " ".join(process.info["cmdline"] or ())
        if said.startswith(("ray::ServeReplica", "ray::SERVE_REPLICA")) and "LLMServer" in said:
            found[process.pid] = process
    return found


def running() -> int:
    """How many replicas answer, by Ray's own word."""
    from ray import serve

    applications = serve.status().applications.values()
    states = [
        deployment.replica_states for app in applications for name, deployment in app.deployments.items() if "LLMServer" in name
    ]
    return sum(int(state.get("RUNNING", 0)) for state in states)


def ask(url: str, request: dict[str, Any]) -> tuple[bool, str]:
    """Whether an answer came, and whether it is hf_eft's: `right`, `wrong`, or what went wrong on the way."""
    body = {
        "model": "eft", "prompt": request["prompt"], "max_tokens": 24, "temperature": 0, "return_token_ids": True,
        "vllm_xargs": request["extra"],
    }  # fmt: skip
    asked = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with _DIRECTLY.open(asked, timeout=60) as answer:
            [choice] = json.loads(answer.read())["choices"]
    except urllib.error.HTTPError as error:
        return False, f"{error.code} {error.read()[:200].decode(errors='replace')}"
    except (OSError, ValueError, LookupError) as error:
        return False, f"{type(error).__name__}: {error}"
    return True, "right" if choice["token_ids"] == request["new"] else "wrong"


def run(oracle: Path) -> dict[str, Any]:
    """Everything that happened, in seconds since the load began."""
    cases = [each for each in json.loads((oracle / "oracle.json").read_text())["tiny"]["requests"] if each["kind"] == "short"]
    url = deploy(oracle / "tiny")
    told: list[dict[str, Any]] = []
    counted: list[tuple[float, int]] = []
    over = threading.Event()
    begin = time.monotonic()

    def client(number: int) -> None:
        turn = number
        while not over.is_set():
            request, tries, first = cases[turn % len(cases)], [], time.monotonic() - begin
            while True:
                came, what = ask(url, request)
                tries.append({"at": round(time.monotonic() - begin, 2), "what": what[:160]})
                if came:
                    break
                time.sleep(AGAIN)
            told.append({"client": number, "sent": round(first, 2), "alpha": request["extra"]["alpha"], "tries": tries})
            turn += CLIENTS

    clients = [threading.Thread(target=client, args=[number]) for number in range(CLIENTS)]
    for thread in clients:
        thread.start()
    time.sleep(BEFORE)
    before = replicas()
    killed, process = next(iter(before.items()))
    process.kill()
    died = time.monotonic() - begin
    back = None
    while time.monotonic() - begin < LONGEST:
        now = time.monotonic() - begin
        counted.append((round(now, 2), running()))
        if back is None and counted[-1][1] == 2 and killed not in replicas() and set(replicas()) - set(before):
            back = now
        if back is not None and now > back + AFTER:
            break
        time.sleep(1)
    over.set()
    for thread in clients:
        thread.join()
    import ray
    import vllm

    return {
        "died": died, "back": back, "replicas": counted, "requests": sorted(told, key=lambda each: each["sent"]),
        "versions": {"ray": ray.__version__, "vllm": vllm.__version__}, "clients": CLIENTS,
    }  # fmt: skip


def summary(log: dict[str, Any]) -> str:
    """In one paragraph."""
    requests = log["requests"]
    last = [each["tries"][-1]["what"] for each in requests]
    failed = [each["what"] for request in requests for each in request["tries"][:-1]]
    again = sum(len(request["tries"]) > 1 for request in requests)
    back = "not replaced" if log["back"] is None else f"replaced after {log['back'] - log['died']:.0f} s"
    return (
        f"{len(requests)} requests: {last.count('right')} right, {last.count('wrong')} wrong, none lost; {again} sent again "
        f"({len(failed)} errors: {sorted({each[:60] for each in failed})}); the replica killed at {log['died']:.0f} s was {back}."
    )


def picture(log: dict[str, Any]) -> None:
    """Answers a second, errors, and replicas over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    answers, count = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    ends = [each["tries"][-1]["at"] for each in log["requests"]]
    errors = [each["at"] for request in log["requests"] for each in request["tries"][:-1]]
    edges = list(range(int(max(ends)) + 2))
    answers.hist(ends, bins=edges, histtype="stepfilled", alpha=0.4, label="right answers in each second")
    answers.plot(errors, [0] * len(errors), "x", color="tab:red", label="errors, sent again", clip_on=False)
    for name, at in (("one replica killed", log["died"]), ("replaced", log["back"])):
        if at is not None:
            for axes in (answers, count):
                axes.axvline(at, color="black", linestyle=":")
            answers.annotate(name, (at, answers.get_ylim()[1]), xytext=(3, -12), textcoords="offset points")
    answers.legend(loc="lower right")
    count.step(*zip(*log["replicas"], strict=True), where="post")
    count.set(xlabel="seconds since the load began", ylabel="replicas", ylim=(0, 2.5), yticks=(0, 1, 2))
    figure.savefig(PICTURE, dpi=120)


def main() -> None:
    if sys.argv[1:2] == ["run"] and len(sys.argv) == 3:
        log = run(Path(sys.argv[2]))
        LOG.write_text(json.dumps(log))
        print(summary(log))
    elif sys.argv[1:] == ["picture"]:
        log = json.loads(LOG.read_text())
        picture(log)
        print(summary(log))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
