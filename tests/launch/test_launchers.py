"""The launch scripts, with stand-ins for every tool: help, dry runs, flags, set-up, restarts."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAUNCHERS = ["quickstart.sh", "test.sh", "tpu_pod.sh", "gke.sh", "slurm.sbatch"]
SOURCES = [f"launch/{name}" for name in ["environment.sh", *LAUNCHERS]] + [".ci/run"]

# Calls itself 3.11, makes environments out of copies of itself and notes what it is asked to run.
PYTHON = """#!/bin/bash
case "$*" in
  *"print("*) echo "${FAKE_VERSION:-3.11}" ;;
  *ensurepip,*) exit "${FAKE_ENSUREPIP:-0}" ;;
  "-m venv"*) rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
  *"pip install"*) echo "$*" >>calls; echo "$FAKE_PIP_SAYS"; exit "${FAKE_PIP:-0}" ;;
  "-m sra_jax train"*)
    echo "$*" | tee -a calls
    [[ ! -e ~/codes ]] || { code="$(head -n 1 ~/codes)"; sed -i 1d ~/codes; exit "$code"; } ;;
  "-m "*) echo "$*" >>calls ;;
esac
"""


@pytest.fixture
def clone(tmp_path):
    """What the launchers need of the repository, under a path with a space."""
    clone = tmp_path / "a clone"
    shutil.copytree(ROOT / "launch", clone / "launch")
    shutil.copy(ROOT / "setup.py", clone)
    return clone


@pytest.fixture
def tools(tmp_path):
    """A PATH with the few tools that a dry run may use: no Python, no cloud tool."""
    directory = tmp_path / "tools"
    directory.mkdir()
    for name in ["bash", "dirname", "cat", "awk", "cksum", "grep"]:
        (directory / name).symlink_to(shutil.which(name))
    return directory


def put_tool(directory, name, script):
    (directory / name).write_text(script)
    (directory / name).chmod(0o755)


def start(clone, launcher, *arguments, path="/usr/bin:/bin", **environment):
    """Runs a launcher from another directory, in an environment of nothing else."""
    return subprocess.run(
        ["bash", str(clone / "launch" / launcher), *arguments],
        cwd=clone.parent,
        env={"PATH": str(path), "HOME": str(clone.parent), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def calls(clone):
    file = clone / "calls"
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.parametrize("source", SOURCES)
def test_bash_parses_it(source):
    subprocess.run(["bash", "-n", ROOT / source], check=True)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    found = subprocess.run(["shellcheck", "-x", *SOURCES], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_help_shows_examples(clone, tools, launcher):
    result = start(clone, launcher, "--help", path=tools)
    assert (result.returncode, result.stderr) == (0, "")
    assert f"\nusage: bash launch/{launcher} " in result.stdout
    assert f"\n  bash launch/{launcher} " in result.stdout
    assert "#" not in result.stdout


PYTEST = "-m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder"
INSTALL = (
    ".venv/bin/python -m pip install --disable-pip-version-check"
    " --constraint launch/constraints.txt --editable "
)
SLICE = "gcloud compute tpus "
DRY_RUNS = {
    "quickstart.sh": [
        "python3.11 -m venv --clear --without-pip .venv",
        INSTALL + ".",
        "python -m sra_jax train --config=configs/digits.py --workdir=runs/digits",
        "python -m sra_jax sample --workdir=runs/digits --out=runs/digits/samples.npz"
        " --grid=runs/digits/samples.png --num=1000 --seed=0",
        "python -m sra_jax evaluate --samples=runs/digits/samples.npz --reference=embedded:digits",
        "python -m sra_jax probe --workdir=runs/digits",
    ],
    "test.sh": [INSTALL + "'.[test]'", f".venv/bin/python {PYTEST}"],
    "tpu_pod.sh": [
        SLICE + "queued-resources create sra --node-id=sra --accelerator-type=v5litepod-16",
        SLICE + "tpu-vm scp runs/sra.tar sra:sra_jax.tar --worker=all",
        "worker --config=configs/sit_sra.py:XL/2 --workdir=gs://BUCKET/RUN'",
    ],
    "gke.sh": ["kubectl apply", "kind: JobSet", '- "--workdir=gs://BUCKET/RUN"'],
    "slurm.sbatch": [
        INSTALL + "'.[cuda]'",
        "sbatch --job-name=sra",
        "--xla_gpu_enable_latency_hiding_scheduler=true",
        "srun --kill-on-bad-exit=0 .venv/bin/python -m sra_jax train --config=configs/sit_sra.py",
        "scontrol requeue",
    ],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_dry_run_needs_nothing_and_does_nothing(clone, tools, launcher):
    before = sorted(clone.rglob("*"))
    result = start(clone, launcher, "--dry-run", path=tools)
    assert (result.returncode, result.stderr) == (0, "")
    position = 0
    for command in DRY_RUNS[launcher]:
        position = result.stdout.find(command, position)
        assert position >= 0, (command, result.stdout)
    assert sorted(clone.rglob("*")) == before


@pytest.mark.parametrize(
    ("launcher", "verb", "command"),
    [
        ("tpu_pod.sh", "log", SLICE + "tpu-vm ssh xl --worker=0"),
        ("tpu_pod.sh", "status", SLICE + "tpu-vm describe xl"),
        ("tpu_pod.sh", "delete", SLICE + "queued-resources delete xl --force --quiet"),
        ("gke.sh", "image", "docker push IMAGE"),
        ("gke.sh", "log", "kubectl logs --follow"),
        ("gke.sh", "status", "kubectl get jobset xl"),
        ("gke.sh", "delete", "kubectl delete jobset xl"),
        ("slurm.sbatch", "log", "tail -n 200 -F runs/xl.log"),
        ("slurm.sbatch", "status", "squeue --me --name=xl"),
        ("slurm.sbatch", "delete", "scancel --me --name=xl"),
    ],
)
def test_verbs(clone, tools, launcher, verb, command):
    result = start(clone, launcher, verb, "--dry-run", path=tools, SRA_NAME="xl")
    assert (result.returncode, result.stderr) == (0, "")
    assert command in result.stdout


@pytest.mark.parametrize(
    ("launcher", "arguments", "complaint"),
    [
        *[(name, ["--bogus"], "--bogus") for name in LAUNCHERS if name != "test.sh"],
        ("tpu_pod.sh", [], "--workdir"),
        ("tpu_pod.sh", ["--workdir=/disk"], "--workdir"),
        ("gke.sh", ["--workdir=gs://b/r"], "--image"),
        ("gke.sh", ["--dry-run", "--topology=v5e"], "--topology"),
        ("gke.sh", ["--dry-run", "--topology=3x3"], "3x3"),
        ("gke.sh", ["--dry-run", "--slices=0"], "0"),
        ("slurm.sbatch", ["--nodes=two"], "two"),
    ],
)
def test_bad_input_is_refused_in_one_line(clone, tools, launcher, arguments, complaint):
    result = start(clone, launcher, *arguments, path=tools)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert complaint in result.stderr


def test_words_are_quoted_for_the_shell(clone, tools):
    config = "configs/it's $HOME.py"
    result = start(clone, "slurm.sbatch", "--dry-run", f"--config={config}", path=tools)
    line = next(line for line in result.stdout.splitlines() if line.startswith("srun"))
    echoed = subprocess.run(["bash", "-c", f"printf '%s\n' {line}"], capture_output=True, text=True)
    assert f"--config={config}" in echoed.stdout.splitlines()


class TestEnvironment:
    @pytest.fixture(autouse=True)
    def python(self, tmp_path):
        directory = tmp_path / "bin"
        directory.mkdir()
        put_tool(directory, "python3.11", PYTHON)
        self.path = f"{directory}:/usr/bin:/bin"

    def test(self, clone, *arguments, **environment):
        return start(clone, "test.sh", *arguments, path=self.path, **environment)

    test.__test__ = False

    def test_installs_once(self, clone):
        assert self.test(clone, "-k", "two words").returncode == 0
        first = calls(clone)
        assert [call for call in first if "install" in call][-1].endswith("--editable .[test]")
        assert first[-1] == f"{PYTEST} -k two words"
        second = self.test(clone)
        assert second.stderr == ""
        assert calls(clone) == [*first, PYTEST]

    @pytest.mark.parametrize("file", ["setup.py", "launch/constraints.txt"])
    def test_installs_again_when_the_requirements_change(self, clone, file):
        self.test(clone)
        with open(clone / file, "a") as stream:
            stream.write("# changed\n")
        self.test(clone)
        self.test(clone)
        assert sum("install" in call for call in calls(clone)) == 2

    def test_every_extra_holds_the_core(self, clone):
        self.test(clone)
        start(clone, "quickstart.sh", path=self.path)
        assert sum("install" in call for call in calls(clone)) == 1
        verbs = [call.split()[:3] for call in calls(clone)[-4:]]
        assert verbs == [
            ["-m", "sra_jax", verb] for verb in ("train", "sample", "evaluate", "probe")
        ]

    def test_a_failed_installation_is_explained_and_tried_again(self, clone):
        failed = self.test(clone, FAKE_PIP="1", FAKE_PIP_SAYS="ERROR: disk full")
        assert failed.returncode == 1
        assert failed.stderr.splitlines()[-1].startswith("error: pip failed: ERROR: disk full; see")
        offline = self.test(clone, FAKE_PIP="1", FAKE_PIP_SAYS="NewConnectionError(...)")
        assert "PIP_INDEX_URL" in offline.stderr
        assert not any("pytest" in call for call in calls(clone))
        assert self.test(clone).returncode == 0

    @pytest.mark.parametrize("harm", ["cut short", "python gone"])
    def test_a_broken_environment_is_made_anew(self, clone, harm):
        self.test(clone)
        (clone / ".venv/old").touch()
        if harm == "cut short":
            (clone / ".venv/unfinished").touch()
        else:
            (clone / ".venv/bin/python").unlink()
        assert self.test(clone).returncode == 0
        assert not (clone / ".venv/old").exists()
        assert not (clone / ".venv/unfinished").exists()
        assert calls(clone)[-1] == PYTEST

    @pytest.mark.parametrize(
        ("environment", "complaint"),
        [
            ({"FAKE_VERSION": "3.13", "PYTHON": "python3.11"}, "is not a Python 3.11 or 3.12"),
            ({"FAKE_ENSUREPIP": "1", "PYTHON": "python3.11"}, "apt-get install python3.11-venv"),
            ({"PYTHON": "no/such/python"}, "is not a Python 3.11 or 3.12"),
        ],
    )
    def test_an_unfit_python_is_explained(self, clone, environment, complaint):
        result = self.test(clone, **environment)
        assert result.returncode == 1
        assert complaint in result.stderr and result.stderr.count("\n") == 1
        assert not (clone / ".venv").exists()


# A TPU VM whose one worker is this machine, with the home directory at hand.
GCLOUD = """#!/bin/bash
echo "$3 $4" >>calls
case "$4" in
  describe) echo READY ;;
  scp) cp "$5" "$HOME/${6#*:}" ;;
  ssh) for word; do [[ "$word" != --command=* ]] || { cd && exec bash -c "${word#*=}"; }; done ;;
