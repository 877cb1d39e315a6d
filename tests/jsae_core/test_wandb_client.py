"""How wandb is reached, with the real client against the tests' own server.

Not here: what the client itself does (`tests/test_wandb_server.py`), and what is asked of wandb.
"""

import os
import time
import traceback

import pytest
import requests
import wandb

from jsae_core.wandb_client import WandbError, connect, explained, unbroken
from tests.wandb_server import WandbServer

HEXADECIMAL_KEY = "5e17" * 10
NEWER_KEY = "wandb_v1_" + "SeNtInEl" * 5


@pytest.fixture(autouse=True)
def no_helper_process_left():
    """The client reads keys and starts its helper process once, and would keep both to the end of the process."""
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture(params=[HEXADECIMAL_KEY])
def server(request, point_client_at):
    with WandbServer(api_key=request.param) as server:
        server.add_run("ent", "proj", "a")
        point_client_at(server)
        yield server


BOUNDED = 20  # seconds: far more than what the tests let the client wait, far less than what it waits by itself


def failure_of(ask):
    """The message of the error, and how many seconds it took to come."""
    start = time.monotonic()
    with pytest.raises(WandbError) as error:
        ask()
    return str(error.value), time.monotonic() - start


def log_in_with_netrc(tmp_path, server, key):
    (tmp_path / "home").mkdir(exist_ok=True)
    host = server.url.removeprefix("http://")
    (tmp_path / "home" / ".netrc").write_text(f"machine {host}\n  login user\n  password {key}\n")


def test_a_connection_costs_one_request(server, tmp_path):
    connect("ent", tmp_path / "client").runs("ent/proj")
    assert [request.operation for request in server.asked()] == ["Viewer"]


