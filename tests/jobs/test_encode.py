"""Images become a data set, whatever happens on the way; or one line says why not."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from commands import DEADLINE, environment, finish, start_two
from flax.traverse_util import flatten_dict
from PIL import Image
from safetensors.numpy import save_file

from sra_jax.codecs import codec_from_name
from sra_jax.core.errors import InputError
from sra_jax.data.crop import center_crop
from sra_jax.data.embedded import EMBEDDED
from sra_jax.data.records import open_records
from sra_jax.jobs.encode import EncodeRequest, EncodingJob, encode, open_producer

SIDE = 8  # of the crops
SMALL = 2**14  # bytes of a shard: some seventeen images of that side


def make_tree(folder, count=100, classes=3):
    """Images of many sizes in class directories; in the order of their encoding."""
    rng = np.random.default_rng(0)
    images = []
    for i in range(count):
        path = folder / f"n{i * classes // count:02d}/{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(rng.integers(0, 256, (*rng.integers(5, 40, 2), 3), np.uint8))
        image.save(path)
        images.append(image)
    return images


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A folder of a hundred images, and the images."""
    folder = tmp_path_factory.mktemp("images") / "train"
    return folder, make_tree(folder)


def request(source, out, **changes):
    fields = {"codec": "pixels", "resolution": SIDE, "shard_bytes": SMALL} | changes
    return EncodeRequest(source=str(source), out=str(out), **fields)


def contents(directory):
    return {path.name: path.read_bytes() for path in Path(directory).iterdir()}


def read_all(out):
    source = open_records(out)
    batch = source.read(range(len(source)))
    return source.spec, batch["moments"], batch["labels"]


@pytest.mark.parametrize("flip", [False, True])
def test_a_tree_becomes_a_data_set_with_its_manifest(tree, tmp_path, flip):
    folder, images = tree
    encode(request(folder, tmp_path / "set", flip=flip))
    spec, moments, labels = read_all(tmp_path / "set")
    crops = np.stack([center_crop(image, SIDE) for image in images])
    classes = np.repeat([0, 1, 2], [34, 33, 33])
    if flip:
        crops = np.stack([crops, crops[:, :, ::-1]], axis=1).reshape(-1, SIDE, SIDE, 3)
        classes = classes.repeat(2)
    expected = codec_from_name("pixels").encode(crops).astype(np.float16)
    np.testing.assert_array_equal(moments, expected)
    np.testing.assert_array_equal(labels, classes)
    assert (spec.codec, spec.scale, spec.shift, spec.weights) == ("pixels", 1.0, 0.0, "")
    assert (spec.crop, spec.resolution, spec.flips, spec.skipped) == ("adm", SIDE, flip, ())
    assert spec.class_counts == tuple(np.bincount(classes)) and spec.tool_version
    assert spec.source == str(folder) and spec.num_examples == len(classes)


def test_tfds_alone_reads_the_same_values(tree, tmp_path):
    encode(request(tree[0], tmp_path / "set", dtype="float32"))
    _, moments, labels = read_all(tmp_path / "set")
    records = tfds.builder_from_directory(tmp_path / "set").as_data_source(split="train")
    assert len(records) == 100
    for record, row, label in zip(records, moments, labels, strict=True):
        np.testing.assert_array_equal(record["moments"], row)
        assert record["label"] == label and row.dtype == np.float32


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_share_the_work(tree, tmp_path, hosts):
    encode(request(tree[0], tmp_path / "whole"))
    jobs = request(tree[0], tmp_path / "shared")
    for host in range(hosts):
        producer = open_producer(jobs)
        job = EncodingJob(jobs.out, producer, jobs.shard_bytes)
        with job.shards.locked(host):
            left = job.begin(host, hosts)
            assert left == list(range(host, job.shards.num_shards, hosts)) and left
            job.write(left)
    job.shards.finish()
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")


