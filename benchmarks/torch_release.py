"""The authors' released SiT + SRA (github.com/vvvvvjdy/SRA), driven as its train.py drives it.

Their files are read from a clone that the user names; they need PyTorch and timm. Left out of their
step are accelerate (its bfloat16 autocast stands here), the data loader and the progress bar, but
not the two losses that they read back after every step.
"""

import copy
import importlib
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_sit import Blocks, Shape, computing


class Release:
    """Model, EMA, loss, optimiser and samplers of the release in `folder`.

    Raises:
      ImportError: the folder is no clone of it, or a package that it needs is missing.
    """

    def __init__(self, folder: Path, shape: Shape, blocks: Blocks, dtype: torch.dtype):
        sys.path.insert(0, str(folder / "SiT-SRA"))
        try:
            models, loss = importlib.import_module("models.sit"), importlib.import_module("loss")
            self._samplers = importlib.import_module("samplers")
        finally:
            sys.path.pop(0)
        self._dtype = dtype
        self.model = models.SiT(
            input_size=shape.layout.height,
            patch_size=shape.layout.patch,
            in_channels=shape.layout.channels,
            hidden_size=shape.width,
            decoder_hidden_size=shape.width,
            depth=shape.depth,
            num_heads=shape.num_heads,
            num_classes=shape.conditioning.num_classes,
            use_cfg=True,
            fused_attn=True,
            qk_norm=False,
        )
        for name, weights in self.model.named_parameters():  # as in torch_sit.SiT
            if name.endswith(("adaLN_modulation.1.weight", "final_layer.linear.weight")):
                nn.init.normal_(weights, std=0.02)
        self.ema = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.model.train()
        self._loss = loss.SRALoss(
            block_out_s=blocks.student_block,
            block_out_t=blocks.teacher_block,
            t_max=blocks.gap_max,
            loss_type="sml1",
        )
        self._optimizer = torch.optim.AdamW(self.model.parameters(), 1e-4, weight_decay=0.0)

    def step(self, moments: Tensor, labels: Tensor) -> tuple[float, float]:
        """One update by `moments` [B, 2 C, H, W] and `labels` [B]; the two losses, read back."""
        mean, std = moments.float().chunk(2, dim=1)
        x = mean + std * torch.randn_like(mean)
        with computing(x.device, self._dtype):
            generation, alignment = self._loss(self.model, x, self.ema, labels)
            generation, alignment = generation.mean(), 0.2 * alignment.mean()
        (generation + alignment).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            averages = dict(self.ema.named_parameters())
            for name, value in self.model.named_parameters():
                averages[name].mul_(0.9999).add_(value.data, alpha=1 - 0.9999)
        return generation.item(), alignment.item()

    def sample(
        self, z: Tensor, labels: Tensor, solver: str, steps: int, scale: float, interval
    ) -> Tensor:
        """Latents [B, C, H, W] of the EMA from noise `z`, by "sde" or "heun"."""
        euler, sde = self._samplers.euler_sampler, self._samplers.euler_maruyama_sampler
        draw = {"sde": sde, "heun": euler}[solver]
        low, high = interval
        with torch.no_grad(), computing(z.device, self._dtype):
            return draw(
                self.ema,
                z,
                labels,
                num_steps=steps,
                heun=solver == "heun",
                cfg_scale=scale,
                guidance_low=low,
                guidance_high=high,
            )
