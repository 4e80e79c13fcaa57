"""The service that sanderling replaces: FastAPI, transformers and torch, as many teams write it.

    MODEL=<folder> uvicorn --app-dir tests/benches/peers/fastapi service:app --port 8000

POST /predict, GET /health and the /docs that FastAPI makes. The model is loaded once, when a worker
starts; it tokenizes and infers on a thread, so that the event loop stays free, and for several
callers at once. What else such a service does for each request (metrics, logs, traces, tokens,
rate limits) is left out, to its advantage.

| Variable | Default | |
|---|---|---|
| MODEL | | folder of the checkpoint |
| ENGINE | transformers | or onnxruntime; ort_classifier.py has its variables |
| NUM_THREADS | torch's own | threads of torch, in each worker |
| MAX_BATCH_SIZE | 8 | texts in one batch; 1: each text goes to a thread at once, by itself |
| MAX_BATCH_WAIT_MS | 50 | how long a batch waits for more of them |
| NUM_EXECUTOR_THREADS | 1 | texts or batches that run at once, in each worker |
"""

import asyncio
import os
import re
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field, field_validator

if os.environ.get("ENGINE") == "onnxruntime":
    from ort_classifier import Classifier
else:
    from torch_classifier import Classifier

MODEL = os.environ["MODEL"]
MAX_BATCH_SIZE = int(os.environ.get("MAX_BATCH_SIZE", "8"))
MAX_BATCH_WAIT_SECS = float(os.environ.get("MAX_BATCH_WAIT_MS", "50")) / 1e3
NUM_EXECUTOR_THREADS = int(os.environ.get("NUM_EXECUTOR_THREADS", "1"))
CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
REFUSED = re.compile(r"<script|javascript:|onerror=", re.IGNORECASE)


class Request(BaseModel):
    text: str = Field(min_length=1, max_length=5000)
    top_k: int = Field(default=1, ge=1)

    @field_validator("text")
    @classmethod
    def clean(cls, text: str) -> str:
        text = CONTROL_CHARACTERS.sub("", text)
        if REFUSED.search(text):
            raise ValueError("the text may not hold scripts")
        return text.strip()


class Prediction(BaseModel):
    label: str
    score: float


class Batches:
    """Gathers texts: the first starts a batch, which waits for more and then takes what is there."""

    def __init__(self, classifier: Classifier):
        self.classifier = classifier
        self._executor = ThreadPoolExecutor(max_workers=NUM_EXECUTOR_THREADS)
        self._waiting: deque[tuple[str, asyncio.Future]] = deque()
        self._running: asyncio.Task | None = None

    async def scores(self, text: str) -> list[float]:
        loop = asyncio.get_running_loop()
        if MAX_BATCH_SIZE == 1:
            run = self.classifier.scores
            return (await loop.run_in_executor(self._executor, run, [text]))[0]
        future = loop.create_future()
        self._waiting.append((text, future))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while self._waiting:
            await asyncio.sleep(MAX_BATCH_WAIT_SECS)
            size = min(MAX_BATCH_SIZE, len(self._waiting))
            await self._run_one([self._waiting.popleft() for _ in range(size)])
        self._running = None

    async def _run_one(self, batch: list[tuple[str, asyncio.Future]]) -> None:
        texts = [text for text, _ in batch]
        loop = asyncio.get_running_loop()
        try:
            scores = await loop.run_in_executor(self._executor, self.classifier.scores, texts)
        except Exception as error:  # noqa: BLE001 - it fails the whole batch
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), each in zip(batch, scores, strict=True):
            if not future.done():
                future.set_result(each)


def best(labels: dict[int, str], scores: list[float], top_k: int) -> list[Prediction]:
    order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[:top_k]
    return [Prediction(label=labels[index], score=scores[index]) for index in order]


@asynccontextmanager
async def load(app: FastAPI):
    app.state.batches = Batches(Classifier(MODEL))
    yield


app = FastAPI(title="Sentiment", lifespan=load)


@app.post("/predict")
async def predict(request: Request) -> list[Prediction]:
    batches = app.state.batches
    try:
        scores = await batches.scores(request.text)
        return best(batches.classifier.labels, scores, request.top_k)
    except Exception as error:
        raise HTTPException(status_code=500, detail=str(error)) from error


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "healthy", "model": app.state.batches.classifier.name}
