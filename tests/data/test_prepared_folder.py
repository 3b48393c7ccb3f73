"""The prepared folder: whose it is, killed, full, at once, read by others, moved."""

import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from pretrain.config.run import RunConfig
from pretrain.data.corpus import PreparedCorpus
from pretrain.data.prepare import ensure_prepared, find_prepared, prepared_url
from pretrain.data.store import Preparation, Store
from pretrain.errors import DataError
from pretrain.models import get_family
from tests.data.conftest import contents, words_of
from tests.tiny import REPOSITORY, clean_environment, tiny_overrides

Configure = Callable[..., RunConfig]


def prepared(config: RunConfig) -> PreparedCorpus:
    return ensure_prepared(config, get_family(config.model.kind))


def in_a_process(code: str, before: Callable[[], None] | None = None) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env=clean_environment() | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=before,
    )


@pytest.mark.parametrize("name", ["train", "notes.txt", ".git", "unfinished", "manifest.json.new"])
def test_a_folder_of_something_else_is_left_alone(name: str, configure: Configure, tmp_path: Path) -> None:
    """Whatever a file of the user's is named, it is no mark of ours."""
    folder = tmp_path / "mine"
    folder.mkdir()
    if name == "train":
        (folder / name).mkdir()
        (folder / name / "precious.parquet").write_bytes(b"data")
    else:
        (folder / name).write_text("precious")
        (folder / "zeta.txt").write_text("precious")
    before = contents(tmp_path)
    with pytest.raises(DataError, match=rf"mine: not a prepared folder: it holds {name} and no manifest"):
        prepared(configure(f"data.folder={folder}"))
    assert contents(tmp_path) == before


