"""Starting ranks, and what their ends mean."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from pretrain.runtime.collectives import gather_objects, leave_ranks, max_over_ranks, sum_over_ranks
from pretrain.runtime.launcher import STOPPED, spawn_ranks
from pretrain.runtime.world import free_port, rank_environment, world
from tests.tiny import REPOSITORY, clean_environment


def script(code: str) -> list[str]:
    return [sys.executable, "-c", f"import os, sys, time\nrank = int(os.environ['RANK'])\n{textwrap.dedent(code)}"]


def running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition: object, seconds: float = 20) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_every_rank_knows_who_it_is(tmp_path: Path) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    code = f"open({str(tmp_path)!r} + f'/{{rank}}', 'w').write(' '.join(os.environ[n] for n in {names!r}))"
    assert spawn_ranks(script(code), 3) == 0
    seen = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    assert [line[:5] for line in seen] == [[str(rank), str(rank), "3", "3", "127.0.0.1"] for rank in range(3)]
    assert len({line[5] for line in seen}) == 1


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("sys.exit(0)", 0),
        ("sys.exit(3 if rank == 1 else 0)", 3),
        ("os.kill(os.getpid(), 9) if rank == 1 else time.sleep(60)", 128 + 9),
        ("sys.exit(2 if rank == 0 else 1)", 2),
        ("sys.exit(75)", STOPPED),
    ],
    ids=["all well", "one fails", "one is killed", "a user's error before what it caused", "all were asked to stop"],
)
def test_the_exit_code_of_several_ranks(code: str, expected: int) -> None:
    started = time.monotonic()
    assert spawn_ranks(script(code), 2) == expected
    assert time.monotonic() - started < 20


def test_the_first_failure_ends_all(tmp_path: Path) -> None:
    code = f"""
    open({str(tmp_path)!r} + f'/{{rank}}', 'w').write(str(os.getpid()))
    while not os.path.exists({str(tmp_path / "1")!r}): time.sleep(0.01)
    sys.exit(5) if rank == 0 else time.sleep(600)
    """
    assert spawn_ranks(script(code), 2) == 5
    assert not running(int((tmp_path / "1").read_text()))


def launcher(folder: Path, code: str, *, watch: bool) -> subprocess.Popen[bytes]:
    """A process that starts two ranks, each of which notes its process id and then runs `code`."""
    watching = "from pretrain.runtime.launcher import end_with_launcher; end_with_launcher()" if watch else ""
    rank = f"""
    {watching}
    open({str(folder)!r} + f'/{{rank}}.new', 'w').write(str(os.getpid()))
    os.rename({str(folder)!r} + f'/{{rank}}.new', {str(folder)!r} + f'/{{rank}}')
    {code}
    """
    start = f"import sys; from pretrain.runtime.launcher import spawn_ranks; sys.exit(spawn_ranks({script(rank)!r}, 2))"
    process = subprocess.Popen([sys.executable, "-c", start], cwd=REPOSITORY, env=clean_environment())
    wait_for(lambda: (folder / "0").exists() and (folder / "1").exists())
    return process


def test_a_signal_is_passed_on_to_every_rank(tmp_path: Path) -> None:
    process = launcher(
        tmp_path,
        "import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); "
        f"open({str(tmp_path)!r} + f'/{{rank}}.ready', 'w'); time.sleep(600)",
        watch=False,
    )
    wait_for(lambda: (tmp_path / "0.ready").exists() and (tmp_path / "1.ready").exists())
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 7


def test_ranks_end_when_their_launcher_is_killed(tmp_path: Path) -> None:
    process = launcher(tmp_path, "time.sleep(600)", watch=True)
    ranks = [int((tmp_path / name).read_text()) for name in ("0", "1")]
    assert all(map(running, ranks))
    process.kill()
    process.wait(20)
    wait_for(lambda: not any(map(running, ranks)))


def test_a_command_that_is_not_there() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(FileNotFoundError):
        spawn_ranks(["/no/such/program"], 2)
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_world_is_read_from_torchruns_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in rank_environment(0, 1, 1):
        monkeypatch.delenv(name, raising=False)
    assert world() is None
    for name, value in rank_environment(2, 4, free_port()).items():
        monkeypatch.setenv(name, value)
    this = world()
    assert this is not None
    assert (this.rank, this.local_rank, this.size, this.local_size) == (2, 2, 4, 4)
    assert os.environ["MASTER_PORT"].isdigit()


def test_one_process_is_a_world_of_its_own() -> None:
    values = torch.tensor([1, 2])
    assert sum_over_ranks(values) is values
    assert max_over_ranks(3, torch.device("cpu")) == 3
    assert gather_objects({"a": 1}) == [{"a": 1}]


def test_a_rank_leaves_its_group_before_python_ends(tmp_path: Path) -> None:
    """Left to the interpreter's end, gloo's threads can abort the process."""
    import torch.distributed as dist

    leave_ranks()  # without a group there is nothing to do
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    leave_ranks()
    assert not dist.is_initialized()


def test_a_rank_ends_at_once_after_what_python_does_at_exit() -> None:
    """Nothing that is destroyed with the interpreter can turn its exit code into another."""
    script = """
import atexit, os
from pretrain.runtime.launcher import end_rank
class Late:
    def __del__(self):
        os.abort()
late = Late()
late.itself = late
atexit.register(print, "at exit")
print("done")
end_rank()
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "done\nat exit\n"), ended.stderr
