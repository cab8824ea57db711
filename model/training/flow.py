"""Training the transformer: rectified flow between pictures and the very noise that decides them.

Three things make a small budget enough. Noise and picture are a pair (model/training/chance.py), so paths
hardly cross and few steps suffice. The text encoders are frozen and already say what is in the picture. And
each example shows a selection of its tokens, each standing for as many as it was drawn from
(model/training/forward.py): at first few tokens of many pictures, towards the end as many as a small picture
has. A large picture costs no more than a small one.
"""

import math
import random
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kernels.reference import to_pixels
from model.config import TransformerConfig
from model.layers import DoubleStreamBlock
from model.layout import Shape, rope_table
from model.sampling import draw_noise, unpack
from model.training import towers
from model.training.chance import CHANNELS, noise_around
from model.training.drawing import Picture
from model.training.forward import velocity
from model.training.optimizer import Optimizer
from model.training.pictures import Example, Pictures
from model.training.recipe import Recipe
from model.training.run import Draws, run
from model.training.towers import Text
from model.transformer import Transformer

CONFIG = TransformerConfig(
    hidden_size=192,
    num_heads=6,
    mlp_size=768,
    depth_double=2,
    depth_single=4,
    text_width=towers.T5_WIDTH,
    pooled_width=towers.CLIP_WIDTH,
    rope_axes=(4, 14, 14),
)
_FEW = (64, 32)  # tokens of each example, and examples in a part
_MANY = (256, 8)  # all of 256x256 pixels
_WINDOW = 6  # tokens a side
_GROWTH_EVERY = 32  # one picture a step, encoded in groups
PROMPT_DROPOUT = 0.1
ROLLED_OUT = 0.6  # of the samples between one half and one
_INTEREST = 4.0
_GRID = (1.0, 0.75, 0.5, 0.25, 2 / 3, 1 / 3)
_GRID_SHARES = (0.40, 0.14, 0.12, 0.10, 0.03, 0.03)  # the rest is uniform, between the steps


LOOKED_AT = (
    "a red circle on a blue background",
    "a yellow star at the top on a purple background",
    "three pink hearts on a white background",
    "a small green square on the left on a yellow background",
    "a blue house in a meadow",
    "a red boat on the sea",
    "a white moon at night",
    "a large orange fish on a cyan background",
    "a black cat face on a pink background",
    "a red triangle above a blue circle on a white background",
    "a green tree next to a brown house in the desert",
    "four orange stars on a black background",
    "a grey robot at sunset",
    "two white clouds in the sky",
    "a purple flower on a gradient from yellow to green",
    "a mountain at the bottom on a white background",
)


class Batch(NamedTuple):
    """Selected tokens: latents, noise [n, k, 64], interest [n, k], sigmas [n], and what `velocity` wants.

    `rolled_out` [n] says which samples start where the model's own first step leads.
    """

    latents: Tensor
    noise: Tensor
    interest: Tensor
    sigmas: Tensor
    rolled_out: Tensor
    txt: Tensor
    pooled: Tensor
    cos: Tensor
    sin: Tensor
    stands_for: Tensor

    @property
    def rotation(self) -> tuple[Tensor, Tensor]:
        return self.cos, self.sin

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(tensor.to(device) for tensor in self))

    def only(self, which: Tensor) -> "Batch":
        """The samples that `which` [n] marks."""
        return Batch(*(tensor[which] for tensor in self))


def train(
    folder: Path, pictures: Pictures, recipe: Recipe, transformer: Transformer | None = None
) -> Transformer:
    """Train `transformer`, else one from nothing, or take a run up, and return it.

    Raises `ValueError` for a transformer of another shape than this recipe's.
    """
    if transformer is not None and transformer.config != CONFIG:
        raise ValueError(f"the transformer has {transformer.config}; this recipe trains {CONFIG}")
    torch.manual_seed(0)
    steps = recipe.flow_steps
    transformer = (transformer or new_transformer()).to(recipe.device).requires_grad_()
    optimizer = Optimizer(transformer.named_parameters(), muon_rate=5e-3, adam_rate=1.5e-3, average=0.998)
    angles = rope_table(Shape(0, 64, 64), CONFIG).float().view(64, 64, -1)
    empty = pictures.text.encode("")

    def prepare(number: int, executor: Executor) -> None:
        pictures.grow(recipe.pictures_at_start + number - number % _GROWTH_EVERY, executor)

    def part(draws: Draws) -> Tensor:
        tokens, count = _MANY if draws.rng.random() < optimizer.steps / steps else _FEW
        examples = draws.rng.choices(pictures.examples, k=count)
        return loss(transformer, select(examples, draws, angles, empty, tokens).to(recipe.device))

    def look(number: int) -> None:
        sheet = contact_sheet(transformer, pictures)
        Image.fromarray(sheet).save(folder / f"flow-{number:05d}.png")

    file = folder / "flow.safetensors"
    run("flow", file, transformer, optimizer, steps, part, prepare=prepare, look=look, look_every=250)
    return transformer.requires_grad_(False)


