"""The backends that every recorded result is compared through."""

import pytest

from ocl.ops._library import LIBRARIES

COMPILED = pytest.mark.skipif(LIBRARIES["cpu"].path is None, reason=LIBRARIES["cpu"].missing)


@pytest.fixture(params=["auto", "reference", pytest.param("fused", marks=COMPILED)])
def implementation(request):
    """Name of a backend; "fused" raises where an operator has no compiled code, so that it cannot be the reference unnoticed."""
    return request.param
