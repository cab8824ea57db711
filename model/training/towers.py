"""Training the text encoders on text alone: what a prompt says must be easy to read off both of them.

The flow then stands on frozen encoders, as the real one does. CLIP's pooled vector must tell every fact of
the scene by a linear map; T5's states by one query a fact, and so must its states at the padding, of which
the transformer sees many.
"""

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from model.training import tokenizers
from model.training.grammar import random_prompt, strange_prompt
from model.training.optimizer import Optimizer
from model.training.recipe import Recipe
from model.training.run import Draws, run
from model.training.world import (
    Colour,
    Noun,
    Place,
    Relation,
    Scene,
    Setting,
    Size,
    is_held_out,
    random_scene,
)

CLIP_WIDTH = 128
T5_WIDTH = 128
_BATCH = 48  # a part
_LENGTHS = (32, 32, 40, 40, 48, 48, 64, 128)
_COLOURS = len(Colour) + 1
FACTS = {
    "setting": len(Setting),
    "background": _COLOURS,
    "second background": _COLOURS,
    "arrangement": 1 + len(Size) * len(Place) + 3 + 2,
    "noun": len(Noun) + 1,
    "colour": _COLOURS,
    "second noun": len(Noun) + 1,
    "second colour": _COLOURS,
}
"""What a prompt says, each with its number of classes; 0 is nothing."""


def facts(scene: Scene) -> list[int]:
    """Return the class of every fact. Of two things the upper or left one is first, whatever the words."""
    things = list(scene.things)
    if scene.relation in (Relation.BELOW, Relation.RIGHT_OF):
        things.reverse()
    colours = [1 + list(Colour).index(colour) for colour in scene.background.colours]
    described = [(1 + list(Noun).index(t.noun), 1 + list(Colour).index(t.seen_colour)) for t in things]
    (noun, colour), (noun_2, colour_2) = [*described, (0, 0), (0, 0)][:2]
    first, second = [*colours, 0, 0][:2]
    return [
        list(Setting).index(scene.background.setting),
        first,
        second,
        _arrangement(scene),
        noun,
        colour,
        noun_2,
        colour_2,
    ]


def _arrangement(scene: Scene) -> int:
    placed = len(Size) * len(Place)
    if not scene.things:
        return 0
    if scene.relation is not None:
        return placed + 4 + (scene.relation in (Relation.ABOVE, Relation.BELOW))
    if scene.count > 1:
        return placed + scene.count - 1
    return 1 + list(Place).index(scene.place) * len(Size) + list(Size).index(scene.size)


class Towers(nn.Module):
    """Both encoders and, for training only, the heads that read facts off them."""

    def __init__(self, clip_vocabulary: int, t5_vocabulary: int) -> None:
        super().__init__()
        self.clip = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=clip_vocabulary,
                hidden_size=CLIP_WIDTH,
                intermediate_size=4 * CLIP_WIDTH,
                num_hidden_layers=3,
                num_attention_heads=4,
                bos_token_id=0,
                eos_token_id=2,  # as the published configuration has it
            )
        )
        self.t5 = T5EncoderModel(
            T5Config(
                vocab_size=t5_vocabulary,
                d_model=T5_WIDTH,
                d_kv=32,
                d_ff=2 * T5_WIDTH,
                num_layers=3,
                num_heads=4,
                dropout_rate=0.0,
                feed_forward_proj="gated-gelu",
            )
        )
        self.queries = nn.Parameter(torch.randn(len(FACTS), T5_WIDTH) * T5_WIDTH**-0.5)
        self.clip_heads = nn.ModuleList(nn.Linear(CLIP_WIDTH, classes) for classes in FACTS.values())
        self.t5_heads = nn.ModuleList(nn.Linear(T5_WIDTH, classes) for classes in FACTS.values())
        self.padding_heads = nn.ModuleList(nn.Linear(T5_WIDTH, classes) for classes in FACTS.values())

    def forward(self, clip_ids: Tensor, t5_ids: Tensor) -> list[list[Tensor]]:
        """Return, for each of the three places to read from, the logits [n, classes] of every fact."""
        pooled = self.clip(input_ids=clip_ids).pooler_output
        states = self.t5(input_ids=t5_ids).last_hidden_state
        weights = torch.softmax(torch.einsum("qd,nld->nql", self.queries, states), dim=-1)
        read = weights @ states
        return [
            [head(pooled) for head in self.clip_heads],
            [head(read[:, i]) for i, head in enumerate(self.t5_heads)],
            [head(states[:, -1]) for head in self.padding_heads],
        ]


def random_text(rng: random.Random) -> tuple[str, Scene]:
    """A prompt and what to draw for it; one in sixteen is outside the grammar."""
    is_strange = rng.random() < 1 / 16
    while True:
        if is_strange:
            prompt, scene = strange_prompt(rng)
        else:
            scene = random_scene(rng)
            prompt = random_prompt(scene, rng)
        if not is_held_out(scene):
            return prompt, scene


