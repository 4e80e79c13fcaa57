"""What many teams put before a model, before a constant instead: PyJWT and slowapi in FastAPI.

    JWT_SECRET=<secret> LIMIT=10/minute uvicorn --app-dir tests/benches/peers/fastapi admission:app

| Variable | Default | |
|---|---|---|
| JWT_SECRET | | of HS256; without it, nobody needs a token |
| LIMIT | | of each caller, in the words of slowapi; without it, there is none |
| REDIS_URL | memory:// | where slowapi counts |
"""

import os
from typing import Annotated

import jwt
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, Field
from slowapi import Limiter, _rate_limit_exceeded_handler
from slowapi.errors import RateLimitExceeded

JWT_SECRET = os.environ.get("JWT_SECRET")
LIMIT = os.environ.get("LIMIT")
LEEWAY_SECS = 5


class Question(BaseModel):
    text: str = Field(min_length=1, max_length=5000)


# On the event loop: FastAPI would run a plain `def` on a thread, at several times the cost.
async def authenticate(
    request: Request, bearer: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]
):
    try:
        claims = jwt.decode(
            bearer.credentials,
            JWT_SECRET,
            algorithms=["HS256"],
            options={"require": ["exp", "sub"]},
            leeway=LEEWAY_SECS,
        )
    except jwt.InvalidTokenError as error:
        raise HTTPException(401, "invalid token") from error
    request.state.caller = claims["sub"]


async def predict(request: Request, question: Question):
    return [{"label": "POSITIVE", "score": 0.5}]


async def health():
    return {"status": "ok"}


app = FastAPI()
app.state.limiter = limiter = Limiter(
    key_func=lambda request: request.state.caller,
    storage_uri=os.environ.get("REDIS_URL", "memory://"),
)
app.add_exception_handler(RateLimitExceeded, _rate_limit_exceeded_handler)
app.get("/health")(health)
app.post("/predict", dependencies=[Depends(authenticate)] if JWT_SECRET else [])(
    limiter.limit(LIMIT)(predict) if LIMIT else predict
)
