"""Sends requests in a closed or an open loop and takes down what came of each."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Sequence

from langport.bench.client import Answer, Client, RequestFailed
from langport.bench.figures import Run, Sample
from langport.bench.prompts import Request

OnSample = Callable[[Sample], None]


async def closed_loop(client: Client, requests: Sequence[Request], num_clients: int, on_sample: OnSample) -> Run:
    """So many clients share the requests, each with one after the other."""
    waiting = iter(requests)
    samples: list[Sample] = []

    async def one_client() -> None:
        for request in waiting:
            samples.append(await ask(client, request))
            on_sample(samples[-1])

    began_s, cpu_s = client.clock(), time.process_time()
    await asyncio.gather(*(one_client() for _ in range(num_clients)))
    return Run("closed", num_clients, samples, client.clock() - began_s, time.process_time() - cpu_s)


async def open_loop(client: Client, requests: Sequence[Request], rate: float, seed: int, on_sample: OnSample) -> Run:
    """The requests arrive at random, `rate` a second on the average, whether or not others are answered."""
    samples: list[Sample] = []

    async def one(request: Request) -> None:
        samples.append(await ask(client, request))
        on_sample(samples[-1])

    loop = asyncio.get_running_loop()
    began_s, cpu_s, begin = client.clock(), time.process_time(), loop.time()
    async with asyncio.TaskGroup() as group:
        for request, arrival_s in zip(requests, arrivals(rate, len(requests), seed), strict=True):
            await asyncio.sleep(begin + arrival_s - loop.time())
            group.create_task(one(request))
    return Run("open", rate, samples, client.clock() - began_s, time.process_time() - cpu_s)


def arrivals(rate: float, num: int, seed: int) -> list[float]:
    """Seconds from the beginning: a Poisson process of `rate` a second; the first arrives at once."""
    source = random.Random(f"arrivals {seed}")
    return [0.0, *itertools.accumulate(source.expovariate(rate) for _ in range(num - 1))]


async def ask(client: Client, request: Request) -> Sample:
    """One request; what went wrong is in its sample."""
    sample = Sample(client.clock())
    try:
        answer = await client.post(request.path, request.body)
        _take(answer, request, sample)
    except RequestFailed as failure:
        sample.error, sample.message = failure.kind, str(failure)
    sample.ended_s = client.clock()
    return sample


def _take(answer: Answer, request: Request, sample: Sample) -> None:
    """The figures of a whole answer. Raises: RequestFailed when it is not what was asked for."""
    if request.num_inputs:
        if answer.num_items != request.num_inputs:
            raise RequestFailed("short answer", f"{answer.num_items} of {request.num_inputs} embeddings came")
        sample.num_inputs = answer.num_items
    elif answer.usage is None:
        raise RequestFailed("no usage", "the answer does not say how many tokens it has (stream_options.include_usage)")
    if answer.usage is not None:
        sample.prompt_tokens = answer.usage.prompt_tokens
        sample.cached_tokens = answer.usage.cached_tokens
    if request.num_tokens and answer.usage is not None:
        sample.output_tokens, sample.pieces_s = answer.usage.completion_tokens, answer.pieces_s
        if sample.output_tokens < request.num_tokens and not request.may_be_short:
            got, asked = sample.output_tokens, request.num_tokens
            raise RequestFailed("short answer", f"{got} tokens came where {asked} were asked for")