class Text:
    """The trained encoders and their tokenizers, as the flow uses them."""

    def __init__(
        self,
        clip: CLIPTextModel,
        t5: T5EncoderModel,
        clip_tokenizer: CLIPTokenizer,
        t5_tokenizer: T5Tokenizer,
    ) -> None:
        self.clip, self.t5 = clip, t5
        self.clip_tokenizer, self.t5_tokenizer = clip_tokenizer, t5_tokenizer

    @torch.no_grad()
    def encode(self, prompt: str, length: int = tokenizers.T5_LENGTH) -> tuple[Tensor, Tensor, int]:
        """Return CLIP's vector [width], T5's states [tokens + 1, width], and what the last one stands for.

        The states at the padding are nearly equal, so one of them is kept.
        """
        device = self.clip.device
        clip_ids = token_ids(self.clip_tokenizer, [prompt])
        t5_ids = token_ids(self.t5_tokenizer, [prompt], length)
        pooled: Tensor = self.clip(input_ids=clip_ids.to(device)).pooler_output[0]
        states: Tensor = self.t5(input_ids=t5_ids.to(device)).last_hidden_state[0]
        tokens = int((t5_ids != self.t5_tokenizer.pad_token_id).sum())
        return pooled.cpu(), states[: min(tokens + 1, length)].cpu(), max(1, length - tokens)


def train(folder: Path, recipe: Recipe) -> Text:
    """Train tokenizers and encoders, or take them up; the encoders come back frozen."""
    rng = random.Random(0)
    if not (folder / "tokenizer_2" / "tokenizer_config.json").exists():
        tokenizers.train([random_text(rng)[0] for _ in range(recipe.tokenizer_prompts)], folder)
    clip_tokenizer, t5_tokenizer = tokenizers.load(folder)
    torch.manual_seed(0)
    towers = Towers(len(clip_tokenizer), len(t5_tokenizer)).to(recipe.device)
    optimizer = Optimizer(towers.named_parameters(), muon_rate=1e-2, adam_rate=2e-3, average=0.995)

    def part(draws: Draws) -> Tensor:
        rng = draws.rng
        texts, scenes = zip(*(random_text(rng) for _ in range(_BATCH)), strict=True)
        clip_ids = token_ids(clip_tokenizer, texts).to(recipe.device)
        t5_ids = token_ids(t5_tokenizer, texts, rng.choice(_LENGTHS)).to(recipe.device)
        targets = torch.tensor([facts(scene) for scene in scenes], device=recipe.device)
        with torch.autocast(recipe.device.type, torch.bfloat16):
            places = towers(clip_ids, t5_ids)
        return sum(
            (
                F.cross_entropy(logits.float(), targets[:, i])
                for place in places
                for i, logits in enumerate(place)
            ),
            torch.zeros((), device=recipe.device),
        )

    def look(number: int) -> None:
        rng = random.Random(-1 - number)
        scenes = [scene for scene in (random_scene(rng) for _ in range(4000)) if is_held_out(scene)][:256]
        shares = accuracy(towers, text, [random_prompt(scene, rng) for scene in scenes], scenes)
        for place, share in shares.items():
            print(f"\n{place}: " + ", ".join(f"{fact} {value:.3f}" for fact, value in share.items()))

    text = Text(towers.clip, towers.t5, clip_tokenizer, t5_tokenizer)
    file = folder / "towers.safetensors"
    run("towers", file, towers, optimizer, recipe.tower_steps, part, look=look)
    towers.eval().requires_grad_(False)
    return text


@torch.no_grad()
def accuracy(
    towers: Towers, text: Text, prompts: list[str], scenes: list[Scene]
) -> dict[str, dict[str, float]]:
    """The share of prompts whose facts are read right, from each of the three places and of each fact."""
    device = towers.queries.device
    targets = torch.tensor([facts(scene) for scene in scenes])
    read = towers(
        token_ids(text.clip_tokenizer, prompts).to(device),
        token_ids(text.t5_tokenizer, prompts, tokenizers.T5_LENGTH).to(device),
    )
    return {
        place: {
            fact: (logits.argmax(1).cpu() == targets[:, i]).float().mean().item()
            for i, (fact, logits) in enumerate(zip(FACTS, found, strict=True))
        }
        for place, found in zip(("CLIP", "T5", "padding"), read, strict=True)
    }


def token_ids(
    tokenizer: CLIPTokenizer | T5Tokenizer, texts: tuple[str, ...] | list[str], length: int | None = None
) -> Tensor:
    """Ids [n, length], padded to `length` or the longest."""
    ids: Tensor = tokenizer(
        list(texts),
        padding="max_length" if length else "longest",
        max_length=length or 77,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return ids
