import pytest
from pyarrow import fs

from dft_cluster.runs.storage import Storage


def remote(folder):
    """A storage that is no local folder to the code: what object stores go through."""
    storage = Storage("mock:///runs/one")
    folder.mkdir(exist_ok=True)
    storage.system, storage.root = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem()), "runs/one"
    assert storage.local is None
    return storage


@pytest.fixture(params=["local", "remote"])
def storage(request, tmp_path):
    made = Storage(str(tmp_path / "runs" / "one")) if request.param == "local" else remote(tmp_path / "bucket")
    made.make()
    return made
