"""How much of everything goes into the embedded checkpoint."""

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, slots=True)
class Recipe:
    """Steps and amounts; the defaults take about two hours on two CPU cores and minutes on a GPU.

    `flow_steps` may be raised where time is cheap: every learning rate follows from it. Pictures are
    functions of their numbers; a run that goes on from another's checkpoint has more to learn from new ones.
    """

    tokenizer_prompts: int = 40_000
    tower_steps: int = 2400
    autoencoder_steps: int = 4000
    autoencoder_pictures: int = 2000
    flow_steps: int = 8000
    first_picture: int = 0
    pictures_at_start: int = 1000
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