def new_transformer() -> Transformer:
    """Blocks begin as the identity, as in DiT: modulation and output are zero."""
    transformer = Transformer(CONFIG)
    for name, parameter in transformer.named_parameters():
        if any(part in name for part in ("_mod.lin", "modulation", "final_layer.linear")):
            torch.nn.init.zeros_(parameter)
    read_first_token(transformer)
    return transformer


@torch.no_grad()
def read_first_token(transformer: Transformer) -> None:
    """Let one head of the first block begin as the text's view of the picture's first token.

    That token's noise decides what holds for the whole picture (model/training/chance.py). Among hundreds
    it would get a few thousandths of the attention, too little to learn from; text stands at the same
    position, so equal queries and keys in the fast frequencies of both axes give it one half at 256 to 1024
    pixels alike.
    """
    block = transformer.double_blocks[0]
    assert isinstance(block, DoubleStreamBlock), "double_blocks holds nothing else"
    width, head = CONFIG.hidden_size, CONFIG.head_dim
    axis, rows, _ = CONFIG.rope_axes
    pattern = torch.zeros(head)
    for start in (axis, axis + rows):
        pattern[start : start + 6 : 2] = torch.tensor([2.0, 1.0, 1.0]).sqrt()
    used = pattern.view(-1, 2).any(1).repeat_interleave(2)
    for stream, part, sign in ((block.txt_attn, 0, 1), (block.img_attn, 1, 1), (block.txt_attn, 1, -1)):
        stream.qkv.weight[part * width : part * width + head] = 0
        stream.qkv.bias[part * width : part * width + head] = sign * pattern
    block.txt_attn.norm.query_norm.scale[used] *= 1.7
    block.img_attn.norm.key_norm.scale[used] *= 1.7


def loss(transformer: Transformer, batch: Batch) -> Tensor:
    """Mean squared error of the velocity, `noise - latents` (Liu et al. 2022, arXiv 2209.03003).

    Most tokens are background, whose mean would hide the objects: an object's tokens count four times.
    Where `batch.rolled_out` says so, the noisy latents are where the model's own first step leads, and the
    velocity is the one that leads from there to the picture: later steps learn to mend what the first left.
    """
    t = batch.sigmas.view(-1, 1, 1)
    noisy = (1 - t) * batch.latents + t * batch.noise
    if batch.rolled_out.any():
        noisy[batch.rolled_out] = _first_step(transformer, batch, batch.rolled_out)
    predicted = _predict(transformer, batch, noisy, batch.sigmas)
    error = (predicted - (noisy - batch.latents) / t).square().mean(-1)
    weight = 1 + (_INTEREST - 1) * batch.interest
    return (weight * error).sum() / weight.sum()


@torch.no_grad()
def _first_step(transformer: Transformer, batch: Batch, which: Tensor) -> Tensor:
    """Where one step from the noise to their own time leads these samples."""
    part = batch.only(which)
    velocity_at_noise = _predict(transformer, part, part.noise, torch.ones_like(part.sigmas))
    return part.noise - (1 - part.sigmas).view(-1, 1, 1) * velocity_at_noise


def _predict(transformer: Transformer, batch: Batch, noisy: Tensor, sigmas: Tensor) -> Tensor:
    with torch.autocast(noisy.device.type, torch.bfloat16):
        predicted = velocity(
            transformer, noisy, batch.txt, batch.pooled, sigmas, batch.rotation, batch.stands_for
        )
    return predicted.float()


