"""A push is whole or not at all: what is seen on main under every fault, and what the person is told."""

import json
import os
import signal
import struct
import subprocess
import sys
import time

import pytest
from conftest import tiny_extractor, tiny_model
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors.torch import save_file

from spectrafm_hf import hub as our_hub
from spectrafm_hf.hub import HubError, check_dataset, collect, load_pretrained, push, revision_of

from .conftest import STRANGER, TOKEN

REPO = "astro/spectrafm-tiny"
STORE = r"/objects/|/lfs/"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(our_hub, "FIRST_WAIT", 0.01)


def checkpoint(folder, seed=0):
    tiny_model(seed).save_pretrained(folder)
    tiny_extractor().save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# tiny\n")
    return folder


@pytest.fixture
def folder(tmp_path):
    return checkpoint(tmp_path / "stage")


def visible(hub):
    return hub.files(REPO)


def test_a_push_is_one_commit_of_everything_private_and_back_again_the_same(hub, folder):
    pushed = push(folder, REPO)
    assert pushed.revision == hub.commits(REPO)[0] == revision_of(REPO)
    files = visible(hub)
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert {"README.md", "config.json", "preprocessor_config.json", "modeling_spectrafm.py"} <= files.keys()
    assert not {name for name in files if name.endswith((".bin", ".pt", ".pkl")) or "pushed" in name}
    with pytest.raises(RepositoryNotFoundError):  # nobody else sees it
        HfApi(token=STRANGER).model_info(REPO)
    model, extractor = load_pretrained(REPO, pushed.revision)
    assert extractor.to_dict() == load_pretrained(folder)[1].to_dict()
    for name, values in tiny_model().state_dict().items():
        assert (model.state_dict()[name] == values).all(), name


def test_pushing_the_same_again_changes_nothing(hub, folder):
    first = push(folder, REPO)
    n_commits, n_requests = len(hub.commits(REPO)), len(hub.requests)
    assert push(folder, REPO) == first
    assert len(hub.commits(REPO)) == n_commits
    assert not [one for one in hub.requests[n_requests:] if one.method == "PUT"]