def test_a_file_is_no_folder(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(DataError, match=r"file: a file, not a folder"):
        prepared(configure(f"data.folder={tmp_path / 'file'}"))
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("scheme", ["memory://", "file://"])
def test_a_url_of_something_else_is_left_alone(scheme: str, configure: Configure, tmp_path: Path) -> None:
    store = Store(f"{scheme}{tmp_path}/theirs")
    with store.open("unfinished", "wb") as stream:
        stream.write(b"precious")
    with pytest.raises(DataError, match=r"theirs: not a prepared folder: it holds unfinished and no manifest"):
        prepared(configure(f"data.folder={store.url}"))
    with store.open("unfinished") as stream:
        assert stream.read() == b"precious"
    assert store.names() == ["unfinished"]


def test_a_link_to_an_empty_folder_is_filled(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    assert prepared(configure(f"data.folder={tmp_path / 'link'}")).held_out
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "manifest.json").is_file()


def test_a_second_process_waits_for_the_first_and_says_so(configure: Configure) -> None:
    url = prepared_url(configure())
    code = (
        "import logging\nfrom pretrain.data.store import Store\nlogging.basicConfig(level=logging.INFO)\n"
        f"with Store({url!r}).lock():\n    print('got it')"
    )
    with Store(url).lock():
        waiting = in_a_process(code)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(2)
    out, said = waiting.communicate(timeout=30)
    assert out == "got it\n"
    assert f"waiting for another process that is preparing {url}" in said


@pytest.mark.parametrize("moment", ["prepare.make_tokenizer", "prepare.write_shards", "store.Store.write_manifest"])
def test_a_killed_preparation_is_done_again(moment: str, configure: Configure, corpus: Path, tmp_path: Path) -> None:
    """Killed for real, at the end of any part of it; the next one starts over, and leaves nothing of the killed one."""
    config = configure()
    root = Path(prepared_url(config)).parent
    process = in_a_process(f"""
import time
from pathlib import Path
from pretrain.data import prepare, store
from pretrain.models import get_family
from tests.tiny import tiny_config
act = {moment}
def act_and_wait(*arguments):
    act(*arguments)
    print("done", flush=True)
    time.sleep(600)
{moment} = act_and_wait
config = tiny_config("elmo", Path({str(corpus)!r}), Path({str(tmp_path / "runs")!r}))
prepare.ensure_prepared(config, get_family("elmo"))
""")
    assert process.stdout is not None
    assert process.stdout.readline() == "done\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    (left,) = root.glob("*.preparing-*")
    assert left.name.endswith(f".preparing-{socket.gethostname()}-{process.pid}")
    assert find_prepared(config) is None
    whole = contents(Path(prepared(config).url))
    assert sorted(path.name for path in root.iterdir()) == [left.name.partition(".")[0] + end for end in ("", ".lock")]
    assert contents(Path(prepared(configure(f"run_root={tmp_path / 'elsewhere'}")).url)) == whole


def test_what_another_host_is_writing_is_not_touched(
    configure: Configure, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host = socket.gethostname()
    ours, theirs, notes = (
        tmp_path / f"shared.preparing-{end}" for end in (f"{host}-12", f"{host}x-12", f"{host}-notes")
    )
    for folder in (ours, theirs, notes):
        folder.mkdir()
        (folder / "file").write_text("text")
    prepared(configure(f"data.folder={tmp_path / 'shared'}"))
    assert theirs.exists() and notes.exists() and not ours.exists()
    assert f"{theirs}: left by a process of another host, or still being written: not touched" in caplog.messages


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_the_slower_of_two_hosts_takes_what_the_faster_one_published(
    scheme: str, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hosts need not see each other's locks."""
    url = f"{scheme}{tmp_path}/shared"
    config = configure(f"data.folder={url}")
    publish, faster = Preparation.publish, []

    def late(self: Preparation, manifest: Mapping[str, object]) -> bool:
        monkeypatch.setattr(Preparation, "publish", publish)
        with monkeypatch.context() as patch:
            patch.setattr(socket, "gethostname", lambda: "faster")
            (tmp_path / "shared.lock").unlink(missing_ok=True)  # as on another host
            faster.append(prepared(config))
        return publish(self, manifest)

    monkeypatch.setattr(Preparation, "publish", late)
    found = prepared(config)
    assert [one.store.url for one in faster] == [found.store.url]
    assert words_of(found.training) == words_of(faster[0].training)
    left = [name for name in Store(f"{scheme}{tmp_path}").names() if not name.endswith(".lock")]
    assert [name for name in left if name.startswith("shared")] == ["shared"]
    if scheme:
        assert set(Store(url).names()) == {"manifest.json", found.store.url.rpartition("/")[2]}


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of the system")
def test_a_full_disk_is_one_line(corpus: Path, tmp_path: Path) -> None:
    """A limit on the size of a file stands for a disk: its error names no file either."""
    import resource

    text = corpus.read_text()
    (tmp_path / "large.txt").write_text("\n\n".join(text.replace(".", f" {n}.") for n in range(6)))
    overrides = tiny_overrides("elmo", tmp_path / "large.txt", tmp_path / "runs")
    process = in_a_process(
        f"from pretrain.cli import main\nmain(['prepare', 'configs/elmo/demo.yaml', *{overrides!r}])",
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2, said
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    (lock,) = (tmp_path / "runs" / "prepared").iterdir()
    assert line == f"error: {lock.with_suffix('')}: cannot be prepared: File too large"


def test_whoever_may_only_read_can_use_it(configure: Configure, tmp_path: Path) -> None:
    """No lock is taken and nothing is written, also for a user whom permissions do not stop."""
    config = configure(f"data.folder={tmp_path / 'shared' / 'corpus'}")
    found = prepared(config)
    (tmp_path / "shared" / "corpus.lock").unlink()
    paths = [tmp_path / "shared", *(tmp_path / "shared").rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert words_of(prepared(config).held_out) == words_of(found.held_out)
        assert [tmp_path / "shared", *(tmp_path / "shared").rglob("*")] == paths
    finally:
        for path in paths:
            path.chmod(0o755)


def test_it_moves_with_the_project(
    configure: Configure, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are known by patterns as they stand in the config; one that changed is noticed at the new place too."""
    project = tmp_path / "project"
    (project / "texts" / "more").mkdir(parents=True)
    (project / "texts" / "a.txt").write_text(corpus.read_text())
    (project / "texts" / "more" / "b.txt").write_text("one two. three four.\n" * 20)
    config = configure("data.sources=[{kind: text, files: [texts/a.txt, 'texts/more/*.txt']}]", "run_root=runs")
    monkeypatch.chdir(project)
    identity = prepared(config).identity
    project = project.rename(tmp_path / "moved")
    monkeypatch.chdir(project)
    found = find_prepared(config)
    assert found is not None and found.identity == identity
    assert str(tmp_path) not in (Path(found.url) / "manifest.json").read_text()
    with (project / "texts" / "more" / "b.txt").open("a") as stream:
        stream.write("five.\n")
    with pytest.raises(DataError, match=r"b\.txt: changed"):
        find_prepared(config)
