"""The evaluation with features, from files to numbers; a small network stands for Inception."""

import json
import runpy
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import REPOSITORY
from PIL import Image
from tiny import hurry_classifier

from sra_jax.core.errors import InputError
from sra_jax.data.images import ArrayImages
from sra_jax.evaluation import extraction, reference
from sra_jax.evaluation import metrics as suite
from sra_jax.evaluation.inception import Features
from sra_jax.evaluation.scores import inception_score, precision_recall
from sra_jax.evaluation.statistics import fit_gaussian, frechet_distance
from sra_jax.jobs import evaluate as evaluator
from sra_jax.jobs.evaluate import EvaluateRequest, evaluate
from sra_jax.jobs.sample import SampleRequest, sample
from sra_jax.jobs.train import train

POOL, SPATIAL = 10, (2, 2, 2)
INCEPTION = "inception.safetensors"


@dataclass(frozen=True)
class SmallInception:
    """Gives features that tell images apart, from a random projection of their pixels."""

    def apply(self, variables, images):
        return small_inception(images)


def small_inception(images):
    pixels = images.reshape(len(images), -1) / 255
    projection = np.random.default_rng(0).normal(size=(pixels.shape[1], 28)).astype(np.float32)
    h = jnp.tanh(pixels @ projection)
    pool, spatial, logits = h[:, :POOL], h[:, 10:18].reshape(-1, *SPATIAL), 3 * h[:, 18:]
    return Features(pool, spatial, logits + 1, logits)


NETWORK = extraction.Network(SmallInception(), {})


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(suite, "Inception", SmallInception)
    monkeypatch.setattr(suite, "load_inception", lambda path: {})
    monkeypatch.setattr(reference, "POOL_WIDTH", POOL)
    monkeypatch.setattr(reference, "SPATIAL_WIDTH", np.prod(SPATIAL))