def save_tiny_vae(folder):
    """A VAE of two levels with random weights, as diffusers would save it."""
    import jax
    import jax.numpy as jnp

    from sra_jax.codecs.sd_vae import AutoencoderKL, VAEConfig

    shape = {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 2,
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "scaling_factor": 0.5,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(shape | {"_class_name": "AutoencoderKL"}))
    del shape["scaling_factor"]
    model = AutoencoderKL(VAEConfig(**shape | {"block_out_channels": (8, 16)}))
    both = lambda m, x, z: (m.encode(x), m.decode(z))  # noqa: E731
    init = lambda *inputs: model.init(jax.random.key(0), *inputs, method=both)["params"]  # noqa: E731
    leaves = flatten_dict(jax.eval_shape(init, jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 4, 4, 2))))
    rng, tensors = np.random.default_rng(0), {}
    for (*modules, leaf), array in leaves.items():
        name = ".".join([*modules, "bias" if leaf == "bias" else "weight"])
        axes = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}[array.ndim]
        numbers = rng.normal(scale=0.2, size=[array.shape[axis] for axis in axes])
        tensors[name] = numbers.astype(np.float32)
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    return folder


def test_a_vae_encodes_on_all_devices_and_the_manifest_knows_its_weights(tree, tmp_path):
    folder, images = tree
    vae = save_tiny_vae(tmp_path / "vae")
    encode(request(folder, tmp_path / "set", codec=None, vae=str(vae), flip=True))
    spec, moments, _ = read_all(tmp_path / "set")
    codec = codec_from_name("sd_vae", vae=vae)
    assert (spec.codec, spec.scale, spec.latent_shape) == ("sd_vae", 0.5, (4, 4, 2))
    assert spec.weights == codec.fingerprint
    crops = np.stack([center_crop(image, SIDE) for image in images])
    np.testing.assert_allclose(moments[::2], codec.encode(crops), rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(moments[1::2], codec.encode(crops[:, :, ::-1]), rtol=2e-3, atol=2e-4)


def test_weights_that_do_not_fit_are_refused(tree, tmp_path):
    vae = save_tiny_vae(tmp_path / "vae")
    config = json.loads((vae / "config.json").read_text())
    (vae / "config.json").write_text(json.dumps(config | {"latent_channels": 4}))
    with pytest.raises(InputError, match=r"VAE.s tensors do not fit .* has shape"):
        encode(request(tree[0], tmp_path / "set", codec="sd_vae", vae=str(vae)))
    assert not (tmp_path / "set.encoding").exists()


def test_a_bad_image_stops_the_run_which_goes_on_without_it(tmp_path):
    folder = tmp_path / "train"
    make_tree(folder, count=40)
    bad = folder / "n01/0020.png"
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(InputError, match=f"cannot use {bad} .*unreadable.*--skip_bad"):
        encode(request(folder, tmp_path / "set"))
    assert len(list((tmp_path / "set.encoding/reports").iterdir())) == 1
    encode(request(folder, tmp_path / "set", skip_bad=True))
    spec, moments, _ = read_all(tmp_path / "set")
    assert len(moments) == 39 and spec.class_counts == (14, 12, 13)
    assert len(spec.skipped) == 1 and spec.skipped[0].startswith(f"{bad} (unreadable")


def test_latents_of_other_scripts_are_imported(tmp_path):
    folder, labels = tmp_path / "vae-sd", []
    rng = np.random.default_rng(0)
    for i in range(20):
        name = f"00000/img-mean-std-{i:08d}.npy"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / name, rng.uniform(size=(8, 4, 4)).astype(np.float32))
        labels.append([name, i % 7])
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    out = tmp_path / "set"
    encode(request(f"npy:{folder}", out, codec=None, resolution=None))
    spec, moments, found = read_all(out)
    assert (spec.codec, spec.scale, spec.resolution) == ("sd_vae", 0.18215, 32)
    for row, label, (name, expected) in zip(moments, found, labels, strict=True):
        stored = np.load(folder / name).transpose(1, 2, 0).astype(np.float16)
        np.testing.assert_array_equal(row, stored)
        assert label == expected
    with pytest.raises(InputError, match="--resolution is for images"):
        encode(request(f"npy:{folder}", out, codec=None))
    with pytest.raises(InputError, match="holds latents of sd_vae, not of pixels"):
        encode(request(f"npy:{folder}", out, resolution=None))


