from __future__ import annotations

from collections.abc import Iterator

import files_fixture
import pytest
from etcd_engines import ETCD_ABOVE


@pytest.fixture(params=["memory", *ETCD_ABOVE])
def on_every_engine(request: pytest.FixtureRequest) -> Iterator[None]:
    """File systems of `files_fixture` have their store on each engine in turn."""
    files_fixture.engine = request.param
    yield
    files_fixture.engine = "memory"
