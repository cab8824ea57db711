"""What a worker of these tests says that it loaded; other models are this one with fields replaced."""

from server.generation import ModelInfo

MODEL = ModelInfo(
    name="fake",
    digest="d1" * 32,
    device="cpu",
    dtype="float32",
    numerics="exact",
    quantize="none",
    guidance_embed=False,
    default_width=256,
    default_height=256,
    default_steps=4,
    max_steps=12,
    default_sequence_length=256,
)
