"""Encodes images, or imports latents that other scripts encoded, into a latent data set."""

import dataclasses
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sra_jax.codecs import Codec, SDVAECodec, codec_from_name
from sra_jax.core.errors import InputError
from sra_jax.core.progress import Progress
from sra_jax.data.crop import center_crop
from sra_jax.data.images import LabelledImages, open_labelled_images
from sra_jax.data.loading import Loader, map_ahead
from sra_jax.data.npy_import import NPY_PREFIX, NpyLatents
from sra_jax.data.records import Batch, read_spec
from sra_jax.data.sharded_writer import ShardedSet, record_bytes
from sra_jax.data.spec import LatentSpec, describe
from sra_jax.jobs.requests import EncodeRequest

DEFAULT_RESOLUTION = 256
MAX_RESOLUTION = 8192

# One device encodes at a time at most IMAGES_AT_ONCE images (more are not faster), and at most so
# many pixels: they fit into 16 GB, and on a CPU they do not take minutes.
PIXELS_AT_ONCE = 2**21
PIXELS_AT_ONCE_ON_CPU = 2**18
IMAGES_AT_ONCE = 32

_log = logging.getLogger(__name__)


class Producer(Protocol):
    """Makes latent records from numbered items.

    Attributes:
        spec: metadata of the new data set.
        identity: a text that changes if the items change.
        records_per_item: the most records that one item gives.
    """

    spec: LatentSpec
    identity: str
    records_per_item: int

    def __len__(self) -> int:
        """The number of items."""

    def batches(self, items: range, skipped: list[str]) -> Iterator[Batch]:
        """Yields moments `[B, h, w, 2c]` and labels `[B]` of `items`.

        The names of items left out, with the reason, are added to `skipped`. Raises InputError.
        """


def encode(request: EncodeRequest) -> None:
    """Writes the data set of `request`, or resumes writing it, together with the other processes.

    Raises:
        InputError: something about the request, the source or the disk is wrong.
        RunError: the disk is full or fails, or another process has failed.
    """
    job = EncodingJob(request.out, open_producer(request), request.shard_bytes)
    _run(job, jax.process_index(), jax.process_count())


def open_producer(request: EncodeRequest) -> Producer:
    """Opens what makes the records of `request`.

    Raises:
        InputError: there is no such source, codec or weights, they do not fit together, or the
            data set would be written into its own source.
    """
    _check_out(request)
    if request.resolution is not None and not 1 <= request.resolution <= MAX_RESOLUTION:
        raise InputError(
            f"resolution is {request.resolution}, expected 1 to {MAX_RESOLUTION}, a multiple of "
            f"the codec's downsampling; give --resolution={DEFAULT_RESOLUTION}, say"
        )
    if not request.source.startswith(NPY_PREFIX):
        images = open_labelled_images(request.source, request.data_dir)
        codec = codec_from_name(request.codec or SDVAECodec.name, vae=request.vae)
        return ImageLatents(images, codec, request)
    for name in ("vae", "resolution", "flip", "data_dir"):
        if (given := getattr(request, name)) is not None and given is not False:
            raise InputError(f"--{name} is for images, but {request.source} is encoded already")
    if request.codec not in (None, SDVAECodec.name):
        raise InputError(f"{NPY_PREFIX}FOLDER holds latents of sd_vae, not of {request.codec}")
    folder = Path(request.source.removeprefix(NPY_PREFIX))
    return NpyLatents(folder, request.dtype, request.skip_bad)


