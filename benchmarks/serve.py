"""Measure the server: throughput and latency, malformed uploads, clients that are killed, and memory over time.

Usage: python benchmarks/serve.py [RUN] [--clients 1 8 32] [--tokens 48] [--malformed 500] [--soak MINUTES]

Without RUN it serves the laboratory's encoder and LLM with an untrained projector. Its answers mean nothing, and no
token ends them, so that every request decodes the same number of tokens. The server is a process of its own; requests
are chat completions about 3 s of sound. "One at a time" calls `SpeechLLM.generate` in a loop, without a server. Each
row is measured in rounds, with that loop before and after each. The ratios are medians over the rounds, because other
work on the machine comes and goes. On such a machine, compare the CPU seconds per request too.

The exit status is 1 if a requirement is missed: 3 times the throughput of one at a time with 8 clients, every malformed
upload refused with 4xx, the place of a killed client free again, and less than 5 % growth of memory in the soak.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import multiprocessing
import os
import signal
import statistics
import struct
import sys
import time
import warnings
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import psutil
import soundfile
import torch
from rich.console import Console
from rich.table import Table

RATE_HZ, CLIP_S = 16_000, 3.0
PROJECTOR = {
    "width": 256,
    "heads": 8,
    "layers": 2,
    "ffn": 768,
    "queries": 2,
    "window_s": 0.32,
    "window_positions": True,
}
"""Sizes of the projector in the laboratory's recipes."""
QUESTION = "Transcribe the speech."
LEAST_SPEEDUP, SPEEDUP_CLIENTS, MOST_GROWTH = 3.0, 8, 0.05
ROUNDS = 4
"""Parts in which the requests of a row are sent."""
WARM_UP = 0.2
"""Share of the soak after which growth is counted: the allocator keeps what the largest batches needed."""


def make_model(run: str | None) -> Any:
    from ossicle.models.projectors import QFormerConfig
    from ossicle.models.speech_llm import ModelConfig, SpeechLLM

    if run is not None:
        return SpeechLLM.from_pretrained(run)
    model = ModelConfig(projector=QFormerConfig(**PROJECTOR)).build().eval()
    model.llm.stop_ids = []  # no token ends an answer
    return model


def serve(run: str | None, threads: int, port: Any) -> None:
    """Run the server in this process and put its port into the queue ``port``."""
    import uvicorn

    from ossicle.serve.app import create_app
    from ossicle.serve.engine import Engine
    from ossicle.serve.settings import ServeSettings

    torch.set_num_threads(threads)
    settings = ServeSettings(max_rows=32, max_queue=256)
    app = create_app(Engine(make_model(run), settings), settings)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))

    async def announced() -> None:
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.05)
        port.put(server.servers[0].sockets[0].getsockname()[1])
        await serving

    asyncio.run(announced())