def test_bad_requests_are_answered_in_one_line_and_touch_nothing(forks, tree, tmp_path):
    out = tmp_path / "set"
    good = {"source": tree[0], "out": out, "codec": "pixels", "resolution": SIDE}
    for changes, message in (
        ({"source": "nowhere"}, "no file or folder nowhere, expected tfds:NAME, a folder"),
        ({"codec": "pixel"}, "did you mean 'pixels'?"),
        ({"codec": "sd_vae"}, "codec sd_vae needs its weights"),
        ({"vae": "somewhere"}, "codec pixels has no weights"),
        ({"resolution": 0}, "resolution is 0, expected 1 to 8192"),
        ({"resolution": -256, "codec": "sd_vae"}, "resolution is -256, expected 1 to 8192"),
        ({"resolution": 8193}, "resolution is 8193, expected 1 to 8192"),
        ({"resolution": "x"}, "cannot take --resolution=x, expected an integer"),
        ({"flip": "maybe"}, "cannot take --flip=maybe, expected True or False"),
        ({"out": tree[0] / "deeper/set"}, f"lies in the source {tree[0]}, expected a place"),
        ({"out": tree[0]}, f"lies in the source {tree[0]}, expected a place"),
        ({"source": "tfds:cifar10", "data_dir": out}, "cannot open tfds:cifar10 in"),
        ({"out": "gs://bucket/set"}, "cannot write to gs://bucket/set; write to a disk"),
        ({"dtype": "float8"}, "unknown dtype of stored moments 'float8'"),
        ({"source": "npy:nowhere"}, "--resolution is for images"),
    ):
        flags = [f"--{name}={value}" for name, value in (good | changes).items()]
        result = forks.run("encode", flags)
        assert result.code == 2, (changes, result)
        (line,) = result.err.splitlines()
        assert line.startswith("error: ") and message in line
    assert list(tmp_path.iterdir()) == []


def test_help_shows_examples_and_flags(forks):
    result = forks.run("encode", ["--help"])
    assert (result.code, result.err) == (0, "")
    for flag in ("source", "out", "codec", "vae", "resolution", "dtype", "data_dir"):
        assert f"--{flag}: " in result.out
    assert "--[no]flip: " in result.out and "--[no]skip_bad: " in result.out
    assert "python -m sra_jax encode --source=" in result.out
    assert all(name in result.out for name in EMBEDDED)


def test_the_command_says_what_it_does_and_may_be_run_again(forks, tree, tmp_path):
    flags = [f"--source={tree[0]}", f"--out={tmp_path / 'set'}", "--codec=pixels"]
    result = forks.run("encode", [*flags, f"--resolution={SIDE}"])
    assert (result.code, result.err) == (0, "")
    for part in (
        "MB of it written; ",
        "100 in 1 shards",
        "each of 33 to 34 records",
        "finished: ",
    ):
        assert part in result.out
    before = contents(tmp_path / "set")
    result = forks.run("encode", [*flags, f"--resolution={SIDE}"])
    assert result.code == 0 and "finished: " in result.out and "images" not in result.out
    result = forks.run("encode", [*flags, f"--resolution={2 * SIDE}"])
    assert result.code == 2 and "resolution was 8, is 16" in result.err
    assert contents(tmp_path / "set") == before


