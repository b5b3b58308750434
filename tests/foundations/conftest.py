"""Networks this small are trained on one core, as on the page: threads would wait for each other."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_core():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
