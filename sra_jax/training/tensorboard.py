"""TensorBoard events through clu's writer interface, without TensorFlow.

clu's own summary writer is made of TensorFlow, and importing any clu writer imports it. This module
puts an empty one in its place, so it must be imported before anything of `clu.metric_writers`.
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
from tensorboard.compat import tf
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

FLUSH_SECONDS = 120  # to a bucket a file is sent whole each time

_log = logging.getLogger(__name__)
_stand_in = ModuleType("clu.metric_writers.summary_writer")
_stand_in.SummaryWriter = None
sys.modules.setdefault(_stand_in.__name__, _stand_in)

from clu.metric_writers import AsyncWriter, MetricWriter  # noqa: E402


class EventWriter(MetricWriter):
    """Writes an event file in `logdir`, which it makes; of clu's interface, what this project uses.

    Where the file cannot be written, that is logged once, and nothing more is: no run ends for it.
    """

    def __init__(self, logdir: str):
        stamp = f"{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._path = os.path.join(logdir, f"events.out.tfevents.{stamp}")
        self._failed = False
        self._flushed_at = time.monotonic()
        self._try(lambda: epath.Path(logdir).mkdir(parents=True, exist_ok=True))
        self._records = RecordWriter(tf.io.gfile.GFile(self._path, "wb"))
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

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
        """Returns when all that was written is in the file."""
        self._try(self._records.flush)

    def close(self) -> None:
        """Flushes, and closes the file."""
        self._try(self._records.close)

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
        except Exception as error:  # a disk's OSError, or whatever a bucket's library raises
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
    """A writer that returns at once and writes from its own thread."""
    return AsyncWriter(EventWriter(logdir))
