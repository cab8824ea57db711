"""From prompt to pixels on one device: encode, denoise step by step, decode. No HTTP, no queue, no clock.

The worker calls the three stages as its batcher plans them; scripts and tests call `generate`. Samples of
different sizes, step counts and timesteps share a step.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kernels.dispatch import KernelsName, choose
from model.autoencoder import Autoencoder
from model.checkpoint import combined_digest, load_into, open_checkpoint
from model.conditioning import Conditioning, ConditioningCache, Prompt
from model.config import ScheduleConfig
from model.graphs import CudaRecorder, Step, StepGraphs
from model.info import PipelineInfo
from model.layout import Numerics
from model.lending import Memory
from model.lora import Scaled, merged
from model.progress import Progress, counted
from model.quantization import QuantizeName, choose_quantization
from model.recent_layouts import RecentLayouts
from model.sampling import PIXELS_PER_PATCH, Pass, Sample, draw_noise, guided, schedule_sigmas, unpack
from model.source import Source, begin_from
from model.text import T5, Clip, load_encoders
from model.transformer import Transformer

DEFAULT_GUIDANCE = 3.5  # of guidance-distilled weights

Pixels = npt.NDArray[np.uint8]  # [height, width, 3]


class Pipeline:
    """The loaded model.

    One thread may denoise while another encodes, starts and decodes, each inside `stream` and handing over
    after `synchronize`; `free` runs alone.
    """

    def __init__(
        self,
        *,
        info: PipelineInfo,
        transformer: Transformer,
        autoencoder: Autoencoder,
        clip: Clip,
        t5: T5,
        schedule: ScheduleConfig,
        conditioning_cache_bytes: int,
    ) -> None:
        self.info = info
        self.transformer = transformer
        self.autoencoder = autoencoder
        self.clip = clip
        self.t5 = t5
        self.schedule = schedule
        self.conditioning = ConditioningCache(conditioning_cache_bytes)
        self.device = transformer.img_in.weight.device
        self.dtype = transformer.img_in.weight.dtype
        self.ops = transformer.ops
        self.numerics = Numerics(info.numerics)
        self._graphs = StepGraphs(transformer, CudaRecorder()) if self.device.type == "cuda" else None
        self._step: Step = transformer if self._graphs is None else self._graphs
        self._layouts = RecentLayouts(transformer, numerics=self.numerics, device=self.device)

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        device: torch.device,
        dtype: torch.dtype,
        numerics: Numerics,
        kernels: KernelsName = "auto",
        quantize: QuantizeName = "none",
        memory: Memory = Memory.FULL,
        conditioning_cache_bytes: int = 256 << 20,
        allow_pickle: bool = False,
        progress: Progress | None = None,
    ) -> Self:
        """Load a checkpoint in any published layout; raises `CheckpointError` for what is not whole.

        `memory` says where the text encoders are.
        """
        checkpoint = open_checkpoint(path, allow_pickle=allow_pickle)
        config = checkpoint.transformer_config
        quantization = choose_quantization(quantize, device=device, dtype=dtype)
        if device.type == "cuda":
            torch.cuda.set_device(device)  # Triton launches on the current one
        ops = choose(
            kernels,
            device=device,
            dtype=dtype,
            exact=numerics is Numerics.EXACT,
            dimensions=checkpoint.sizes.dimensions,
        )
        with torch.device("meta"):
            transformer = Transformer(config, ops)
            transformer.quantize(quantization)
            autoencoder = Autoencoder(checkpoint.autoencoder_config, ops)

        advance = counted(progress, checkpoint.size_bytes)
        digests = [
            load_into(module.eval(), component, device=device, dtype=dtype, progress=advance)
            for module, component in (
                (transformer, checkpoint.transformer),
                (autoencoder, checkpoint.autoencoder),
            )
        ]
        autoencoder.to_channels_last()
        clip, t5, text_digests = load_encoders(
            checkpoint, ops, device=device, dtype=dtype, memory=memory, progress=advance
        )
        info = PipelineInfo.of(
            checkpoint,
            digest=combined_digest([*digests, *text_digests]),
            device=device,
            dtype=dtype,
            numerics=numerics,
            quantize=quantize,
            longest_text=t5.tokenizer.model_max_length,
        )
        return cls(
            info=info,
            transformer=transformer,
            autoencoder=autoencoder,
            clip=clip,
            t5=t5,
            schedule=checkpoint.schedule,
            conditioning_cache_bytes=conditioning_cache_bytes,
        )

    def generate(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        width: int,
        height: int,
        steps: int,
        max_sequence_length: int,
        negative_prompt: str = "",
        guidance_scale: float = 0.0,
        source: Source | None = None,
    ) -> list[Pixels]:
        """Make one picture [height, width, 3] per prompt and seed: the three stages in a row."""
        conditionings = self.encode([Prompt(text, max_sequence_length) for text in prompts])
        negative = None
        if self.uses_negative(guidance_scale):
            (negative,) = self.encode([Prompt(negative_prompt, max_sequence_length)])
        samples = [
            self.start(
                conditioning=conditioning,
                negative=negative,
                width=width,
                height=height,
                steps=steps,
                seed=seed,
                guidance_scale=guidance_scale,
                source=source,
            )
            for conditioning, seed in zip(conditionings, seeds, strict=True)
        ]
        while not all(sample.finished for sample in samples):
            self.denoise_step([sample for sample in samples if not sample.finished])
        return self.decode(samples)

    def uses_negative(self, guidance_scale: float) -> bool:
        """Classifier-free guidance runs above 1, unless the weights have guidance built in."""
        return guidance_scale > 1 and not self.info.guidance_embed

    @torch.inference_mode()
    def encode(self, prompts: Sequence[Prompt]) -> list[Conditioning]:
        """Encode prompts, each distinct one once, from the cache where it is there.

        Adapters that do not change the text projection do not make a prompt another one.

        In `fast` numerics prompts of one length run as one batch; in `exact` numerics each runs alone, since
        the matrix products of a batch may round differently.
        """
        prompts = [self._relevant(prompt) for prompt in prompts]
        found: dict[Prompt, Conditioning] = {}
        missing: list[Prompt] = []
        for prompt in dict.fromkeys(prompts):
            if (kept := self.conditioning.get(prompt)) is not None:
                found[prompt] = kept
            else:
                missing.append(prompt)
        with self.clip.lender.lending(), self.t5.lender.lending():
            for batch in self._batches(missing):
                for prompt, conditioning in zip(batch, self._encode(batch), strict=True):
                    self.conditioning.put(prompt, conditioning)
                    found[prompt] = conditioning
        return [found[prompt] for prompt in prompts]

    @torch.inference_mode()
    def start(
        self,
        *,
        conditioning: Conditioning,
        negative: Conditioning | None,
        width: int,
        height: int,
        steps: int,
        seed: int,
        guidance_scale: float,
        source: Source | None = None,
        adapters: Sequence[Scaled] = (),
    ) -> Sample:
        """Begin a picture: draw its noise, encode its source and compute what all its steps share.

        `negative` is given exactly when `uses_negative(guidance_scale)`; both have been encoded with
        `adapters`. `source` is `width` x `height`.
        """
        tokens = (width // PIXELS_PER_PATCH) * (height // PIXELS_PER_PATCH)
        sigmas = schedule_sigmas(self.schedule, steps=steps, tokens=tokens)
        kept = None
        if source is None:
            latents = draw_noise(seed=seed, width=width, height=height).to(self.device)
        else:
            assert source.pixels.shape == (height, width, 3), "a source has the size of its picture"
            sigmas = sigmas[source.first_step(steps) :]
            latents, kept = begin_from(source, self.autoencoder, seed=seed, sigma=sigmas[0])
        times = torch.tensor(sigmas[:-1], device=self.device)
        guidance = (guidance_scale or DEFAULT_GUIDANCE) if self.info.guidance_embed else None
        changes = merged(adapters)
        return Sample(
            width=width,
            height=height,
            sigmas=sigmas,
            guidance_scale=guidance_scale,
            passes=tuple(
                Pass(
                    txt=each.txt, modulation=self.transformer.modulate(times, each.pooled, guidance, changes)
                )
                for each in (conditioning, negative)
                if each is not None
            ),
            latents=latents,
            kept=kept,
            adapters=tuple(adapters),
        )

    @torch.inference_mode()
    def denoise_step(self, samples: Sequence[Sample]) -> None:
        """Advance every sample by one of its own steps; if this raises, no sample has moved."""
        velocity = self._velocity(samples)
        owners = self._layouts.owners(samples)
        deltas = [sample.sigmas[sample.step + 1] - sample.sigmas[sample.step] for sample in samples]
        moved = self.ops.euler_step(
            torch.cat([sample.latents for sample in samples]),
            velocity,
            torch.tensor(deltas, device=self.device),
            owners,
        )
        after = [
            span.of(moved)
            if sample.kept is None
            else sample.kept.put_back(span.of(moved), sample.sigmas[sample.step + 1])
            for sample, span in zip(samples, owners.spans, strict=True)
        ]
        for sample, latents in zip(samples, after, strict=True):
            sample.before, sample.latents = sample.latents, latents
            sample.step += 1

    @torch.inference_mode()
    def decode(self, samples: Sequence[Sample]) -> list[Pixels]:
        """Decode each sample's latents to pixels uint8 [height, width, 3], one picture at a time.

        Decoding is bound by arithmetic from one picture on, so sharing would win nothing and cost memory.
        Raises `ArithmeticError` for a sample with NaN or infinity, or a picture: it would come out black.
        """
        return [self._decode(sample) for sample in samples]

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Give this thread, on a GPU, a stream of its own, beside what other threads do there."""
        if self.device.type != "cuda":
            yield
            return
        with torch.cuda.device(self.device):
            mine = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            mine.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(mine):
                yield

    def synchronize(self) -> None:
        """Wait for what this thread gave the device, so that times and errors belong to their step.

        After it any other thread may use the results.
        """
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def free(self) -> None:
        """Give back the memory of what is only kept to save work."""
        self.conditioning.free()
        self._layouts.clear()
        if self._graphs is not None:
            self._graphs.clear()
            torch.cuda.empty_cache()

    def _batches(self, prompts: list[Prompt]) -> list[list[Prompt]]:
        if self.numerics is Numerics.EXACT:
            return [[prompt] for prompt in prompts]
        by_length: dict[int, list[Prompt]] = {}
        for prompt in prompts:
            by_length.setdefault(prompt.max_sequence_length, []).append(prompt)
        return list(by_length.values())

    def _encode(self, prompts: Sequence[Prompt]) -> list[Conditioning]:
        texts = [prompt.text for prompt in prompts]
        pooled = self.clip.encode(texts).to(self.dtype)
        states = self.t5.encode(texts, length=prompts[0].max_sequence_length).to(self.dtype)
        return [
            Conditioning(
                txt=self.transformer.project_text(txt, merged(prompt.adapters)), pooled=vector.clone()
            )
            for prompt, txt, vector in zip(prompts, states, pooled, strict=True)
        ]

    def _relevant(self, prompt: Prompt) -> Prompt:
        """Leave out the adapters that do not change what is encoded."""
        projecting = (each for each in prompt.adapters if self.transformer.txt_in in each.adapter.changes)
        return replace(prompt, adapters=tuple(projecting))

    def _velocity(self, samples: Sequence[Sample]) -> Tensor:
        """Return the velocity [rows, 64] of all samples, the passes of each combined in float32.

        Where every sample has one pass it is what the transformer returned, in the model's dtype.
        """
        passes = [(sample, each) for sample in samples for each in sample.passes]
        layout = self._layouts.of(passes)
        step = self.transformer if layout.is_adapted else self._step  # a graph would belong to its adapters
        velocity = step(
            torch.cat([sample.latents for sample, _ in passes]).to(self.dtype),
            torch.cat([each.txt for _, each in passes]),
            torch.stack([each.modulation[sample.step] for sample, each in passes]),
            layout,
        )
        if len(passes) == len(samples):
            return velocity
        per_pass = iter(torch.split(velocity.float(), layout.img_lengths))
        return torch.cat(
            [guided([next(per_pass) for _ in sample.passes], sample.guidance_scale) for sample in samples]
        )

    def _decode(self, sample: Sample) -> Pixels:
        if not bool(torch.isfinite(sample.latents).all()):
            raise ArithmeticError("the latents hold values that are not finite")
        latents = unpack(sample.latents.unsqueeze(0), width=sample.width, height=sample.height)
        image = self.autoencoder.decode(latents)[0]
        if not bool(torch.isfinite(image).all()):
            raise ArithmeticError("the decoded picture holds values that are not finite")
        pixels: Pixels = self.ops.to_pixels(image).cpu().numpy()
        return pixels
