import pytest
from function import running


@pytest.fixture(scope="session")
def predict():
    """One ready `predict` with nothing set, shared by the tests that leave it as it was."""
    with running() as function:
        function.wait_until_healthy()
        yield function
