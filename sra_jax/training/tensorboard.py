"""TensorBoard events through clu's writer interface, without TensorFlow.

clu's own summary writer needs TensorFlow, and importing any clu writer imports it. This module puts
an empty module in its place, so it must be imported before anything of `clu.metric_writers`.
"""

import io
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from types import ModuleType

import numpy as np
from etils import epath
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.io.gfile import GFile
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

from sra_jax.core.files import in_bucket

FLUSH_SECONDS = 120
BUCKET_FILE_BYTES = 2**24  # a larger file is closed and a new one begun

_log = logging.getLogger(__name__)
_stand_in = ModuleType("clu.metric_writers.summary_writer")
_stand_in.SummaryWriter = None
sys.modules.setdefault(_stand_in.__name__, _stand_in)

from clu.metric_writers import AsyncWriter, MetricWriter  # noqa: E402


class _BucketFile(io.BytesIO):
    """A new file in a bucket. Buckets cannot append, so each flush uploads the whole file."""

    def __init__(self, path: str):
        super().__init__()
        self._path = epath.Path(path)

    def flush(self) -> None:
        self._path.write_bytes(self.getvalue())

    def close(self) -> None:
        if not self.closed:
            self.flush()
        super().close()


class EventWriter(MetricWriter):
    """Writes event files in `logdir`, which it makes; the part of clu's interface that we use.

    An error of the file is logged once, and nothing is written after it: the run continues.
    """

    def __init__(self, logdir: str):
        self._logdir, self._failed = logdir, False
        self._begin_file()

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes each scalar under its name."""
        values = []
        for tag, scalar in scalars.items():
            value = Summary.Value(tag=tag, tensor=make_tensor_proto(np.float32(scalar)))
            value.metadata.plugin_data.plugin_name = "scalars"
            values.append(value)
        summary = Summary(value=values)
        self._write(Event(wall_time=time.time(), step=step, summary=summary))

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes the first of each `images` uint8 [N, H, W, 3] under its name."""
        values = []
        for tag, batch in images.items():
            picture = io.BytesIO()
            Image.fromarray(batch[0]).save(picture, format="PNG")
            height, width, channels = batch.shape[1:]
            summary = Summary.Image(
                height=height,
                width=width,
                colorspace=channels,
                encoded_image_string=picture.getvalue(),
            )
            values.append(Summary.Value(tag=tag, image=summary))
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def flush(self) -> None:
        """Returns when everything is in the file."""
        if in_bucket(self._path) and self._file.tell() > BUCKET_FILE_BYTES:
            self._try(self._records.close)
            self._begin_file()
        else:
            self._try(self._records.flush)

    def close(self) -> None:
        """Flushes and closes the file."""
        self._try(self._records.close)

    def _begin_file(self) -> None:
        stamp = f"{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._path = os.path.join(self._logdir, f"events.out.tfevents.{stamp}")
        self._try(lambda: epath.Path(self._logdir).mkdir(parents=True, exist_ok=True))
        self._file = _BucketFile(self._path) if in_bucket(self._path) else GFile(self._path, "wb")
        self._records, self._flushed_at = RecordWriter(self._file), time.monotonic()
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def _write(self, event: Event) -> None:
        self._try(lambda: self._records.write(event.SerializeToString()))
        if time.monotonic() - self._flushed_at > FLUSH_SECONDS:
            self._flushed_at = time.monotonic()
            self.flush()

    def _try(self, write: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            write()
        except Exception as error:  # an OSError of the disk, or any error of a bucket's library
            self._failed = True
            reason = getattr(error, "strerror", None) or error
            _log.warning(
                "cannot write %s (%s); training goes on without TensorBoard", self._path, reason
            )

    def _unused(self, *args, **kwargs) -> None:
        raise NotImplementedError("this project writes scalars and images only")

    write_summaries = write_videos = write_audios = _unused
    write_texts = write_histograms = write_hparams = _unused


def make_writer(logdir: str) -> MetricWriter:
    """Returns a writer whose calls return at once; its own thread writes."""
    return AsyncWriter(EventWriter(logdir))