esac
"""


@pytest.mark.parametrize("codes", [[75, 255, 0], [1]])
def test_tpu_pod_restarts_until_the_training_ends(clone, tmp_path, codes):
    tools = tmp_path / "bin"
    tools.mkdir()
    put_tool(tools, "gcloud", GCLOUD)
    put_tool(tools, "python3.11", PYTHON)
    put_tool(tools, "sleep", "#!/bin/bash\n")
    (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
    flags = ["--workdir=gs://b/r", "--config.train.steps=9"]
    result = start(clone, "tpu_pod.sh", *flags, path=f"{tools}:/usr/bin:/bin")
    assert result.returncode == codes[-1], result.stderr
    attempt = ["tpu-vm describe", "tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh"]
    made = attempt * len(codes) + ["tpu-vm describe"] * (codes[-1] == 1)
    assert calls(clone) == made
    command = "-m sra_jax train --config=configs/sit_sra.py:XL/2 --workdir=gs://b/r"
    trained = f"{command} --config.train.steps=9\n" * len(codes)
    assert (tmp_path / "sra_jax.log").read_text() == trained
    assert result.stderr.count("installing") == 1, "the worker's .venv survives new code"


@pytest.mark.parametrize("code", [0, 1, 75])
def test_slurm_requeues_only_what_was_preempted(clone, tmp_path, code):
    tools = tmp_path / "bin"
    tools.mkdir()
    put_tool(tools, "python3.11", PYTHON)
    put_tool(tools, "squeue", "#!/bin/bash\n")
    put_tool(tools, "srun", f"#!/bin/bash\necho srun $XLA_FLAGS >>calls\nexit {code}\n")
    put_tool(tools, "scontrol", '#!/bin/bash\necho "scontrol $*" >>calls\n')
    environment = {"SLURM_JOB_ID": "7", "XLA_FLAGS": "--mine"}
    result = start(clone, "slurm.sbatch", path=f"{tools}:/usr/bin:/bin", **environment)
    assert result.returncode == code
    made = [call for call in calls(clone) if call.startswith("s")]
    assert made[0].startswith("srun --xla_gpu") and made[0].endswith(" --mine")
    assert made[1:] == (["scontrol requeue 7"] if code == 75 else [])


def test_gke_manifest(clone, tools):
    yaml = pytest.importorskip("yaml")
    flags = ["--topology=8x8", "--slices=2", "--spot", '--config.a="b\\c"', "--image=i/sra"]
    result = start(clone, "gke.sh", "--dry-run", *flags, path=tools)
    job_set = yaml.safe_load(result.stdout.split("\n", 1)[1])
    (replicated,) = job_set["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert replicated["replicas"] == 2
    assert job["parallelism"] == job["completions"] == 64 // 4
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [75]
    assert pod["restartPolicy"] == "Never"
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["tolerations"][0]["key"] == "cloud.google.com/gke-spot"
    assert container["args"][-1] == '--config.a="b\\c"'
    assert container["resources"]["limits"] == {"google.com/tpu": 4}


def test_the_constraints_lie_within_the_bounds():
    """Every direct requirement is pinned, for both Pythons, to a version that setup.py admits."""
    requirements = pytest.importorskip("packaging.requirements")
    pins = {}
    for line in (ROOT / "launch/constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            pin = requirements.Requirement(line)
            (version,) = pin.specifier
            pins.setdefault(pin.name.lower().replace("_", "-"), []).append((pin, version.version))
    source = (ROOT / "setup.py").read_text()
    found = {"__file__": str(ROOT / "setup.py")}
    exec(
        source.replace("from setuptools import find_packages, setup", "").split("setup(")[0], found
    )
    for text in found["CORE"] + found["DATA"] + found["RUN"]:
        bound = requirements.Requirement(text)
        for python in ["3.11", "3.12"]:
            versions = [
                version
                for pin, version in pins[bound.name.lower().replace("_", "-")]
                if pin.marker is None or pin.marker.evaluate({"python_version": python})
            ]
            assert len(versions) == 1 and bound.specifier.contains(versions[0]), (text, python)


def test_executables_are_marked_so():
    assert all(
        os.access(ROOT / source, os.X_OK) for source in SOURCES if "environment" not in source
    )