@pytest.fixture
def sets(tmp_path):
    """Paths of samples and of real images, and their features at once."""
    rng = np.random.default_rng(0)
    real = rng.integers(0, 256, (90, 4, 4, 3), np.uint8)
    samples = rng.integers(0, 200, (117, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "samples.npz", arr_0=samples)
    np.savez(tmp_path / "real.npz", arr_0=real)
    features = [small_inception(images) for images in (samples, real)]
    return str(tmp_path / "samples.npz"), str(tmp_path / "real.npz"), *features


def measure(capsys, **request):
    evaluate(EvaluateRequest(inception=INCEPTION, **request))
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def expected_numbers(samples, real):
    """From all features at once, without batches, devices and files."""
    distances = {
        name: frechet_distance(*(fit_gaussian(np.reshape(s, (len(s), -1))) for s in pair))
        for name, pair in {
            "fid": (samples.pool, real.pool),
            "sfid": (samples.spatial, real.spatial),
        }.items()
    }
    score = inception_score(np.asarray(samples.logits_unbiased))
    neighbours = precision_recall(real.pool, samples.pool)._asdict()
    return distances | {"inception_score": score} | neighbours


@pytest.mark.parametrize("group", [1, 50, 1024])
def test_all_metrics_of_two_files(group, capsys, monkeypatch, sets):
    monkeypatch.setattr(extraction, "PER_DEVICE", 2)
    monkeypatch.setattr(suite, "GROUP", group)
    samples, real, *features = sets
    numbers = measure(capsys, samples=samples, reference=real)
    assert numbers.pop("samples") == samples and numbers.pop("reference") == real
    assert numbers.pop("images") == 117
    assert numbers == pytest.approx(expected_numbers(*features), rel=1e-4)
    assert numbers["fid"] > 0.01 and 0 < numbers["recall"] < 1
    some = measure(capsys, samples=samples, reference=real, metrics="is, fid")
    assert list(some)[3:] == ["fid", "inception_score"]
    assert some["fid"] == numbers["fid"]


def test_a_set_equals_itself(capsys, sets):
    numbers = measure(capsys, samples=sets[0], reference=sets[0])
    assert numbers["fid"] == pytest.approx(0, abs=1e-6)
    assert (numbers["precision"], numbers["recall"]) == (1, 1)


def test_a_reference_is_saved_once_and_serves_again(capsys, sets, tmp_path):
    samples, real, *_ = sets
    saved = str(tmp_path / "new" / "saved.npz")
    evaluate(EvaluateRequest(inception=INCEPTION, reference=real, save_reference=saved))
    with np.load(saved, allow_pickle=False) as arrays:
        assert set(arrays) == {"mu", "sigma", "mu_s", "sigma_s", "points", "resolution"}
    first = measure(capsys, samples=samples, reference=real)
    again = measure(capsys, samples=samples, reference=saved)
    assert again == {**first, "reference": saved}
    larger = str(tmp_path / "larger.npz")
    np.savez(larger, arr_0=np.zeros((9, 8, 8, 3), np.uint8))
    with pytest.raises(InputError, match=r"holds images of 8x8, .*saved.npz of 4x4; choose"):
        evaluate(EvaluateRequest(inception=INCEPTION, samples=larger, reference=saved))


def test_statistics_of_adm_go_with_their_images(capsys, sets, tmp_path):
    """The distances are to the statistics, precision and recall to the images beside them."""
    samples, real, features, _ = sets
    adm = str(tmp_path / "adm.npz")
    rng = np.random.default_rng(1)
    other = fit_gaussian(rng.normal(size=(50, POOL))), fit_gaussian(rng.normal(size=(50, 8)))
    arrays = dict(zip(("mu", "sigma", "mu_s", "sigma_s"), (*other[0], *other[1]), strict=True))
    np.savez(adm, arr_0=np.load(real)["arr_0"], **arrays)
    numbers = measure(capsys, samples=samples, reference=adm)
    to_images = measure(capsys, samples=samples, reference=real)
    distance = frechet_distance(fit_gaussian(features.pool), other[0])
    assert numbers["fid"] == pytest.approx(distance, rel=1e-6)
    assert numbers["sfid"] > 2 * to_images["sfid"]
    for name in ("precision", "recall", "inception_score"):
        assert numbers[name] == to_images[name]


def test_few_images_are_warned_of(capsys, caplog, sets, tmp_path):
    few = str(tmp_path / "few.npz")
    np.savez(few, arr_0=np.load(sets[1])["arr_0"][:POOL])
    measure(capsys, samples=sets[0], reference=few, metrics="fid,sfid")
    assert f"FID of {few} is biased upward: 10 images" in caplog.text
    assert caplog.text.count("biased") == 1  # more than the spatial features, and the samples
    assert "50,000 to compare with papers" in caplog.text


def test_few_images_for_a_classifier_are_not_compared_with_papers(caplog, monkeypatch, tmp_path):
    hurry_classifier(monkeypatch, 1)
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 1), np.uint8)
    path = str(tmp_path / "few.npz")
    np.savez(path, arr_0=images, labels=np.arange(20) % 2)
    evaluate(EvaluateRequest(samples=path, reference=path, metrics="fid"))
    assert caplog.text.count("20 images give a singular covariance of 64 features") == 2
    assert caplog.text.count("equally many in each set") == 2 and "papers" not in caplog.text


@pytest.mark.parametrize("count", [2, 8, 30])
def test_features_do_not_depend_on_devices_and_batches(count, monkeypatch):
    monkeypatch.setattr(extraction, "PER_DEVICE", 3)
    images = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), np.uint8)
    expected = small_inception(images)
    for devices in (jax.devices()[:1], jax.devices()):
        batches = list(extraction.extract(NETWORK, ArrayImages("noise", images), devices))
        for found, whole in zip(zip(*batches, strict=True), expected, strict=True):
            np.testing.assert_allclose(np.concatenate(found), whole, rtol=1e-5, atol=1e-5)