def clip(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    time_s = np.arange(int(CLIP_S * RATE_HZ)) / RATE_HZ
    return (0.3 * np.sin(2 * np.pi * rng.uniform(100, 800) * time_s) * (time_s % 0.4 < 0.3)).astype(np.float32)


def wav(samples: np.ndarray, rate_hz: int = RATE_HZ, kind: str = "WAV", subtype: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format=kind, subtype=subtype)
    return file.getvalue()


def request(seed: int, tokens: int, *, stream: bool = False) -> dict[str, Any]:
    audio = {"data": base64.b64encode(wav(clip(seed))).decode(), "format": "wav"}
    parts = [{"type": "input_audio", "input_audio": audio}, {"type": "text", "text": QUESTION}]
    return {"messages": [{"role": "user", "content": parts}], "max_tokens": tokens, "stream": stream}


def one_at_a_time(model: Any, tokens: int, count: int) -> tuple[float, float]:
    """Return requests per second, and CPU seconds per request, of ``count`` calls of `generate` after a first one."""
    waveforms = [soundfile.read(io.BytesIO(wav(clip(seed))), dtype="float32")[0] for seed in range(count)]
    warnings.simplefilter("ignore")  # every answer is cut
    model.generate(waveforms[0], QUESTION, max_new_tokens=tokens)
    started_s, used_s = time.perf_counter(), time.process_time()
    for waveform in waveforms:
        model.generate(waveform, QUESTION, max_new_tokens=tokens)
    return count / (time.perf_counter() - started_s), (time.process_time() - used_s) / count


async def load(url: str, clients: int, count: int, tokens: int) -> tuple[float, list[float]]:
    """Send ``count`` requests from ``clients`` at a time; return requests per second and the latencies in seconds.

    The requests are written before the time is measured, as the recordings of `one_at_a_time` are.
    """
    left, latencies = iter([json.dumps(request(seed, tokens)) for seed in range(count)]), []
    async with httpx.AsyncClient(timeout=600, headers={"Content-Type": "application/json"}) as client:

        async def ask() -> None:
            for body in left:
                started_s = time.perf_counter()
                answer = await client.post(f"{url}/v1/chat/completions", content=body)
                answer.raise_for_status()
                latencies.append(time.perf_counter() - started_s)

        started_s = time.perf_counter()
        await asyncio.gather(*(ask() for _ in range(clients)))
        return count / (time.perf_counter() - started_s), sorted(latencies)


def malformed(kind: int, rng: np.random.Generator) -> bytes:
    """Return an upload of one of ten kinds, none of which is a complete recording of finite samples."""
    good = wav(clip(0))
    match kind % 10:
        case 0:
            return b""
        case 1:
            return good[: int(rng.integers(1, len(good) - 4000))]
        case 2:
            return rng.bytes(int(rng.integers(1, 20_000)))
        case 3:
            return b"\x89PNG\r\n\x1a\n" + rng.bytes(2000)
        case 4:  # a header that promises 2 GB
            return (
                good[:4] + struct.pack("<I", 2**32 - 1) + good[8:40] + struct.pack("<I", 2**31 - 2**20) + good[44:2000]
            )
        case 5:
            return wav(np.full(RATE_HZ, [np.nan, np.inf, 1e30][int(rng.integers(3))], np.float32), subtype="FLOAT")
        case 6:  # more than an hour of silence in 20 kB
            return wav(np.zeros(4_000_000 + int(rng.integers(1000)), np.int16), 1000, "FLAC")
        case 7:
            return good[:44]
        case 8:  # thousands of channels at an impossible rate
            return good[:22] + struct.pack("<HI", 60_000, 2**31) + good[28:]
        case _:
            return wav(clip(1), kind="FLAC")[:700]


async def send_malformed(url: str, count: int, clients: int = 4) -> Counter[int]:
    """Send ``count`` malformed uploads and count the statuses of the answers."""
    left, found = iter(range(count)), Counter[int]()
    rng = np.random.default_rng(0)
    async with httpx.AsyncClient(timeout=120) as client:

        async def send() -> None:
            for kind in left:
                content = malformed(kind, rng)
                if kind % 20 < 10:
                    path = ("transcriptions", "translations")[kind // 20 % 2]
                    answer = await client.post(f"{url}/v1/audio/{path}", files={"file": ("a.wav", content)})
                else:
                    audio = {"data": base64.b64encode(content).decode(), "format": "wav"}
                    parts = [{"type": "input_audio", "input_audio": audio}]
                    body = {"messages": [{"role": "user", "content": parts}]}
                    answer = await client.post(f"{url}/v1/chat/completions", json=body)
                found[answer.status_code] += 1

        await asyncio.gather(*(send() for _ in range(clients)))
    return found


def read_stream(url: str, begun: Any) -> None:
    """Read a long stream until this process is killed."""
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=request(0, 900, stream=True), timeout=60) as stream:
        for number, _ in enumerate(stream.iter_lines()):
            if number == 4:
                begun.set()


def metric(url: str, name: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


def kill_clients(url: str, count: int = 3) -> float:
    """Kill clients in the middle of a stream; return the seconds until the last place is free, or infinity."""
    context = multiprocessing.get_context("spawn")
    for _ in range(count):
        begun = context.Event()
        client = context.Process(target=read_stream, args=(url, begun), daemon=True)
        client.start()
        begun.wait(60)
        os.kill(client.pid or 0, signal.SIGKILL)
        client.join()
    started_s = time.perf_counter()
    while metric(url, "ossicle_requests_in_flight") or metric(url, "ossicle_decoding_rows"):
        if time.perf_counter() - started_s > 10:
            return float("inf")
        time.sleep(0.05)
    return time.perf_counter() - started_s


def soak(url: str, process: psutil.Process, minutes: float, tokens: int, console: Console) -> float:
    """Send requests of all kinds for some minutes; return the growth of the server's memory after the warm-up."""
    sizes, end_s = [], time.perf_counter() + 60 * minutes
    rounds = 0
    while time.perf_counter() < end_s:
        asyncio.run(load(url, 8, 16, tokens))
        asyncio.run(send_malformed(url, 20))
        asyncio.run(load(url, 32, 32, 4 + 7 * rounds % tokens))
        sizes.append(process.memory_info().rss / 2**20)
        rounds += 1
    kept = sizes[int(WARM_UP * len(sizes)) :]
    edge = max(1, len(kept) // 10)
    first, last = statistics.median(kept[:edge]), statistics.median(kept[-edge:])
    console.print(f"soak of {minutes:g} minutes: {68 * rounds} requests, {first:.0f} MB, in the end {last:.0f} MB")
    return last / first - 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", metavar="RUN")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--requests", type=int, default=96, help="requests of each row with several clients")
    parser.add_argument("--malformed", type=int, default=500)
    parser.add_argument("--soak", type=float, default=0.0, metavar="MINUTES")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    console, missed = Console(width=120), []
    torch.set_num_threads(arguments.threads)

    model = make_model(arguments.run)
    name = Path(arguments.run).name if arguments.run else "laboratory's models"
    context = multiprocessing.get_context("spawn")
    port = context.Queue()
    server = context.Process(target=serve, args=(arguments.run, arguments.threads, port), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{port.get(timeout=300)}"
    process = psutil.Process(server.pid)
    asyncio.run(load(url, 8, 16, arguments.tokens))  # warm up

    table = Table("clients", "requests/s", "× one at a time", "p50 s", "p99 s", "CPU s per request", "×")
    for clients in arguments.clients:
        count = max(2 * clients, (16 if clients == 1 else arguments.requests) // ROUNDS)
        around = [one_at_a_time(model, arguments.tokens, 4)]
        rounds, latencies = [], []
        for _ in range(ROUNDS):
            used_s = sum(process.cpu_times()[:2])
            rate, found = asyncio.run(load(url, clients, count, arguments.tokens))
            rounds.append((rate, (sum(process.cpu_times()[:2]) - used_s) / count))
            latencies += found
            around.append(one_at_a_time(model, arguments.tokens, 4))
        beside = [((a + b) / 2, (c + d) / 2) for (a, c), (b, d) in pairwise(around)]
        ratios = [(rate / a, a_s / used) for (rate, used), (a, a_s) in zip(rounds, beside, strict=True)]
        speedup, saving = (statistics.median(each) for each in zip(*ratios, strict=True))
        rate, used_s = (statistics.median(each) for each in zip(*rounds, strict=True))
        alone, alone_s = (statistics.median(each) for each in zip(*beside, strict=True))
        latencies.sort()
        p50, p99 = (latencies[min(len(latencies) - 1, int(q * len(latencies)))] for q in (0.5, 0.99))
        if clients == arguments.clients[0]:
            table.add_row("one at a time", f"{alone:.2f}", "1.0", f"{1 / alone:.2f}", "", f"{alone_s:.3f}", "1.0")
        shown = [f"{rate:.2f}", f"{speedup:.1f}", f"{p50:.2f}", f"{p99:.2f}", f"{used_s:.3f}"]
        table.add_row(str(clients), *shown, f"{saving:.1f}")
        if clients == SPEEDUP_CLIENTS and speedup < LEAST_SPEEDUP:
            missed.append(f"{speedup:.1f} times one at a time with {clients} clients")
    del model
    console.print(f"{name}, {CLIP_S:g} s of audio, {arguments.tokens} tokens, {arguments.threads} thread(s)")
    console.print(table)

    if arguments.malformed:
        started_s = time.perf_counter()
        statuses = asyncio.run(send_malformed(url, arguments.malformed))
        healthy = httpx.get(f"{url}/health").status_code == 200
        shown = ", ".join(f"{n} × {status}" for status, n in sorted(statuses.items()))
        console.print(
            f"malformed uploads: {shown} in {time.perf_counter() - started_s:.0f} s; the server "
            + ("answers" if healthy else "does not answer")
        )
        if not healthy or any(not 400 <= status < 500 for status in statuses):
            missed.append("malformed uploads")
    freed_s = kill_clients(url)
    console.print(f"3 clients killed in the middle of a stream: their places were free after {freed_s:.2f} s")
    if freed_s == float("inf"):
        missed.append("places of killed clients")
    if arguments.soak:
        growth = soak(url, process, arguments.soak, arguments.tokens, console)
        console.print(f"memory of the server: {100 * growth:+.1f} %")
        if growth >= MOST_GROWTH:
            missed.append("growth of memory")
    server.terminate()
    server.join(30)
    console.print(f"missed: {'; '.join(missed)}" if missed else "all requirements are met")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
