"""The local Hub answers real clients as the Hub does: what they push comes back, and faults are seen as faults."""

import json
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from datasets import Dataset, load_dataset
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    ModelCard,
    get_session,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .conftest import STRANGER, TOKEN
from .local_hub import LocalHub

CARD = b"---\nlicense: mit\nbase_model: astro/parent\n---\nA model.\n"


@pytest.fixture
def api(hub):
    return HfApi()


def push(api, files, repo="astro/model", repo_type="model", **kwargs):
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    return api.create_commit(repo, operations, commit_message="Push", repo_type=repo_type, **kwargs)


def random_bytes(n, seed=0):
    return np.random.default_rng(seed).bytes(n)


def sent(hub, method="PUT"):
    return [request.bytes_in for request in hub.requests if request.method == method and request.host == "store"]


def test_a_pushed_commit_comes_back_at_its_revision(hub, api):
    api.create_repo("astro/model", private=True)
    old = {"README.md": CARD, "config.json": b"{}", "model.safetensors": random_bytes(3 << 20), "notes/a b.txt": b""}
    first = push(api, old).oid
    api.create_tag("astro/model", tag="v1")
    new = {"model.safetensors": random_bytes(1 << 20, seed=1)}
    operations = [CommitOperationAdd(path, data) for path, data in new.items()]
    operations += [CommitOperationDelete("notes/", is_folder=True)]
    second = api.create_commit("astro/model", operations, commit_message="Better", parent_commit=first).oid

    assert hub.commits("astro/model")[:2] == [second, first]
    assert [commit.commit_id for commit in api.list_repo_commits("astro/model")] == hub.commits("astro/model")
    for revision, files in ((first, old), ("v1", old), (first[:8], old), ("main", old | new)):
        folder = snapshot_download("astro/model", revision=revision)
        for path, data in files.items():
            if revision != "main" or not path.startswith("notes/"):
                with open(f"{folder}/{path}", "rb") as file:
                    assert file.read() == data
    assert set(api.list_repo_files("astro/model")) == {".gitattributes", "README.md", "config.json", *new}
    assert set(api.list_repo_files("astro/model", revision="v1")) == {".gitattributes", *old}
    # Both from the client's own arithmetic and from the server's: digests of what is stored.
    assert api.verify_repo_checksums("astro/model", revision=first).mismatches == []


def test_what_is_not_there_is_named(hub, api):
    api.create_repo("astro/model")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("astro/model", "config.json")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("astro/model", "config.json", revision="v9")
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("astro/modle", "config.json")
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree("astro/model", "folder"))
    with pytest.raises(HfHubHTTPError, match="already created"):
        api.create_repo("astro/model")
    with pytest.raises(HfHubHTTPError, match="exists already"):
        api.create_branch("astro/model", branch="main")


def test_information_is_read_from_the_card_and_the_tree(hub, api):
    api.create_repo("astro/model")
    push(api, {"README.md": CARD, "a/b.bin": random_bytes(100), "a/c.txt": b"text"})
    push(api, {"a/c.txt": b"other text"})
    info = api.model_info("astro/model", files_metadata=True)
    assert info.card_data.license == "mit"
    assert "base_model:astro/parent" in info.tags
    sizes = {sibling.rfilename: (sibling.size, sibling.lfs is not None) for sibling in info.siblings}
    assert (sizes["a/b.bin"], sizes["a/c.txt"]) == ((100, True), (10, False))
    entries = {entry.path: entry for entry in api.list_repo_tree("astro/model", expand=True, recursive=True)}
    assert set(entries) == {".gitattributes", "README.md", "a", "a/b.bin", "a/c.txt"}
    newest, older, _ = hub.commits("astro/model")
    assert (entries["a/c.txt"].last_commit.oid, entries["a/b.bin"].last_commit.oid) == (newest, older)
    assert [entry.path for entry in api.get_paths_info("astro/model", ["a", "a/b.bin", "none"])] == ["a", "a/b.bin"]
    assert ModelCard.load("astro/model").data.base_model == "astro/parent"


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (b"---\n- a\n---\n", "must be a mapping, got list"),
        (b"---\na: [1\n---\n", "Invalid YAML"),
        (b"---\nmodel-index:\n- name: a\n  results: [{task: {type: x}}]\n---\n", r"results\[0\].dataset.type"),
    ],
)
def test_a_card_with_wrong_metadata_is_refused_before_anything_is_sent(hub, api, card, message):
    api.create_repo("astro/model")
    with pytest.raises(ValueError, match=message):
        push(api, {"README.md": card, "model.safetensors": random_bytes(100)})
    assert not sent(hub)
    assert len(hub.commits("astro/model")) == 1