def select(
    examples: Sequence[Example],
    draws: Draws,
    angles: Tensor,
    empty: tuple[Tensor, Tensor, int],
    tokens: int,
) -> Batch:
    """Choose `tokens` of each example, the first one always, noise that fits it, and a time."""
    selected: list[tuple[Tensor, ...]] = []
    for example in examples:
        rows, columns = example.size.tolist()
        chosen, stands_for = choose(rows, columns, tokens, draws)
        drop = draws.rng.random() < PROMPT_DROPOUT
        pooled, states, padding = empty if drop else (example.pooled, example.states, int(example.padding))
        text_stands_for = torch.zeros(len(states))
        text_stands_for[-1] = torch.tensor(float(padding)).log()
        selected.append(
            (
                example.latents[chosen].float(),
                example.interest[chosen].float(),
                example.whole.float(),
                example.grain[chosen].float(),
                angles[chosen // columns, chosen % columns],
                stands_for,
                pooled,
                states,
                text_stands_for,
            )
        )
    latents, interest, whole, grain, places, stands, pooled_all, texts, text_stands = zip(
        *selected, strict=True
    )
    is_first = torch.zeros(len(examples), tokens, dtype=torch.bool)
    is_first[:, 0] = True
    sigmas = torch.tensor([_random_sigma(draws.rng) for _ in examples])
    free = draws.normal(len(examples), tokens, CHANNELS)
    txt = pad_sequence(list(texts), batch_first=True)
    txt_stands = pad_sequence(list(text_stands), batch_first=True, padding_value=float("-inf"))
    txt_angles = torch.zeros(len(examples), txt.shape[1], angles.shape[-1])
    rotation = torch.cat([txt_angles, torch.stack(places)], dim=1)
    return Batch(
        latents=torch.stack(latents),
        noise=noise_around(torch.stack(whole), torch.stack(grain), free, is_first),
        interest=torch.stack(interest),
        sigmas=sigmas,
        rolled_out=(sigmas >= 0.5) & (sigmas < 1) & (draws.uniform(len(examples)) < ROLLED_OUT),
        txt=txt,
        pooled=torch.stack(pooled_all),
        cos=rotation.cos(),
        sin=rotation.sin(),
        stands_for=torch.cat([txt_stands, torch.stack(stands)], dim=1)[:, None, None],
    )


def choose(rows: int, columns: int, tokens: int, draws: Draws) -> tuple[Tensor, Tensor]:
    """Choose `tokens` of a grid: the first, a square window anywhere, and some of the rest.

    The window shows a token its neighbours, the rest shows it the picture. All are chosen without a look
    at the picture: choosing the tokens of objects more often would give away where they are.

    Returns:
        Indices, and the logarithm of how many tokens each stands for.
    """
    window, rest = _window(rows, columns, draws)
    others = rest[torch.randperm(len(rest), generator=draws.generator)[: tokens - 1 - len(window)]]
    if len(others) < tokens - 1 - len(window):
        raise ValueError(f"{rows} x {columns} tokens: no selection of {tokens}")
    stands_for = torch.zeros(tokens)
    stands_for[1 + len(window) :] = math.log(len(rest) / max(1, len(others)))
    return torch.cat([torch.zeros(1, dtype=torch.long), window, others]), stands_for


def _window(rows: int, columns: int, draws: Draws) -> tuple[Tensor, Tensor]:
    """The tokens of a window and those outside of it, both without the first token of the grid."""
    inside = torch.zeros(rows, columns, dtype=torch.bool)
    top, left = (draws.rng.randint(0, side - _WINDOW) for side in (rows, columns))
    inside[top : top + _WINDOW, left : left + _WINDOW] = True
    indices = torch.arange(1, rows * columns)
    is_inside = inside.flatten()[1:]
    return indices[is_inside], indices[~is_inside]


def _random_sigma(rng: random.Random) -> float:
    (sigma,) = rng.choices((*_GRID, rng.uniform(0.02, 1)), (*_GRID_SHARES, 1 - sum(_GRID_SHARES)))
    return sigma


@torch.no_grad()
def sample(
    transformer: Transformer, text: Text, prompt: str, *, seed: int, rows: int, columns: int, steps: int
) -> Tensor:
    """Latents [16, 2 * rows, 2 * columns] of `prompt`, in few words; the server does this properly."""
    device = transformer.img_in.weight.device
    img = draw_noise(seed=seed, width=16 * columns, height=16 * rows)[None].to(device)
    pooled, states, padding = text.encode(prompt)
    stands_for = torch.zeros(1, 1, 1, len(states) + img.shape[1])
    stands_for[..., len(states) - 1] = torch.tensor(float(padding)).log()
    angles = torch.cat(
        [torch.zeros(len(states), CONFIG.head_dim // 2), rope_table(Shape(0, rows, columns), CONFIG).float()]
    )[None].to(device)
    txt, vec, stands_for = states[None].to(device), pooled[None].to(device), stands_for.to(device)
    for i in range(steps):
        sigmas = torch.tensor([1 - i / steps], device=device)
        img = (
            img
            - velocity(transformer, img, txt, vec, sigmas, (angles.cos(), angles.sin()), stands_for) / steps
        )
    return unpack(img, width=16 * columns, height=16 * rows)[0]


def contact_sheet(transformer: Transformer, pictures: Pictures) -> Picture:
    """The same prompts at every look, four steps over one step."""
    bands = []
    for start in range(0, len(LOOKED_AT), 8):
        for steps in (4, 1):
            images = []
            for i, prompt in enumerate(LOOKED_AT[start : start + 8]):
                latents = sample(transformer, pictures.text, prompt, seed=i, rows=16, columns=16, steps=steps)
                images.append(pictures.autoencoder.decode(latents[None])[0])
            bands.append(torch.cat(images, 2))
    return to_pixels(torch.cat(bands, 1)).cpu().numpy()
