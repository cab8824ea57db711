"""What is chosen where the caller leaves it open."""

import logging

import pytest
import torch

from model.device import choose_memory
from model.lending import Memory


@pytest.mark.parametrize("memory", Memory)
def test_memory_is_taken_at_its_word_on_a_gpu_and_changes_nothing_on_a_cpu(
    memory: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert choose_memory(memory.value, torch.device("cuda")) is memory
    assert not caplog.records
    assert choose_memory(memory.value, torch.device("cpu")) is Memory.FULL
    assert len(caplog.records) == (memory is not Memory.FULL)
