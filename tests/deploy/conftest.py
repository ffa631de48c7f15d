"""The two installations that users apply."""

import pytest
from manifests import OVERLAYS, Object, build, label


@pytest.fixture(params=OVERLAYS, ids=label)
def objects(request: pytest.FixtureRequest) -> list[Object]:
    """All objects of an installation."""
    return build(request.param)
