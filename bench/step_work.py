"""What the training-step bench asks of every variant: the same sequences, weights and loss."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.rollout_work import Shape

if TYPE_CHECKING:
    from torch import nn

SEED = 0
CLIP, KL_COEF, RATE, MAX_NORM = 0.2, 0.04, 1e-6, 1.0
BETAS, EPS = (0.9, 0.95), 1e-8
MOVED = 0.004  # relative: what lies between the policy and its reference


@dataclass(frozen=True)
class Ask:
    """`group_size` samples of each prompt. Prompts are up to half of the shortest sequence, lengths drawn by a seed.

    A sequence is prompt and completion together, of `least` to `most` tokens.
    """

    label: str
    num_prompts: int
    group_size: int
    least: int
    most: int
    one_sign: bool = False

    @property
    def num_samples(self) -> int:
        return self.num_prompts * self.group_size

    def prompts(self, num_vocab: int) -> list[list[int]]:
        """Token ids; the first ones are special in most vocabularies."""
        generator = random.Random(f"{SEED} prompts")
        tokens = range(min(100, num_vocab // 2), num_vocab)
        return [
            generator.choices(tokens, k=generator.randint(self.least // 4, self.least // 2))
            for _ in range(self.num_prompts)
        ]

    def completions(self, num_vocab: int) -> list[list[int]]:
        """Of all samples, those of the first prompt first."""
        generator = random.Random(f"{SEED} completions")
        tokens = range(min(100, num_vocab // 2), num_vocab)
        return [
            generator.choices(tokens, k=generator.randint(self.least, self.most) - len(prompt))
            for prompt in self.prompts(num_vocab)
            for _ in range(self.group_size)
        ]

    def advantages(self) -> list[float]:
        """Of random rewards 0 and 1, by the mean and the deviation of each group, none of them constant.

        `one_sign`: their absolute values. Of random tokens those of a group cancel each other's gradients, and what is
        left in bfloat16 is rounding.
        """
        generator, found = random.Random(f"{SEED} rewards"), []
        for _ in range(self.num_prompts):
            ones = generator.randint(1, self.group_size - 1)
            rewards = generator.sample([1.0] * ones + [0.0] * (self.group_size - ones), self.group_size)
            mean = ones / self.group_size
            deviation = (mean * (1 - mean) * self.group_size / (self.group_size - 1)) ** 0.5
            found += [(reward - mean) / deviation for reward in rewards]
        return [abs(advantage) for advantage in found] if self.one_sign else found

    def tokens(self) -> int:
        """Of all sequences, a prompt counted for each of its samples."""
        prompts = self.prompts(1 << 15)
        own = sum(len(prompts[n // self.group_size]) for n in range(self.num_samples))
        return own + sum(map(len, self.completions(1 << 15)))

    def flops(self, shape: Shape) -> float:
        """Reference forward; policy forward and backward; each prompt once for its group, the head for completions."""
        prompts, completions = self.prompts(1 << 15), self.completions(1 << 15)
        drawn = sum(map(len, completions))
        layers = 2 * shape.layer_weights * (drawn + sum(map(len, prompts)))
        head = 2 * shape.hidden_size * shape.vocab_size * drawn
        pairs = sum(len(prompt) ** 2 / 2 for prompt in prompts)
        for number, completion in enumerate(completions):
            before = len(prompts[number // self.group_size])
            pairs += len(completion) * before + len(completion) ** 2 / 2
        attention = 4 * shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim * pairs
        return 4 * (layers + head + attention)

    def num_bytes(self, shape: Shape) -> float:
        """The least: bf16 weights read three times and the reference's once, gradient, masters and moments in fp32."""
        parameters = shape.weight_bytes / 2
        return 4 * shape.weight_bytes + parameters * (8 + 2 * 12 + 2)


def move(module: nn.Module) -> None:
    """Turn the reference's weights into the policy's: seeded noise, rounded to bfloat16 whatever they are held in."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for _, parameter in sorted(module.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32).to(parameter.device)
            parameter.copy_((parameter.float() * (1 + MOVED * noise)).bfloat16())


def compare(named: dict[str, Any], names: set[str], expected: Callable[[str], Any]) -> float:
    """Relative L2 error of gradients, by name, over all parameters; one at a time, since what they take stays taken."""
    import torch

    if named.keys() != names:
        raise ValueError(f"gradients of other parameters: {sorted(named.keys() ^ names)[:4]}")
    wrong = total = 0.0
    for name, gradient in named.items():
        own = expected(name).float()
        total += float(torch.sum(own**2, dtype=torch.float64))
        wrong += float(torch.sum(own.sub_(gradient.float().cpu()).square_(), dtype=torch.float64))
    return float((wrong / total) ** 0.5)