def test_a_disk_that_is_full_ends_a_real_process_in_one_line(tree, tmp_path):
    flags = [f"--source={tree[0]}", f"--out={tmp_path / 'set'}", "--codec=pixels"]
    command = [sys.executable, "-m", "sra_jax", "encode", *flags, f"--resolution={SIDE}"]
    limited = ["bash", "-c", 'ulimit -f 48; exec "$@"', "bash", *command]  # kilobytes a file
    result = subprocess.run(
        limited, env=environment(), capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "File too large" in line and "run the same command again" in line
    encode(request(tree[0], tmp_path / "set", shard_bytes=2**28))


# Encodes, and sends itself a signal at the N-th call of a function.
# Arguments: MODULE FUNCTION N SOURCE OUT SIGNAL.
KILLED = """
import importlib, os, signal, sys
from sra_jax.cli.exit import install_signal_handlers
from sra_jax.jobs.encode import EncodeRequest, encode

install_signal_handlers()
module = importlib.import_module(sys.argv[1])
name, fatal, source, out = sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5]
owner = module
if "." in name:
    owner, name = getattr(module, name.split(".")[0]), name.split(".")[1]
original, calls = getattr(owner, name), 0

def counting(*arguments):
    global calls
    calls += 1
    if calls == fatal:
        os.kill(os.getpid(), getattr(signal, sys.argv[6]))
    return original(*arguments)

setattr(owner, name, counting)
encode(EncodeRequest(source, out, codec="pixels", resolution=8, shard_bytes=2**14))
"""


def encode_killed(source, out, where, name, call, number="SIGKILL"):
    arguments = [where, name, str(call), str(source), str(out), number]
    command = [sys.executable, "-c", KILLED, *arguments]
    return subprocess.run(command, env=environment(), timeout=DEADLINE, check=False).returncode


def test_a_run_killed_again_and_again_ends_as_an_uninterrupted_one(tree, tmp_path):
    encode(request(tree[0], tmp_path / "whole"))
    out, scratch = tmp_path / "set", tmp_path / "set.encoding"
    times = {}
    for where, name, call in (
        ("sra_jax.jobs.encode", "center_crop", 30),  # while the second shard is written
        (
            "sra_jax.data.sharded_writer",
            "_write_json",
            3,
        ),  # shards two to three renamed, not reported
        ("sra_jax.data.sharded_writer", "write_metadata", 1),  # all shards finished
        ("sra_jax.data.sharded_writer", "ShardedSet.clean", 1),  # renamed, but not cleaned up
    ):
        assert encode_killed(tree[0], out, where, name, call) == -signal.SIGKILL
        # What is finished is never written again.
        for report in scratch.glob("reports/[0-9]*.json"):
            (shard,) = [
                *scratch.glob(f"set/*-{report.stem}-of-*"),
                *out.glob(f"*-{report.stem}-of-*"),
            ]
            modified = shard.stat().st_mtime_ns
            assert times.setdefault(report.stem, modified) == modified
    assert len(times) > 4
    encode(request(tree[0], out))
    assert contents(out) == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "whole"]


def test_sigterm_stops_with_code_75_and_the_same_command_goes_on(tree, tmp_path):
    out = tmp_path / "set"
    code = encode_killed(tree[0], out, "sra_jax.data.sharded_writer", "write_shard", 3, "SIGTERM")
    assert code == 75
    assert len(list((tmp_path / "set.encoding/reports").iterdir())) == 2
    encode(request(tree[0], out))


def test_two_real_processes_write_one_set(tree, tmp_path):
    flags = [f"--source={tree[0]}", f"--out={tmp_path / 'set'}", "--codec=pixels"]
    flags += [f"--resolution={SIDE}"]
    results = [finish(process) for process in start_two("encode", flags)]
    assert [result.code for result in results] == [0, 0], results
    encode(request(tree[0], tmp_path / "alone", shard_bytes=2**28))
    assert contents(tmp_path / "set") == contents(tmp_path / "alone")
    assert not os.path.exists(tmp_path / "set.encoding")
