"""What pip installs is all there, and is found from any folder, that beside a clone too."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def build(kind, project, folder):
    """What pip asks setuptools for: an sdist, a wheel, or an editable wheel; returns its file."""
    code = f"import sys; from setuptools.build_meta import *; print(build_{kind}(sys.argv[1]))"
    command = [sys.executable, "-c", code, folder]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """What setuptools reads of a clone, in a folder that bears the package's name."""
    folder = tmp_path_factory.mktemp("beside") / "rlcore"
    shutil.copytree(ROOT / "rlcore", folder / "rlcore", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(clone, tmp_path_factory):
    """The wheel of the sdist, so that what the sdist leaves out is missing in it."""
    folder = tmp_path_factory.mktemp("dist")
    with tarfile.open(build("sdist", clone, folder)) as archive:
        archive.extractall(folder, filter="data")
    return build("wheel", next(folder.glob("rlcore-*/")), folder)


def imported(folder, wheel, beside):
    """The file that `import rlcore` finds beside a clone, where nothing but the wheel is installed."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    code = f"import site; site.addsitedir({str(folder)!r}); import rlcore; print(rlcore.__version__, rlcore.__file__)"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=beside, env={}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.split()[1])


def test_an_editable_install_is_found_beside_its_clone(clone, tmp_path):
    """Where `rlcore`, the clone's own folder, would be a package without files."""
    (tmp_path / "dist").mkdir()
    editable = build("editable", clone, tmp_path / "dist")
    assert imported(tmp_path / "site", editable, clone.parent) == clone / "rlcore" / "__init__.py"


def test_an_install_is_found_beside_a_clone(clone, wheel, tmp_path):
    assert imported(tmp_path, wheel, clone.parent) == tmp_path / "rlcore" / "__init__.py"


def test_sdist_and_wheel_hold_every_file_of_the_package_and_the_license(clone, wheel):
    names = zipfile.ZipFile(wheel).namelist()
    files = {f.relative_to(clone).as_posix() for f in (clone / "rlcore").rglob("*.*") if f.suffix != ".pyc"}
    assert {Path(name).suffix for name in files} >= {".typed", ".toml", ".h", ".html", ".json"}
    assert {name for name in names if name.startswith("rlcore/")} == files
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)
