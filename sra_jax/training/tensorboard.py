"""TensorBoard events through clu's writer interface, without TensorFlow.

clu's own summary writer is made of TensorFlow, and importing any clu writer imports it. This module
puts an empty one in its place, so it must be imported before anything of `clu.metric_writers`.
"""

import io
import sys
import time
from collections.abc import Mapping
from types import ModuleType

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_tensor_proto

_stand_in = ModuleType("clu.metric_writers.summary_writer")
_stand_in.SummaryWriter = None
sys.modules.setdefault(_stand_in.__name__, _stand_in)

from clu.metric_writers import AsyncWriter, MetricWriter  # noqa: E402


class EventWriter(MetricWriter):
    """Writes an event file in `logdir`; of clu's interface, what this project uses."""

    def __init__(self, logdir: str):
        self._events = EventFileWriter(logdir)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes each scalar under its name."""
        values = []
        for tag, scalar in scalars.items():
            value = Summary.Value(tag=tag, tensor=make_tensor_proto(np.float32(scalar)))
            value.metadata.plugin_data.plugin_name = "scalars"
            values.append(value)
        summary = Summary(value=values)
        self._events.add_event(Event(wall_time=time.time(), step=step, summary=summary))

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
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
        self._events.add_event(event)

    def flush(self) -> None:
        """Returns when all that was written is in the file."""
        self._events.flush()

    def close(self) -> None:
        """Flushes, and closes the file."""
        self._events.close()

    def _unused(self, *args, **kwargs) -> None:
        raise NotImplementedError("this project writes scalars and images only")

    write_summaries = write_videos = write_audios = _unused
    write_texts = write_histograms = write_hparams = _unused


def make_writer(logdir: str) -> MetricWriter:
    """A writer that returns at once and writes from its own thread."""
    return AsyncWriter(EventWriter(logdir))