def test_ranges_are_read_without_the_rest(hub, api):
    large, small = random_bytes(2 << 20), b"0123456789"
    hub.put_raw("astro/spectra", {"train.parquet": large, "small.txt": small}, repo_type="dataset")
    with HfFileSystem().open("datasets/astro/spectra/train.parquet", block_size=1 << 10, cache_type="none") as file:
        file.seek(1_000_000)
        assert file.read(500) == large[1_000_000:1_000_500]
        file.seek(-7, 2)
        assert file.read() == large[-7:]
    with HfFileSystem().open("datasets/astro/spectra/small.txt", cache_type="none") as file:
        file.seek(3)
        assert file.read(4) == b"3456"
    got = [request for request in hub.requests if request.status == 206]
    assert [request.bytes_out for request in got] == [500, 7, 4]
    assert {request.user for request in got} == {"astro"}
    assert "authorization" not in json.dumps([request.query for request in got]).lower()


def test_a_stale_parent_is_refused(hub, api):
    api.create_repo("astro/model")
    parent = push(api, {"a.txt": b"a"}).oid
    push(api, {"a.txt": b"b"})
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as caught:
        push(api, {"c.txt": b"c"}, parent_commit=parent)
    assert caught.value.response.status_code == 412
    assert "c.txt" not in hub.files("astro/model")


def test_a_private_repository_does_not_exist_for_a_stranger(hub, api):
    api.create_repo("astro/model", private=True)
    push(api, {"model.safetensors": random_bytes(100)})
    for token in (STRANGER, False):
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download("astro/model", "model.safetensors", token=token)
        with pytest.raises(RepositoryNotFoundError):
            HfApi(token=token).repo_info("astro/model")
        assert not list(HfApi(token=token).list_models(author="astro"))
    with pytest.raises(HfHubHTTPError, match="403"):
        HfApi(token=STRANGER).create_repo("astro/other")
    # Nor does knowing the digest of a private file give anyone its content.
    address = next(request.path for request in hub.requests if request.method == "PUT")
    api.update_repo_settings("astro/model", private=False)
    assert HfApi(token=STRANGER).repo_info("astro/model").private is False
    assert get_session().get(hub.lfs_url + address).status_code == 403


def test_tokens_end_and_may_only_read(hub, api):
    hub.add_user("astro", "hf_reader", role="read")
    api.create_repo("astro/model")
    with pytest.raises(HfHubHTTPError, match="this token may read"):
        push(HfApi(token="hf_reader"), {"a.txt": b"a"})
    hub.expire(TOKEN)
    with pytest.raises(HfHubHTTPError, match=r"401 Unauthorized[\s\S]*is expired") as caught:
        push(api, {"a.txt": b"a"})
    assert TOKEN not in str(caught.value)
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi(token="hf_of_nobody").whoami()
    assert len(hub.commits("astro/model")) == 1


@pytest.mark.parametrize(("status", "headers"), [(500, {}), (429, {"Retry-After": "0"})])
def test_an_upload_is_tried_again(hub, api, status, headers):
    api.create_repo("astro/model")
    data = random_bytes(1 << 20)
    hub.fail("PUT", "/lfs/astro/model/", status, headers=headers)
    push(api, {"model.safetensors": data})
    assert [request.status for request in hub.requests if request.method == "PUT"] == [status, 200]
    assert hub.files("astro/model")["model.safetensors"] == data
    assert not hub.faults


def test_a_dropped_upload_leaves_main_alone_and_the_next_push_sends_what_is_missing(hub, api):
    api.create_repo("astro/model")
    files = {"a.safetensors": random_bytes(1 << 20), "b.safetensors": random_bytes(8 << 20, seed=1)}
    push(api, {"a.safetensors": b"old"})
    before = hub.commits("astro/model")
    hub.requests.clear()
    hub.drop("POST", "/commit/main", after=100)
    with pytest.raises(Exception, match=r"disconnected|[Rr]eset|[Bb]roken"):
        push(api, files)
    assert hub.commits("astro/model") == before
    assert hub.files("astro/model")["a.safetensors"] == b"old"
    assert sorted(sent(hub)) == [1 << 20, 8 << 20]

    hub.requests.clear()
    hub.drop("PUT", "/lfs/", after=4 << 20)
    files["c.safetensors"] = random_bytes(6 << 20, seed=2)
    push(api, files)  # the client itself tries a dropped upload again
    assert sent(hub) == [4 << 20, 6 << 20]
    assert {name: hub.files("astro/model")[name] for name in files} == files
    assert not list((hub.root / "objects").glob("*.part"))