def test_the_key_may_come_from_netrc(server, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY")
    log_in_with_netrc(tmp_path, server, server.api_key)
    assert len(connect("ent", tmp_path / "client").runs("ent/proj")) == 1


def test_without_a_key_nothing_is_asked_and_the_error_tells_where_to_put_one(server, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY")
    message, _ = failure_of(lambda: connect("ent", tmp_path))
    assert "there is no API key. Set WANDB_API_KEY, or run `wandb login`" in message
    assert not server.requests


def test_what_is_no_key_is_told_from_a_key_that_is_refused(server, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "c0ffee")
    message, _ = failure_of(lambda: connect("ent", tmp_path))
    assert "the API key is malformed" in message and "c0ffee" not in message
    monkeypatch.setenv("WANDB_API_KEY", "f" * 40)
    message, _ = failure_of(lambda: connect("ent", tmp_path))
    assert "refuses the API key (HTTP 401)" in message and "f" * 40 not in message


@pytest.mark.parametrize(
    ("on", "fault", "says", "requests"),
    [
        ("runs", {"what": 401}, "refuses the API key", 1),
        ("runs", {"what": 403}, "has no access", 1),
        ("runs", {"what": 404}, "there is nothing of this name", 1),
        ("runs", {"what": 429, "retry_after": 1}, "too many requests", 2),
        ("runs", {"what": 500}, "the server fails (HTTP 500)", 2),
        ("runs", {"what": "cut"}, "cut in the middle of an answer", 3),
        ("runs", {"what": "hang"}, "did not answer in time", 2),
        ("runs", {"what": "stall"}, "did not answer in time", 1),
        ("viewer", {"what": 401}, "refuses the API key", 1),
        ("viewer", {"what": 404}, "there is nothing of this name", 1),
        ("viewer", {"what": 503}, "the server fails (HTTP 503)", 2),
        ("viewer", {"what": "cut"}, "cut in the middle of an answer", 3),
    ],
)
def test_a_fault_is_retried_where_that_helps_and_named_in_bounded_time(server, tmp_path, on, fault, says, requests):
    api = connect("ent", tmp_path)
    server.forget()
    server.fail(**fault, on=on, times=None)

    def ask():
        if on == "viewer":
            connect("ent", tmp_path)
        unbroken("the runs of ent/proj", lambda: len(api.runs("ent/proj")))

    message, took = failure_of(ask)
    what = "access to ent" if on == "viewer" else "the runs of ent/proj"
    assert f"request to wandb at {server.url.removeprefix('http://')} failed, for {what}: " in message
    assert says in message and took < BOUNDED
    assert len(server.asked()) == requests


def test_a_server_that_is_gone_is_told_from_one_that_fails(server, tmp_path):
    server.stop()
    message, took = failure_of(lambda: connect("ent", tmp_path))
    assert "the server cannot be reached. Check the network, proxies and WANDB_BASE_URL" in message
    assert took < BOUNDED


@pytest.mark.parametrize("fault", [{"what": 500}, {"what": 429, "retry_after": 1}, {"what": "cut"}, {"what": "hang"}])
def test_a_fault_that_passes_is_outlived(server, tmp_path, fault):
    api = connect("ent", tmp_path)
    server.fail(**fault, on="runs")
    assert unbroken("the runs of ent/proj", lambda: len(api.runs("ent/proj"))) == 1


def test_a_project_that_is_not_there_is_an_error_that_says_what_to_check(server, tmp_path):
    api = connect("ent", tmp_path)
    message, _ = failure_of(lambda: unbroken("the runs of ent/nope", lambda: list(api.runs("ent/nope"))))
    assert "the runs of ent/nope" in message and "Check the path's entity, project and name" in message


def test_errors_of_downloads_are_explained_without_the_signature_of_their_address(server):
    def download():
        with explained("the file ent/proj/pair:v0/cfg.json"):
            requests.get(f"{server.url}/files/none?signature=abc123", timeout=0.5).raise_for_status()

    message, _ = failure_of(download)
    assert "HTTP 403" in message and f"{server.url}/files/none" in message and "abc123" not in message
    server.fail("hang", on="file")
    message, _ = failure_of(download)
    assert "did not answer in time" in message and "abc123" not in message
    server.fail("cut", on="file")
    message, _ = failure_of(download)
    assert "cut in the middle" in message and "abc123" not in message
    server.stop()
    message, _ = failure_of(download)
    assert "cannot be reached" in message and "abc123" not in message


def test_what_is_no_error_of_the_client_is_left_alone():
    with pytest.raises(KeyError), explained("anything"):
        raise KeyError("a mistake of ours")


@pytest.mark.parametrize("server", [HEXADECIMAL_KEY, NEWER_KEY], indirect=True)
@pytest.mark.parametrize("source", ["environment", "netrc"])
def test_the_key_is_in_no_error_no_file_no_output_and_no_variable_that_was_not_there(
    server, source, tmp_path, monkeypatch, capfd, caplog
):
    caplog.set_level("DEBUG")
    if source == "netrc":
        monkeypatch.delenv("WANDB_API_KEY")
        log_in_with_netrc(tmp_path, server, server.api_key)
    before = dict(os.environ)
    api = connect("ent", tmp_path / "client")
    assert len(api.runs("ent/proj", lazy=False)) == 1
    with pytest.raises(WandbError) as error, explained("the runs of ent/proj"):
        raise ValueError(f"a request with {server.api_key} to https://host/file?key={server.api_key}&more failed")
    assert error.value.__suppress_context__ and error.value.__cause__ is None
    assert "https://host/file failed" in str(error.value)
    told = "".join(traceback.format_exception(error.value, limit=0)) + caplog.text + "".join(capfd.readouterr())
    new_variables = {name: value for name, value in os.environ.items() if before.get(name) != value}
    assert server.api_key not in told + repr(new_variables)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".netrc"]
    assert files and not [path for path in files if server.api_key.encode() in path.read_bytes()]
    assert all(tmp_path / "client" in path.parents for path in files)


def test_the_client_prints_nothing(server, tmp_path, capfd):
    list(connect("ent", tmp_path).runs("ent/proj"))
    assert capfd.readouterr() == ("", "")


def test_the_address_of_the_helper_process_is_neither_taken_from_a_parent_nor_left_to_a_child(
    server, tmp_path, monkeypatch
):
    monkeypatch.setenv("WANDB_SERVICE", "3-1-tcp-localhost-1")
    connect("ent", tmp_path)
    assert "WANDB_SERVICE" not in os.environ


def test_a_second_folder_and_other_bounds_count_from_the_next_connection_on(server, tmp_path, monkeypatch):
    connect("ent", tmp_path / "first")
    monkeypatch.setenv("WANDB__GRAPHQL_RETRY_MAX", "2")
    api = connect("ent", tmp_path / "second")
    list(api.runs("ent/proj"))
    assert (tmp_path / "second" / "runs" / "ent" / "proj" / "a").is_dir()
    server.forget()
    server.fail(500, on="viewer", times=None)
    failure_of(lambda: connect("ent", tmp_path / "second"))
    assert len(server.asked()) == 3


@pytest.mark.parametrize("text", ["soon", "0", "-1", "1.5"])
def test_a_bound_that_is_none_is_an_error_that_names_it(tmp_path, monkeypatch, text):
    monkeypatch.setenv("WANDB__GRAPHQL_RETRY_MAX", text)
    message, _ = failure_of(lambda: connect("ent", tmp_path))
    assert message == f"the environment's WANDB__GRAPHQL_RETRY_MAX is '{text}'; expected a number above 0"


def test_a_server_that_does_not_answer_is_waited_for_once_and_asked_again_after_a_while(server, tmp_path, monkeypatch):
    server.fail("hang", on="viewer", times=None)
    message, _ = failure_of(lambda: connect("ent", tmp_path))
    assert "did not answer in time" in message
    asked = len(server.asked())
    message, _ = failure_of(lambda: connect("another", tmp_path))
    assert "access to another: it did not answer" in message and "is not asked again for another" in message
    assert len(server.asked()) == asked
    monkeypatch.setattr("jsae_core.silence.SECONDS", 0)
    failure_of(lambda: connect("ent", tmp_path))
    assert len(server.asked()) > asked
