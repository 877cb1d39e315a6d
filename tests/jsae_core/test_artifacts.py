import pytest

from jsae_core.artifacts import directory_digest
from tests.jsae_core.builders import random_pair


def test_a_copy_elsewhere_has_the_same_digest(tmp_path):
    for name in ("here", "there"):
        random_pair().save(tmp_path / name)
    assert directory_digest(tmp_path / "here") == directory_digest(str(tmp_path / "there"))


@pytest.mark.parametrize("name", ["sae_weights.safetensors", "cfg.json"])
def test_one_changed_byte_changes_the_digest(tmp_path, name):
    random_pair().save(tmp_path)
    before = directory_digest(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:-1] + b"!")
    assert directory_digest(tmp_path) != before


def test_a_renamed_an_added_and_a_removed_file_change_the_digest(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())
    seen = [directory_digest(tmp_path)]
    (tmp_path / "b").rename(tmp_path / "c")
    seen.append(directory_digest(tmp_path))
    (tmp_path / "d").write_bytes(b"")
    seen.append(directory_digest(tmp_path))
    (tmp_path / "a").unlink()
    seen.append(directory_digest(tmp_path))
    assert len(set(seen)) == 4


def test_hidden_files_are_no_part_of_an_artifact(tmp_path):
    random_pair().save(tmp_path)
    before = directory_digest(tmp_path)
    (tmp_path / ".cache").write_bytes(b"x")
    assert directory_digest(tmp_path) == before


def test_the_digest_is_a_sha256_in_hexadecimal(tmp_path):
    assert len(bytes.fromhex(directory_digest(tmp_path))) == 32


def test_a_missing_directory_is_refused_with_its_name_and_what_was_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*sae_weights\.safetensors and cfg\.json"):
        directory_digest(tmp_path / "nowhere")