def test_a_commit_whose_answer_is_lost_has_happened(hub, api):
    api.create_repo("astro/model")
    hub.lose_answer("POST", "/commit/main")
    with pytest.raises(Exception, match=r"disconnected|[Rr]eset|[Bb]roken"):
        push(api, {"a.txt": b"a"})
    assert hub.files("astro/model")["a.txt"] == b"a"


UPLOAD = """
import sys
from huggingface_hub import HfApi
HfApi().upload_file(path_or_fileobj=sys.argv[1], path_in_repo="model.safetensors", repo_id="astro/model")
"""


def test_an_upload_can_be_held_while_its_process_is_killed(hub, api, tmp_path):
    api.create_repo("astro/model")
    (tmp_path / "weights").write_bytes(random_bytes(1 << 20) * 32)  # more than lies in the buffers of a connection
    held = hub.hold("PUT", "/lfs/", after=1 << 20)
    with subprocess.Popen([sys.executable, "-c", UPLOAD, str(tmp_path / "weights")]) as process:
        assert held.reached.wait(30)
        process.kill()
    hub.stop()  # which waits until the request has come to its end
    assert "model.safetensors" not in hub.files("astro/model")
    assert next(request for request in hub.requests if request.method == "PUT").status == 0


def test_a_slow_answer_is_waited_for(hub, api):
    api.create_repo("astro/model")
    hub.slow("/api/models/astro/model", 0.3)
    started = time.perf_counter()
    assert api.repo_info("astro/model").id == "astro/model"
    assert time.perf_counter() - started >= 0.3


def test_a_dataset_streams_bit_equal(hub, api):
    rng = np.random.default_rng(0)
    rows = {"wavelength": rng.uniform(4000, 9000, (40, 50)), "flux": rng.random((40, 50)).astype(np.float32)}
    Dataset.from_dict(rows).push_to_hub("astro/spectra", private=True, num_shards=4)
    stream = load_dataset("astro/spectra", split="train", streaming=True)
    assert stream.num_shards == 4
    columns = {name: np.array([row[name] for row in stream]) for name in rows}
    for name, values in rows.items():
        assert np.array_equal(columns[name].astype(values.dtype), values)


def test_collections_hold_what_exists(hub, api):
    for name in ("one", "two"):
        api.create_repo(f"astro/{name}", private=True)
    api.create_repo("astro/spectra", repo_type="dataset")
    slug = api.create_collection("Three stages", namespace="astro", private=True).slug
    assert api.create_collection("Three stages", namespace="astro", exists_ok=True).slug == slug
    for item, kind in (("astro/one", "model"), ("astro/two", "model"), ("astro/spectra", "dataset")):
        api.add_collection_item(slug, item, kind, note=f"a {kind}")
        api.add_collection_item(slug, item, kind, exists_ok=True)
    with pytest.raises(HfHubHTTPError, match="404"):
        api.add_collection_item(slug, "astro/three", "model")
    api.update_collection_metadata(slug, description="From synthetic to few labels", theme="green")
    api.update_collection_item(slug, api.get_collection(slug).items[2].item_object_id, position=0)
    collection = api.get_collection(slug)
    assert [item.item_id for item in collection.items] == ["astro/spectra", "astro/one", "astro/two"]
    assert (collection.description, collection.items[1].note) == ("From synthetic to few labels", "a model")
    assert [found.slug for found in api.list_collections(owner="astro", item="models/astro/one")] == [slug]
    assert not list(HfApi(token=STRANGER).list_collections(owner="astro"))
    with pytest.raises(HfHubHTTPError, match="404"):
        HfApi(token=STRANGER).get_collection(slug)


def test_it_starts_and_stops_at_once_and_goes_on_where_it_was(tmp_path):
    before = set(threading.enumerate())

    def ask(api):
        with pytest.raises(Exception, match="disconnected"):
            api.repo_info("astro/model")

    started = time.perf_counter()
    hub = LocalHub(tmp_path)
    with hub:
        api = HfApi(endpoint=hub.url, token="hf_a")
        hub.add_user("astro", "hf_a")
        api.create_repo("astro/model")
        url = hub.url
        hold = hub.hold("GET", "/api/models")
        waiting = threading.Thread(target=ask, args=[api])
        waiting.start()
        assert hold.reached.wait(5)
        stopping = time.perf_counter()
    assert time.perf_counter() - stopping < 0.5
    waiting.join()
    assert set(threading.enumerate()) - before <= {t for t in threading.enumerate() if "tqdm" in type(t).__module__}
    with hub:
        assert hub.url == url
        assert api.repo_info("astro/model").id == "astro/model"
    assert time.perf_counter() - started < 2