def test_old_revisions_stay_and_files_that_are_gone_go(hub, folder):
    (folder / "results.json").write_text("{}")
    first = push(folder, REPO)
    (folder / "results.json").unlink()
    checkpoint(folder, seed=1)
    second = push(folder, REPO)
    assert "results.json" not in visible(hub)
    assert "results.json" in hub.files(REPO, revision=first.revision)
    old, new = (load_pretrained(REPO, revision)[0].state_dict() for revision in (first.revision, second.revision))
    assert any((old[name] != new[name]).any() for name in old)


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize(("method", "path"), [("POST", "/commit/"), ("PUT", "."), ("POST", "/repos/create")])
def test_a_passing_fault_is_tried_again(hub, folder, status, method, path):
    hub.fail(method, path, status, times=1, headers={"Retry-After": "0"})
    push(folder, REPO)
    assert visible(hub)["model.safetensors"] == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("status", "said"),
    [(500, "the Hub answered 500"), (429, "asks for patience"), (507, "no room"), (403, "may not write")],
)
def test_a_lasting_fault_is_told_and_leaves_main_as_it_was(hub, folder, status, said):
    push(folder, REPO)
    before = visible(hub)
    checkpoint(folder, seed=1)
    hub.fail("POST", "/commit/", status, times=99, headers={"Retry-After": "0"})
    with pytest.raises(HubError, match=f"(?s)pushing .*{said}.*nothing of it is visible on main") as caught:
        push(folder, REPO)
    assert TOKEN not in str(caught.value)
    assert visible(hub) == before
    hub.clear_faults()
    push(folder, REPO)
    assert visible(hub)["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_a_connection_that_breaks_in_the_middle_of_an_upload(hub, folder, monkeypatch):
    monkeypatch.setattr(our_hub, "ATTEMPTS", 1)
    push(folder, REPO)
    before = visible(hub)
    checkpoint(folder, seed=1)
    hub.drop("PUT", ".", after=20_000, times=99)
    with pytest.raises(HubError, match=r"the connection broke .*nothing of it is visible on main"):
        push(folder, REPO)
    assert visible(hub) == before
    hub.clear_faults()
    push(folder, REPO)
    assert visible(hub)["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_an_answer_that_is_lost_does_not_make_two_commits(hub, folder):
    """The commit was made, its answer never came: another try must find that nothing is left to do."""
    (folder / "results.json").write_text("{}")
    hub.lose_answer("POST", "/commit/", times=1)
    pushed = push(folder, REPO)
    assert pushed.revision == hub.commits(REPO)[0]
    assert len(hub.commits(REPO)) == 2  # the empty one of a new repository, and ours
    (folder / "results.json").unlink()  # a deletion is never "unchanged" to the client
    checkpoint(folder, seed=1)
    hub.lose_answer("POST", "/commit/", times=1)
    assert push(folder, REPO).revision == hub.commits(REPO)[0]
    assert len(hub.commits(REPO)) == 3
    assert "results.json" not in visible(hub)


def test_what_is_not_ours_to_publish_stays(hub, folder):
    push(folder, REPO)
    HfApi().upload_file(path_or_fileobj=b"ours", path_in_repo="LICENSE", repo_id=REPO)
    HfApi().upload_file(path_or_fileobj=b"old", path_in_repo="figures/old.png", repo_id=REPO)
    push(checkpoint(folder, seed=1), REPO)
    assert visible(hub)["LICENSE"] == b"ours"
    assert "figures/old.png" not in visible(hub)


def test_a_commit_that_comes_while_ours_is_on_its_way_is_not_buried(hub, folder, tmp_path):
    push(folder, REPO)
    checkpoint(folder, seed=1)
    hold = hub.hold("PUT", ".")
    pushing = in_process(hub, folder, tmp_path)
    assert hold.reached.wait(60)
    HfApi().upload_file(path_or_fileobj=b"hello", path_in_repo="notes.md", repo_id=REPO)
    between = visible(hub)
    hold.release()
    _, told = pushing.communicate(timeout=120)
    assert pushing.returncode == 1
    assert "somebody else changed main meanwhile" in told
    assert visible(hub) == between


def test_somebody_elses_commit_in_between_is_not_buried(hub, folder):
    first = push(folder, REPO)
    checkpoint(folder, seed=1)
    HfApi().upload_file(path_or_fileobj=b"hello", path_in_repo="notes.md", repo_id=REPO)
    between = visible(hub)
    with pytest.raises(HubError, match="somebody else changed main"):
        push(folder, REPO, parent_commit=first.revision)
    assert visible(hub) == between


def test_an_expired_token_is_told_without_being_shown(hub, folder):
    push(folder, REPO)
    before = visible(hub)
    checkpoint(folder, seed=1)
    hub.expire(TOKEN)
    with pytest.raises(HubError, match=r"token is not valid.*hf auth login") as caught:
        push(folder, REPO)
    assert TOKEN not in str(caught.value)
    assert visible(hub) == before


def test_no_token_at_all(hub, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="hf auth login"):
        push(folder, REPO)


def test_a_strange_namespace(hub, folder):
    with pytest.raises(HubError, match="may not write there"):
        push(folder, "stranger/spectrafm-tiny")


def test_a_file_that_holds_the_token_does_not_go(hub, folder):
    (folder / "README.md").write_text(f"---\nlicense: mit\n---\nexport HF_TOKEN={TOKEN}\n")
    with pytest.raises(ValueError, match=r"README.md holds your Hub token") as caught:
        push(folder, REPO)
    assert TOKEN not in str(caught.value)
    assert not any(one.method in ("PUT", "POST") and "commit" in one.path for one in hub.requests)


PUSH = "import sys; from spectrafm_hf.hub import push; print(push(sys.argv[1], sys.argv[2]).revision)"


def in_process(hub, folder, tmp_path, code=PUSH):
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder), REPO],
        env=os.environ | hub.environment(TOKEN, tmp_path / "other"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(("method", "path"), [("PUT", "."), ("POST", "/commit/")])
def test_a_killed_push_shows_nothing_and_the_next_one_completes_it(hub, folder, tmp_path, method, path):
    push(folder, REPO)
    before = visible(hub)
    checkpoint(folder, seed=1)
    hold = hub.hold(method, path)
    pushing = in_process(hub, folder, tmp_path)
    assert hold.reached.wait(60), "the push did not come that far"
    os.kill(pushing.pid, signal.SIGKILL)
    pushing.wait()
    hub.clear_faults()
    hold.release()
    time.sleep(0.1)
    # Killed after its commit had been sent, it may have got through: then wholly.
    whole = before | {"model.safetensors": (folder / "model.safetensors").read_bytes()}
    assert visible(hub) in ([before] if method == "PUT" else [before, whole])
    assert push(folder, REPO).revision == hub.commits(REPO)[0]
    assert visible(hub) == whole


PUSH_WITHOUT_ROOM = """
import resource, sys
from spectrafm_hf.hub import push
# No file may grow beyond this: the weights of 129 kB break off in the middle, as on a full disk.
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
try:
    push(sys.argv[1], sys.argv[2])
except OSError as error:
    sys.exit(str(error))
"""


def test_no_room_for_the_copy(hub, folder, tmp_path):
    push(folder, REPO)
    before = visible(hub)
    checkpoint(folder, seed=1)
    ran = in_process(hub, folder, tmp_path, PUSH_WITHOUT_ROOM)
    _, told = ran.communicate(timeout=120)
    assert ran.returncode == 1
    assert "Nothing was sent; free some, or set TMPDIR to a larger disk" in told
    assert "MB free" in told
    assert visible(hub) == before
    push(folder, REPO)
    assert visible(hub)["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_models_stand_in_one_collection_in_their_order(hub, tmp_path):
    pushed = [push(checkpoint(tmp_path / name), f"astro/spectrafm-{name}") for name in ("one", "two", "three")]
    slug = collect("astro", "SpectraFM", pushed)
    assert collect("astro", "SpectraFM", pushed[:1]) == slug
    collection = HfApi().get_collection(slug)
    assert [item.item_id for item in collection.items] == [one.repo_id for one in pushed]
    assert collection.private


# ---------------------------------------------------------------- hostile repositories


class Trap:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def published(hub, folder):
    push(folder, REPO)
    return visible(hub)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("auto_map", {"AutoModel": "evil/repo--modeling_evil.Evil"}),
        ("auto_map", {"AutoModel": "trap.SpectraFMForLabelPrediction"}),
        ("auto_map", {"AutoConfig": "../../trap.Config"}),
        ("custom_pipelines", {"stellar-labels": {"impl": "trap.Pipeline", "pt": ["AutoModel"]}}),
        ("custom_pipelines", {"stellar-labels": "trap.Pipeline"}),
        ("auto_map", ["trap.Config"]),
    ],
)
def test_a_config_that_names_other_modules_is_refused_and_nothing_runs(hub, published, tmp_path, key, value):
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w')\n".encode()
    config = json.loads(published["config.json"])
    config[key] = (config.get(key) or {}) | value if isinstance(value, dict) else value
    hub.put_raw(REPO, {"config.json": json.dumps(config).encode(), "trap.py": code, "modeling_spectrafm.py": code})
    with pytest.raises(ValueError, match=r"names code that is not SpectraFM's .*none of it was run"):
        load_pretrained(REPO)
    assert not ran.exists()


