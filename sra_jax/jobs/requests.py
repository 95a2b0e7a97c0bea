"""The arguments of each job. The commands make their flags from these dataclasses.

A field with a `help` text is a flag of the command. This module imports nothing but the standard
library, so that `sra-jax VERB --help` answers at once.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any


def _flag(help: str, default: Any = dataclasses.MISSING, was: str | None = None) -> Any:
    """A field that is a flag; `was` is the name that it had in version 0.1."""
    return dataclasses.field(default=default, metadata={"help": help, "was": was})


@dataclass(frozen=True)
class SampleRequest:
    """A request for samples; None leaves solver, steps and guidance to the run's config."""

    workdir: str = _flag("Directory of the run.")
    out: str = _flag("File to write, .npz.")
    grid: str | None = _flag("PNG of the first 100 images, ten a row.", None)
    png_dir: str | None = _flag("Directory to write each image to, as a PNG.", None)
    num: int = _flag("How many images.", 100)
    labels: str = _flag("random, balanced, or a list like 3,1,4.", "balanced")
    solver: str | None = _flag("sde, euler, heun; for DiT ddpm, ddim.", None)
    solver_steps: str | None = _flag(
        "Number of solver steps; for DiT also counts like 10,20.", None, was="steps"
    )
    guidance: float | None = _flag("Classifier-free guidance scale; 1 is none.", None)
    guidance_interval: str | None = _flag("LOW,HIGH in time: 0 data, 1 noise.", None)
    guidance_channels: int | None = _flag("Leading channels guided; 0 is all.", None)
    seed: int = _flag("Image i is a function of the seed and i.", 0)
    weights: str = _flag("ema or student.", "ema")
    checkpoint: int | None = _flag(
        "Step of the checkpoint to use; the newest if not given.", None, was="step"
    )
    chunk: int = _flag("Images that one device samples at a time.", 64)
    vae: str | None = _flag("Folder of the VAE's weights, for latents of codec sd_vae.", None)


@dataclass(frozen=True)
class EvaluateRequest:
    """What to measure: either `samples` or `workdir`; neither, to only save a reference.

    `num`, `vae` and `checkpoint` go with `workdir`; None samples 50,000 images from the newest
    checkpoint. `features` None is "inception" with an `inception` file, else "classifier".
    """

    reference: str = _flag("Real images, their statistics, embedded:digits or embedded:shapes.")
    samples: str | None = _flag("Images to measure.", None)
    workdir: str | None = _flag("Run to sample them from, with its EMA weights.", None)
    num: int | None = _flag("How many to sample from --workdir; 50,000 if not given.", None)
    vae: str | None = _flag("Folder of the VAE's weights, for latents of codec sd_vae.", None)
    checkpoint: int | None = _flag(
        "Step of the checkpoint of --workdir; the newest if not given.", None, was="step"
    )
    features: str | None = _flag(
        "inception or classifier; inception by default if --inception is given.", None
    )
    metrics: str | None = _flag("Some of fid,sfid,is,pr; all of them if not given.", None)
    inception: str | None = _flag("Inception's weights, .pth or .safetensors.", None)
    save_reference: str | None = _flag("File for the reference's statistics, .npz.", None)


@dataclass(frozen=True)
class ProbeRequest:
    """Arguments of a probe.

    None stands for a default: the newest checkpoint, the run's own data, a fifth of the data as
    test_data, three images of different classes, and WORKDIR/probe as out.
    """

    workdir: str = _flag("Directory of the run.")
    blocks: str = _flag("all, or a list like 1,8,20, counted from 1.", "all")
    times: str = _flag("From 0 (data) to 1 (noise).", "0.1,0.3,0.5,0.7")
    weights: str = _flag("ema or student.", "ema")
    checkpoints: str | None = _flag(
        "Steps of checkpoints, like 1000,2000; the newest if not given.", None, was="steps"
    )
    every: int | None = _flag("All checkpoints whose step is a multiple of this.", None)
    data: str | None = _flag(
        "Latents to train on, embedded:digits or embedded:shapes; else the run's own.", None
    )
    test_data: str | None = _flag(
        "Latents to test on, likewise; else a fifth of --data is held out.", None
    )
    num: int = _flag("Images of each set, chosen by the seed; 0 is all.", 50_000)
    protocol: str = _flag(
        "paper (80 epochs of Adam), quick (L-BFGS), or auto: by the number of images.", "auto"
    )
    images: str | None = _flag("Numbers of the images in pca.png, like 0,7.", None)
    seed: int = _flag("Of the noise, the train/test split and the batches.", 0)
    out: str | None = _flag("Directory to write to; WORKDIR/probe if not given.", None)


@dataclass(frozen=True)
class EncodeRequest:
    """What to encode; codec is sd_vae and resolution is 256 if None.

    `shard_bytes` is the size of a record file; a kill loses at most one of each process.
    """

    source: str = _flag("The images, or latents, to read; see above.")
    out: str = _flag("Directory of the data set to write.")
    codec: str | None = _flag("sd_vae (the default) or pixels.", None)
    vae: str | None = _flag("Folder of the VAE's weights, for sd_vae.", None)
    resolution: int | None = _flag(
        "Side of the crops, a multiple of the codec's downsampling (8 for sd_vae, 1 for pixels) up "
        "to 8192; 256 if not given.",
        None,
    )
    flip: bool = _flag("Store a mirrored copy of each image too, as a further record.", False)
    skip_bad: bool = _flag("Leave bad images out, and list them.", False)
    dtype: str = _flag("Dtype of the stored latents: float16 or float32.", "float16")
    data_dir: str | None = _flag("Directory of TFDS, for tfds:NAME.", None)
    shard_bytes: int = 2**28


@dataclass(frozen=True)
class ConvertRequest:
    """What to convert."""

    source: str = _flag("File (.pt, .pth, .safetensors), or workdir.")
    out: str = _flag("Workdir to make, or file to write (.pt, .safetensors).")
    num_heads: int | None = _flag(
        "Attention heads, if neither the file nor the model's width tells.", None
    )
    layout: str | None = _flag(
        "Whose model it is, if that cannot be told: sra, repa, sit or dit (original).", None
    )
    allow_mismatch: bool = _flag(
        "Drop tensors that are left over, and initialise missing ones.", False
    )
    weights: str = _flag("Of a workdir: ema or student.", "ema")
    checkpoint: int | None = _flag(
        "Of a workdir: the step of its checkpoint; the newest if not given.", None, was="step"
    )


@dataclass(frozen=True)
class CompileRequest:
    """What to compile."""

    topology: str = _flag("TPU slice: v5e:4x4, v4:2x2x4 and so on.")
    sweep: bool = _flag("Try and rank meshes and rematerialisation policies.", False)
    sampler: bool = _flag("Compile the config's sampler instead.", False)
    sampler_batch: int = _flag("Images that the sampler makes at a time.", 256)
