"""Files are written whole; whether they can be is known before the work for them begins."""

import errno
import os

import pytest

from maskx_tf.errors import UserError
from maskx_tf.system import files


def test_a_full_disk_keeps_no_part_of_a_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "results.json"
    files.write_atomically(path, "before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_atomically(path, "after")
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
    assert path.read_text() == "before"


def test_a_directory_that_can_be_made_is_accepted_and_not_made(tmp_path):
    files.require_writable(tmp_path, "--output_dir=…")
    files.require_writable(tmp_path / "new" / "newer", "--output_dir=…")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_named(tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    message = f"--x=1 cannot be written: {path}: Not a directory. Choose another place."
    with pytest.raises(UserError) as caught:
        files.require_writable(path / "new", "--x=1")
    assert str(caught.value) == message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(UserError, match="Permission denied"):
        files.require_writable(tmp_path / "new", "--x=1")