def test_progress_is_told(caplog, monkeypatch):
    monkeypatch.setattr("sra_jax.core.progress.PROGRESS_SECONDS", 0)
    monkeypatch.setattr(extraction, "PER_DEVICE", 1)
    caplog.set_level("INFO")
    images = ArrayImages("noise", np.zeros((4, 4, 4, 3), np.uint8))
    list(extraction.extract(NETWORK, images, jax.devices()[:1]))
    assert len(caplog.records) == 3  # the first batch starts the clock
    assert "noise: 2/4 images" in caplog.text and "images/s" in caplog.text
    assert "left" in caplog.messages[0]


def test_a_folder_and_a_file_of_it_are_alike(capsys, sets, tmp_path):
    for number, image in enumerate(np.load(sets[1])["arr_0"]):
        (tmp_path / "folder" / f"{number % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "folder" / f"{number % 2}" / f"{number}.png")
    numbers = measure(capsys, samples=str(tmp_path / "folder"), reference=sets[1])
    assert numbers["fid"] == pytest.approx(0, abs=1e-5)


def test_what_cannot_be_is_refused(sets, tmp_path):
    samples, real, *_ = sets
    np.savez(tmp_path / "mu.npz", mu=np.zeros(POOL), sigma=np.eye(POOL))
    np.savez(tmp_path / "flat.npz", mu=np.zeros(POOL), sigma=np.zeros(POOL))
    np.savez(tmp_path / "nan.npz", mu=np.full(POOL, np.nan), sigma=np.eye(POOL))
    np.savez(tmp_path / "objects.npz", mu=np.array([{}, {}]), sigma=np.eye(POOL))
    (tmp_path / "file").touch()
    both = {"samples": samples, "reference": real}
    stored = both | {"metrics": "fid"}
    for request, message in (
        ({"reference": real}, "--samples or --workdir is missing"),
        (both | {"workdir": "runs/x"}, "exclude each other"),
        (both | {"metrics": "fid,ips"}, "unknown metric 'ips', expected one of fid, sfid, is, pr"),
        (both | {"metrics": ""}, "unknown metric '', expected one of fid, sfid, is, pr"),
        (both | {"reference": __file__}, r"test_evaluate.py is not an .npz with arr_0 \(it is of"),
        (both | {"save_reference": "x.pt"}, "'x.pt' does not end in .npz"),
        (both | {"save_reference": f"{tmp_path}/file/x.npz"}, "cannot write"),
        (both | {"reference": f"{tmp_path}/mu.npz"}, "mu.npz lacks mu_s; leave"),
        (both | {"reference": f"{tmp_path}/mu.npz", "metrics": "pr"}, "mu.npz lacks points"),
        (stored | {"reference": f"{tmp_path}/flat.npz"}, r"sigma float64 \(10,\), .* \[10, 10\]"),
        (stored | {"reference": f"{tmp_path}/nan.npz"}, r"expected finite numbers \[10\]"),
        (
            stored | {"reference": f"{tmp_path}/objects.npz"},
            r"objects.npz is damaged .*\(it holds text or Python obj",
        ),
        (both | {"samples": f"{tmp_path}/mu.npz"}, "mu.npz is not an .npz with arr_0"),
        (both | {"samples": "embedded:digits"}, "embedded:digits holds images of 8x8"),
        ({"reference": real, "workdir": f"{tmp_path}/none"}, "no workdir"),
    ):
        with pytest.raises(InputError, match=message) as refusal:
            evaluate(EvaluateRequest(inception=INCEPTION, **request))
        assert "\n" not in str(refusal.value)
    for request, message in (
        ({"save_reference": "x"}, "save_reference=x needs features=inception.*fetch https://"),
        ({"features": "inception"}, "^features=inception needs inception=FILE: fetch https://"),
        (
            {"features": "classifier", "inception": "x"},
            "^inception=x needs features=inception, but features is classifier; leave one out",
        ),
        ({"features": "probe"}, "^features=probe is called classifier now"),
        (
            {"features": "pixels"},
            "unknown features 'pixels', expected one of inception, classifier",
        ),
    ):
        with pytest.raises(InputError, match=message) as refusal:
            evaluate(EvaluateRequest(reference=real, samples=samples, **request))
        assert "\n" not in str(refusal.value)
    for path, found in {tmp_path: "is a directory", tmp_path / "none": "no file"}.items():
        expected = f"{found}.*, expected an .npz with arr_0 and labels, embedded:digits or embedded"
        with pytest.raises(InputError, match=expected):
            evaluate(EvaluateRequest(reference=str(path), samples=real))


def test_what_a_classifier_cannot_measure_is_refused(monkeypatch, tmp_path):
    hurry_classifier(monkeypatch, 1)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (20, 4, 4, 1), np.uint8), np.arange(20) % 2

    def write(name, images=images, labels=labels):
        path = str(tmp_path / f"{name}.npz")
        np.savez(path, arr_0=images, labels=labels)
        return path

    good = write("good")
    with open(tmp_path / "array.npz", "wb") as file:
        np.save(file, images)
    for request, message in (
        ({"reference": write("one", labels=0 * labels)}, "one.npz holds images of class 0 alone"),
        ({"reference": write("few", images[:3], labels[:3])}, "images, but the reference are 3;"),
        (
            {"reference": write("lone", images[:1], labels[:1])},
            "lone.npz holds images of class 0 alone",
        ),
        ({"samples": f"{tmp_path}/lone.npz"}, "holds 1 images, expected at least 2"),
        ({"reference": f"{tmp_path}/array.npz"}, r"array.npz is not an .npz .*\(it is a .npy"),
        ({"samples": f"{tmp_path}/array.npz"}, "array.npz is not an .npz with arr_0"),
        ({"reference": __file__}, r".py is not an .npz .* \(it holds text or Python objects, not"),
        ({"reference": write("floats", labels=labels / 2)}, "labels float64, expected integers"),
        (
            {"reference": write("words", labels=labels.astype(str))},
            "labels <U21, expected integers",
        ),
        ({"reference": "embedded:digits"}, "good.npz holds images of 4x4, embedded:digits of 8x8"),
        ({"num": 5}, "--num=5 needs --workdir"),
        ({"vae": "x"}, "--vae=x needs --workdir"),
        ({"reference": ""}, "--reference is empty"),
        ({"save_reference": ""}, "save_reference= needs features=inception"),
    ):
        with pytest.raises(InputError, match=message) as refusal:
            evaluate(EvaluateRequest(**{"samples": good, "reference": good} | request))
        assert "\n" not in str(refusal.value)