class ImageLatents:
    """Crops images and encodes them on all devices of this process: a `Producer`."""

    def __init__(self, images: LabelledImages, codec: Codec, request: EncodeRequest):
        """Compiles the encoder. Raises InputError if it does not take the resolution."""
        self._images, self._flip = images, request.flip
        self._resolution = _check_resolution(request.resolution, codec)
        self._encoder = DeviceEncoder(codec, self._resolution)
        self.records_per_item = 2 if request.flip else 1
        self.identity = images.identity
        height, width, channels = self._encoder.moments_shape
        self.spec = LatentSpec(
            codec=codec.name,
            scale=codec.scale,
            shift=codec.shift,
            latent_shape=(height, width, channels // 2),
            resolution=self._resolution,
            image_channels=3,
            num_classes=images.num_classes,
            dtype=request.dtype,
            source=request.source,
            weights=codec.fingerprint if isinstance(codec, SDVAECodec) else "",
            crop="adm",
            flips=request.flip,
        )
        self._loader = Loader(
            read=self._read,
            name=images.name_of,
            batch_size=self._encoder.batch_size,
            threads=os.cpu_count() or 1,
            skip_bad=request.skip_bad,
        )

    def __len__(self) -> int:
        return self._images.count

    def batches(self, items: range, skipped: list[str]) -> Iterator[Batch]:
        """See `Producer`. The mirrored image follows the image itself."""
        with ThreadPoolExecutor(1) as pool:  # encodes while the batch before is being written
            loaded = self._loader.batches(items, skipped)
            yield from map_ahead(pool, self._encode, loaded, ahead=1)

    def _read(self, index: int) -> tuple[list[np.ndarray], int]:
        image, label = self._images.read(index)
        pixels = center_crop(image, self._resolution)
        return ([pixels, pixels[:, ::-1]] if self._flip else [pixels]), label

    def _encode(self, batch: Batch) -> Batch:
        images, labels = batch
        return self._encoder(images), labels


class DeviceEncoder:
    """A codec's encoder over all devices of this process, compiled for one batch size.

    Attributes:
        batch_size: images in a batch, B.
        moments_shape: shape of one image's moments, `(h, w, 2c)`.
    """

    def __init__(self, codec: Codec, resolution: int):
        """Compiles by encoding black images. Raises InputError if the codec does not take them."""
        devices = jax.local_devices()
        mesh = Mesh(np.array(devices), ("data",))
        self._sharding = NamedSharding(mesh, PartitionSpec("data"))
        if isinstance(codec, SDVAECodec):  # or every call would copy the weights to all devices
            copied = NamedSharding(mesh, PartitionSpec())
            codec = dataclasses.replace(codec, params=jax.device_put(codec.params, copied))
        self._codec = codec
        on_cpu = devices[0].platform == "cpu"
        pixels = PIXELS_AT_ONCE_ON_CPU if on_cpu else PIXELS_AT_ONCE
        at_once = min(max(pixels // resolution**2, 1), IMAGES_AT_ONCE)
        self.batch_size = len(devices) * at_once
        black = np.zeros((self.batch_size, resolution, resolution, 3), np.uint8)
        self.moments_shape = self(black).shape[1:]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images uint8 `[b, H, W, 3]`, b at most B -> moments float32 `[b, h, w, 2c]`."""
        missing = self.batch_size - len(images)
        filled = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
        return self._codec.encode(jax.device_put(filled, self._sharding))[: len(images)]


class EncodingJob:
    """Divides a producer's items into the shards of a data set, and writes them."""

    def __init__(self, out: str, producer: Producer, shard_bytes: int):
        """Divides the items into shards of about `shard_bytes`. Touches no file."""
        item_bytes = producer.records_per_item * record_bytes(producer.spec)
        self.producer = producer
        self._items_per_shard = max(shard_bytes // item_bytes, 1)
        num_shards = -(-len(producer) // self._items_per_shard)
        self.shards = ShardedSet(out, producer.spec, num_shards, producer.identity)

    def items(self, shard: int) -> range:
        """The items of a shard."""
        first = shard * self._items_per_shard
        return range(first, min(first + self._items_per_shard, len(self.producer)))

    def begin(self, process: int, count: int) -> list[int]:
        """The shards that process `process` of `count` must still write. Raises InputError."""
        left = self.shards.begin(range(process, self.shards.num_shards, count))
        records = len(self.producer) * self.producer.records_per_item
        _log.info("disk     %s", self.shards.check_space(records))
        return left

    def write(self, shards: list[int]) -> None:
        """Writes `shards` and logs the progress. Raises InputError and RunError."""
        progress = Progress("encoding", sum(len(self.items(shard)) for shard in shards), "images")
        for shard in shards:
            self.shards.check_others()
            items, skipped = self.items(shard), []
            batches = self.producer.batches(items, skipped)
            self.shards.write(shard, self._counted(batches, progress), skipped)
            for name in skipped:
                _log.warning("skipped  %s", name)

    def _counted(self, batches: Iterator[Batch], progress: Progress) -> Iterator[Batch]:
        """The same batches; each is added to `progress` once it is written."""
        for batch in batches:
            yield batch
            progress.add(len(batch[1]) / self.producer.records_per_item)


def _run(job: EncodingJob, process: int, count: int) -> None:
    shards = job.shards
    if not shards.is_whole():
        with shards.locked(process):
            if not shards.is_whole():  # another run may have finished it meanwhile
                _write_and_finish(job, process, count)
    if process == 0:
        shards.clean()
        _log.info("%s", describe(read_spec(shards.out)))
        _log.info("finished: %s", shards.out)


def _write_and_finish(job: EncodingJob, process: int, count: int) -> None:
    shards = job.shards
    left = job.begin(process, count)
    # After this barrier every report of a finished shard is true: damaged ones are removed.
    multihost_utils.sync_global_devices("sra-jax encode: shards checked")
    _log.info(
        "images   %s in %s shards, %s of this process to write",
        f"{len(job.producer):,}",
        shards.num_shards,
        len(left),
    )
    job.write(left)
    if process == 0:
        shards.await_all()
        shards.finish()
    else:
        shards.await_finish()


def _check_out(request: EncodeRequest) -> None:
    """Raises InputError if `out` is inside the folder that is read."""
    source = request.source.removeprefix(NPY_PREFIX)
    if not os.path.isdir(source):
        return
    if Path(os.path.realpath(request.out)).is_relative_to(os.path.realpath(source)):
        raise InputError(
            f"--out={request.out} lies in the source {source}, expected a place outside of it; "
            "choose another --out"
        )


def _check_resolution(resolution: int | None, codec: Codec) -> int:
    """The resolution, or the default. Raises InputError if the codec cannot take it."""
    resolution = DEFAULT_RESOLUTION if resolution is None else resolution
    if resolution % codec.downsampling:
        raise InputError(
            f"resolution is {resolution}, expected a multiple of {codec.downsampling} up to "
            f"{MAX_RESOLUTION}; give --resolution={DEFAULT_RESOLUTION}, say"
        )
    return resolution
