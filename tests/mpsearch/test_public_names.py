from __future__ import annotations

import subprocess
import sys

import pytest

import mpsearch as mp
import mpsearch.errors as errors


@pytest.mark.parametrize("name", mp.__all__)
def test_every_public_name_is_the_same_on_the_second_read(name: str) -> None:
    first = getattr(mp, name)
    assert getattr(mp, name) is first
    assert callable(first)


def test_names_stay_functions_after_the_submodules_are_loaded() -> None:
    code = (
        "import mpsearch.pipeline, mpsearch.schemas.profile, mpsearch as mp\n"
        "assert all(callable(getattr(mp, name)) for name in mp.__all__)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        _ = mp.serach


def test_dir_lists_the_lazy_names() -> None:
    assert set(mp.__all__) <= set(dir(mp))


def test_every_error_is_listed_and_has_an_exit_code() -> None:
    kinds = {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.MpsearchError)
    }
    assert set(kinds) == set(errors.__all__)
    assert {k.exit_code for k in kinds.values()} <= {1, 2, 3, 4, 5}
    assert all(name in (errors.__doc__ or "") for name in kinds)


WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "safetensors", "pyhessian", "sklearn"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
import mpsearch as mp
"""


def test_saved_scores_are_solved_without_torch() -> None:
    code = WITHOUT_TORCH + (
        "p = mp.Profile.from_arrays([[1.0, 0.0]], options=['w4', 'w8'])\n"
        "c = mp.Costs(groups=['g0'], options=['w4', 'w8'], values={'m': [[1.0, 2.0]]},"
        " units={'m': 'B'})\n"
        "assert mp.allocate(p, c, {'m': '1 B'}).layers == {'g0': 'w4'}\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_needs_torch_names_the_extra() -> None:
    code = WITHOUT_TORCH + (
        "from mpsearch.errors import DependencyError\n"
        "try:\n    mp.search\n"
        "except DependencyError as error:\n    assert 'mpsearch[torch]' in str(error)\n"
        "else:\n    raise SystemExit('no error')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
