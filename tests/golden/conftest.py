"""Recorded outputs of the official CODA implementation, and the backends that each is compared through."""

import pytest

from ocl.ops._library import LIBRARIES

COMPILED = pytest.mark.skipif(LIBRARIES["cpu"].path is None, reason=LIBRARIES["cpu"].missing)


@pytest.fixture(scope="session")
def folder(golden):
    found = golden / "coda_reference"
    if not found.is_dir():
        pytest.skip(f"{found} is missing; set OCL_GOLDEN to the folder of recorded outputs")
    return found


@pytest.fixture(params=["auto", "reference", pytest.param("fused", marks=COMPILED)])
def implementation(request):
    """Name of a backend; "fused" raises where an operator has no compiled code, so that it cannot be the reference unnoticed."""
    return request.param