def test_code_of_our_names_is_not_run_either(hub, published, tmp_path):
    """The package loads a checkpoint by its own code, whatever the repository's modeling file holds."""
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w')\n".encode()
    hub.put_raw(REPO, {"modeling_spectrafm.py": code, "configuration_spectrafm.py": code})
    load_pretrained(REPO)
    assert not ran.exists()


def test_a_pickle_is_refused_unopened(hub, published, tmp_path):
    import pickle

    ran = tmp_path / "ran"
    hub.put_raw(REPO, {"pytorch_model.bin": pickle.dumps(Trap(ran))})
    with pytest.raises(ValueError, match=r"pytorch_model.bin, a format that runs code"):
        load_pretrained(REPO)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (struct.pack("<Q", 2**62) + b"{}", r"claims a header of 4,611,686,018,427,387,904 bytes"),
        (struct.pack("<Q", 100_000_000) + b" " * 1000, "claims a header of 100,000,000 bytes"),
        (struct.pack("<Q", 8) + b"no json!", "its header is no JSON"),
        (b"", "claims a header of 0 bytes"),
        (struct.pack("<Q", 2) + b"[]", "no table of tensors"),
    ],
)
def test_weights_with_a_wrong_header_are_refused(hub, published, weights, message):
    hub.put_raw(REPO, {"model.safetensors": weights})
    with pytest.raises(ValueError, match=message):
        load_pretrained(REPO)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attn_implementation": "evil/kernel"}, "asks for the attention kernel 'evil/kernel'; it was not fetched"),
        ({"_attn_implementation": "evil/kernel"}, "asks for the attention kernel"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "asks for quantised weights"),
        ({"hidden_size": 33}, r"cannot be loaded: .*hidden_size must be a multiple"),
        ({"hidden_size": "wide"}, "cannot be loaded"),
    ],
)
def test_a_config_that_asks_for_other_code_or_makes_no_sense_is_refused(hub, published, changes, message):
    config = json.loads(published["config.json"]) | changes
    hub.put_raw(REPO, {"config.json": json.dumps(config).encode()})
    with pytest.raises(ValueError, match=message):
        load_pretrained(REPO)