def train_digits(workdir):
    """Two steps of a tiny model."""
    path = REPOSITORY / "configs" / "digits.py"
    config = runpy.run_path(str(path))["get_config"]()
    config.model.update(width=16, depth=2, num_heads=2)
    config.method.sra.teacher_block = 2
    config.train.update(steps=2, batch_size=8)
    config.sampling.steps = "4"
    train(config.to_dict(), str(workdir))


def test_a_run_is_measured_by_the_images_that_sample_writes(capsys, tmp_path):
    workdir, out = str(tmp_path / "run"), str(tmp_path / "out.npz")
    train_digits(workdir)
    sample(SampleRequest(workdir=workdir, out=out, num=70))
    step, sampled = evaluator.sample_run(workdir, 70, vae=None)
    images = np.concatenate(list(sampled.chunks(0, 70)))
    assert step == 2
    assert images.shape == (70, 8, 8, 3) and sampled.resolution == (8, 8)
    np.testing.assert_array_equal(images[..., :1], np.load(out)["arr_0"])
    request = {"reference": "embedded:digits", "workdir": workdir, "num": 70}
    from_run = measure(capsys, **request)
    from_file = measure(capsys, reference="embedded:digits", samples=out)
    assert from_run == {**from_file, "samples": workdir}
    with pytest.raises(InputError, match="num is 1, expected 2 to"):
        evaluate(EvaluateRequest(inception=INCEPTION, **request | {"num": 1}))
