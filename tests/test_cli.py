import pytest
import torch

from utils import cli


@pytest.mark.parametrize("error, message", [
    (cli.InputError("a.mp4: no such file"), "error: a.mp4: no such file\n"),
    (OSError("disk full"), "error: disk full\n"),
])
def test_a_users_mistake_is_one_line_and_exit_code_2(capsys, error, message):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    assert stop.value.code == 2 and capsys.readouterr() == ("", message)


def test_our_own_mistake_is_no_users():
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda: 1 / 0)


def test_a_file_is_known_by_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert cli.file_hash(tmp_path / "a").startswith("ba7816bf8f01cfea")  # FIPS 180-2, appendix B.1
    (tmp_path / "a").write_bytes(b"abd")
    assert not cli.file_hash(tmp_path / "a").startswith("ba7816bf8f01cfea")


@pytest.mark.parametrize("name", ["cuda:99", "mps", "toaster", "cpu:x"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(cli.InputError, match=f"--device {name}: "):
        cli.pick_device(name)
    assert cli.pick_device("cpu") == torch.device("cpu")