def test_weights_that_are_not_all_there_are_refused(hub, published, tmp_path):
    """Else the head would be random, and answer all the same."""
    weights = {name: values for name, values in tiny_model().state_dict().items() if not name.startswith("head.")}
    save_file(weights, tmp_path / "headless.safetensors", metadata={"format": "pt"})
    hub.put_raw(REPO, {"model.safetensors": (tmp_path / "headless.safetensors").read_bytes()})
    with pytest.raises(ValueError, match=r"missing keys: head.*it would answer with random numbers"):
        load_pretrained(REPO)


def test_weights_of_other_shapes_are_refused(hub, published, tmp_path):
    import torch

    save_file({"head.mean_weight": torch.zeros(3, 7)}, tmp_path / "other.safetensors")
    hub.put_raw(REPO, {"model.safetensors": (tmp_path / "other.safetensors").read_bytes()})
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_pretrained(REPO)


@pytest.mark.parametrize(
    "path", ["../../outside.json", "/etc/outside.json", "a/../../outside.json", "..\\outside.json"]
)
def test_a_path_that_leaves_the_repository_is_refused(hub, published, tmp_path, path):
    hub.put_raw(REPO, {path: b"{}"})
    with pytest.raises(ValueError, match="points outside of the repository"):
        load_pretrained(REPO)
    assert not list(tmp_path.parent.glob("**/outside.json"))


def test_a_configuration_of_gigabytes_is_not_fetched(hub, published, monkeypatch):
    monkeypatch.setattr(our_hub, "LARGEST_TEXT", 100_000)
    hub.put_raw(REPO, {"config.json": b" " * 200_000})
    n_requests = len(hub.requests)
    with pytest.raises(ValueError, match=r"config.json has 200,000 bytes, at most 100,000 are fetched"):
        load_pretrained(REPO)
    assert not [one for one in hub.requests[n_requests:] if "/resolve/" in one.path]


def test_another_kind_of_model_is_named(hub, published):
    config = json.loads(published["config.json"]) | {"model_type": "bert"}
    hub.put_raw(REPO, {"config.json": json.dumps(config).encode()})
    with pytest.raises(ValueError, match="a model of type 'bert', not 'spectrafm'"):
        load_pretrained(REPO)


def test_a_repository_that_is_not_there(hub):
    with pytest.raises(HubError, match="no such repository, or it is private"):
        load_pretrained("astro/nowhere")


@pytest.mark.parametrize("path", ["../secret/*.parquet", "/etc/passwd", "https://elsewhere.org/x.parquet"])
def test_a_dataset_whose_card_points_elsewhere_is_refused(hub, path):
    HfApi().create_repo("astro/spectra", repo_type="dataset")
    card = f"---\nconfigs:\n- config_name: a\n  data_files:\n  - split: train\n    path: {path}\n---\n"
    hub.put_raw("astro/spectra", {"README.md": card.encode()}, repo_type="dataset")
    with pytest.raises(ValueError, match="data files outside of the dataset"):
        check_dataset("astro/spectra")


@pytest.mark.parametrize("where", ["../secret", "/etc", "https://elsewhere.org"])
@pytest.mark.parametrize("local", [False, True])
def test_a_dataset_whose_folder_lies_elsewhere_is_refused(hub, tmp_path, where, local):
    files = {"README.md": f"---\nconfigs:\n- config_name: a\n  data_dir: {where}\n---\n".encode()}
    name = "astro/spectra"
    if local:
        name = str(tmp_path / "spectra")
        (tmp_path / "spectra").mkdir()
        (tmp_path / "spectra" / "README.md").write_bytes(files["README.md"])
    else:
        hub.put_raw(name, files, repo_type="dataset")
    with pytest.raises(ValueError, match="data files outside of the dataset"):
        check_dataset(name)


def test_another_card_beside_the_card_is_refused(hub):
    hub.put_raw("astro/spectra", {"README.md": b"# A", ".huggingface.yaml": b"configs: []"}, repo_type="dataset")
    with pytest.raises(ValueError, match=r"\.huggingface\.yaml"):
        check_dataset("astro/spectra")


@pytest.mark.parametrize("by_name", [False, True])
def test_offline_the_cache_answers_by_commit_and_by_branch(hub, folder, by_name):
    pushed = push(folder, REPO)
    revision = None if by_name else pushed.revision
    load_pretrained(REPO, revision)
    hub.stop()
    model, _ = load_pretrained(REPO, revision)
    assert (model.state_dict()["head.mean_bias"] == tiny_model().state_dict()["head.mean_bias"]).all()
    assert revision_of(REPO, revision) == pushed.revision
    with pytest.raises(HubError, match=r"not in the cache, and the Hub cannot be reached"):
        load_pretrained("astro/another")
