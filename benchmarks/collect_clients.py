"""The clients that benchmarks/collect.py puts beside stillhouse, each run as a process of its own:

    python collect_clients.py NAME URL PROMPTS OUT CONCURRENCY MAX_TOKENS

Each asks every prompt of a JSONL file once and leaves the answers in OUT, in the form that is usual with it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any


def prompts_of(path: str) -> Iterator[dict[str, str]]:
    with open(path) as file:
        for line in file:
            yield json.loads(line)


async def at_once(rows: Iterator[Any], concurrency: int, work: Callable[[Any], Awaitable[None]]) -> None:
    """So many workers, each of which takes the next row when it is done with one."""

    async def worker() -> None:
        for row in rows:
            await work(row)

    await asyncio.gather(*(worker() for _ in range(concurrency)))


async def bare(url: str, prompts: str, out: str, concurrency: int, max_tokens: int) -> None:
    """aiohttp and nothing else: send, read, parse, write a line. No retry, no key, no sync to disk."""
    import aiohttp
    import orjson

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        with open(out, "wb") as file:  # noqa: ASYNC230  (a plain loop would do the same)

            async def ask(row: dict[str, str]) -> None:
                messages = [{"role": "user", "content": row["prompt"]}]
                body = orjson.dumps({"model": "m", "messages": messages, "max_tokens": max_tokens})
                async with session.post(f"{url}/chat/completions", data=body) as reply:
                    reply.raise_for_status()
                    answer = orjson.loads(await reply.read())["choices"][0]["message"]["content"]
                file.write(orjson.dumps({"id": row["id"], "answer": answer}) + b"\n")

            await at_once(prompts_of(prompts), concurrency, ask)


async def openai(url: str, prompts: str, out: str, concurrency: int, max_tokens: int) -> None:
    from openai import AsyncOpenAI

    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        with open(out, "w") as file:  # noqa: ASYNC230

            async def ask(row: dict[str, str]) -> None:
                reply = await client.chat.completions.create(
                    model="m",
                    messages=[{"role": "user", "content": row["prompt"]}],
                    max_tokens=max_tokens,
                )
                file.write(json.dumps({"id": row["id"], "answer": reply.choices[0].message.content}) + "\n")

            await at_once(prompts_of(prompts), concurrency, ask)


def distilabel(url: str, prompts: str, out: str, concurrency: int, max_tokens: int) -> None:
    from distilabel.models import OpenAILLM
    from distilabel.pipeline import Pipeline
    from distilabel.steps import LoadDataFromDicts
    from distilabel.steps.tasks import TextGeneration

    rows = [{"instruction": row["prompt"]} for row in prompts_of(prompts)]
    with Pipeline(name="bench", cache_dir=f"{out}.cache") as pipeline:
        load = LoadDataFromDicts(data=rows, batch_size=concurrency)
        llm = OpenAILLM(
            model="m", base_url=url, api_key="none", generation_kwargs={"max_new_tokens": max_tokens}
        )
        load >> TextGeneration(llm=llm, input_batch_size=concurrency)
    done = pipeline.run(use_cache=False)["default"]["train"]
    assert all(done["generation"])
    done.save_to_disk(out)


def data_designer(url: str, prompts: str, out: str, concurrency: int, max_tokens: int) -> None:
    import data_designer.config as dd
    import pandas as pd
    from data_designer.interface import DataDesigner

    rows = pd.DataFrame(prompts_of(prompts))
    asking = dd.ChatCompletionInferenceParams(max_tokens=max_tokens, max_parallel_requests=concurrency)
    model = dd.ModelConfig(alias="m", model="m", provider="mock", inference_parameters=asking)
    builder = dd.DataDesignerConfigBuilder(model_configs=[model])
    builder.with_seed_dataset(dd.DataFrameSeedSource(df=rows))
    builder.add_column(dd.LLMTextColumnConfig(name="answer", prompt="{{ prompt }}", model_alias="m"))
    provider = dd.ModelProvider(name="mock", endpoint=url, provider_type="openai", api_key="none")
    designer = DataDesigner(artifact_path=out, model_providers=[provider])
    done = designer.create(builder, num_records=len(rows)).load_dataset()
    assert len(done) == len(rows)


def main() -> None:
    name, url, prompts, out, concurrency, max_tokens = sys.argv[1:]
    clients = {"bare": bare, "openai": openai, "distilabel": distilabel, "data-designer": data_designer}
    done = clients[name](url, prompts, out, int(concurrency), int(max_tokens))
    if done is not None:
        asyncio.run(done)
    assert Path(out).exists()


if __name__ == "__main__":
    main()
