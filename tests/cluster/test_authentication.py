"""Which address is spoken to, with which token, and what is said where either is wrong; answers come from a server of the test."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from xfer.cluster.authentication import DEFAULT_FILE, GIVE, Access, Token, access, find_token, reach
from xfer.errors import UsageError

TOKEN = "0123456789abcdef-not-to-be-shown"


def refused(address: str | None, **keywords: object) -> UsageError:
    warned: list[str] = []
    with pytest.raises(UsageError) as caught:
        access(address, environment={}, warn=warned.append, **keywords)  # type: ignore[arg-type]
    assert warned == []
    return caught.value


def test_no_address():
    assert refused(None).message == "say where the cluster's dashboard is: --address http://HEAD:8265"


@pytest.mark.parametrize(
    ("address", "end"),
    [
        ("head:8265", "; did you mean http://head:8265?"),
        ("head", "; did you mean http://head?"),
        ("ray://head:10001", ""),
        ("auto", ""),
        ("ftp://head", ""),
    ],
)
def test_what_is_no_dashboard(address, end):
    assert refused(address).message == f"--address {address}: must be the dashboard's address, such as http://HEAD:8265{end}"


def test_a_port_that_is_none():
    assert refused("http://head:port").message == "--address http://head:port: no address of a dashboard such as http://HEAD:8265"


@pytest.mark.parametrize("host", ["a..b", "h" * 64, ".head"])
def test_a_name_that_no_machine_can_have(host):
    assert refused(f"https://{host}:8265").message == f"--address https://{host}:8265: no address of a dashboard such as http://HEAD:8265"


def test_a_password_in_the_address_is_refused_and_not_repeated():
    error = refused("http://me:hunter2@head:8265")
    assert error.message == "--address must not hold a user name or a password, since it is printed; a token is given otherwise"
    assert error.hint == GIVE
    assert "hunter2" not in error.message + (error.hint or "")


def test_plain_http_to_another_machine_needs_a_token_or_leave():
    error = refused("http://10.0.0.5:8265/")
    assert (
        error.message == "http://10.0.0.5:8265 is plain http to another machine, without a token: whoever reaches that port runs code there"
    )
    assert error.hint == (
        "set RAY_AUTH_MODE=token, and the token in RAY_AUTH_TOKEN, in a file that RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token; "
        "or tunnel to localhost; --allow-http goes on without"
    )
    warned: list[str] = []
    assert access("http://10.0.0.5:8265/", environment={}, allow_http=True, warn=warned.append) == Access("http://10.0.0.5:8265")
    assert warned == []


@pytest.mark.parametrize("address", ["http://localhost:8265", "http://127.0.0.1:8265", "http://[::1]:8265", "https://ray.example.com"])
def test_this_machine_and_https_need_no_leave(address):
    assert access(address, environment={}, warn=pytest.fail) == Access(address)


def test_a_token_over_plain_http_is_warned_of():
    warned: list[str] = []
    found = access("http://10.0.0.5:8265", environment={"RAY_AUTH_TOKEN": TOKEN}, warn=warned.append)
    assert warned == ["the token travels readable over plain http to 10.0.0.5; use https, or a tunnel to localhost"]
    assert found.headers == {"Authorization": f"Bearer {TOKEN}"}
    assert access("https://ray.example.com", environment={"RAY_AUTH_TOKEN": TOKEN}, warn=pytest.fail).token == found.token


def test_a_token_is_not_shown():
    assert TOKEN not in repr(Access("http://localhost:8265", Token(TOKEN, "RAY_AUTH_TOKEN")))


class TestTheToken:
    def test_by_ray_s_own_order(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("of-home\n")
        (tmp_path / "file").write_text("of-file\n")
        everything = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-variable", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "file")}
        assert find_token(everything) == Token("of-variable", "RAY_AUTH_TOKEN")
        del everything["RAY_AUTH_TOKEN"]
        assert find_token(everything) == Token("of-file", "RAY_AUTH_TOKEN_PATH")
        del everything["RAY_AUTH_TOKEN_PATH"]
        assert find_token(everything) == Token("of-home", DEFAULT_FILE)

    def test_what_ray_wrote_for_this_machine_is_sent_only_if_asked(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("of-home")
        assert find_token({}) is None
        assert find_token({"RAY_AUTH_TOKEN": TOKEN}) == Token(TOKEN, "RAY_AUTH_TOKEN")

    @pytest.mark.parametrize("text", [f"{TOKEN}\n{TOKEN}", f"{TOKEN}€", f"{TOKEN}\x7f"])
    def test_what_no_header_takes_is_refused_and_not_shown(self, tmp_path, text):
        (tmp_path / "file").write_text(text, encoding="utf-8")
        wanted = "must hold the cluster's token and nothing else: one line of plain letters, digits and signs"
        with pytest.raises(UsageError) as caught:
            find_token({"RAY_AUTH_TOKEN": text})
        assert caught.value.message == f"RAY_AUTH_TOKEN: it {wanted}"
        with pytest.raises(UsageError) as caught:
            find_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "file")})
        assert caught.value.message == f"RAY_AUTH_TOKEN_PATH: {tmp_path / 'file'} {wanted}"

    def test_the_home_of_nobody(self):
        with pytest.raises(UsageError) as caught:
            find_token({"RAY_AUTH_TOKEN_PATH": "~nobody-of-that-name/token"})
        assert caught.value.message == (
            "RAY_AUTH_TOKEN_PATH: the token can't be read from ~nobody-of-that-name/token: there is no such home folder"
        )

    def test_disabled_means_none(self):
        assert find_token({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": TOKEN}) is None

    def test_asked_for_and_absent(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        with pytest.raises(UsageError) as caught:
            find_token({"RAY_AUTH_MODE": "token"})
        assert caught.value.message == (
            "RAY_AUTH_MODE=token, but there is no token: "
            "set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file that holds it, or put it into ~/.ray/auth_token"
        )

    def test_a_mode_that_is_none(self):
        with pytest.raises(UsageError) as caught:
            find_token({"RAY_AUTH_MODE": "Tokens"})
        assert caught.value.message == "RAY_AUTH_MODE=Tokens: must be token or disabled"

    def test_a_file_that_gives_none(self, tmp_path):
        def message(file: Path) -> str:
            with pytest.raises(UsageError) as caught:
                find_token({"RAY_AUTH_TOKEN_PATH": str(file)})
            return caught.value.message

        empty, binary, absent = (tmp_path / name for name in ("empty", "binary", "absent"))
        empty.touch()
        binary.write_bytes(b"\xff\xfe\x00")
        assert message(empty) == f"RAY_AUTH_TOKEN_PATH: {empty} is empty; it must hold the cluster's token"
        assert message(binary) == f"RAY_AUTH_TOKEN_PATH: the token can't be read from {binary}: it is no text"
        assert message(absent) == f"RAY_AUTH_TOKEN_PATH: the token can't be read from {absent}: no such file or directory"


@contextmanager
def server(status: int, body: bytes, *, location: str | None = None) -> Iterator[tuple[str, list[str | None]]]:
    """Answers everything alike; yields its address and the Authorization headers that came."""
    came: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802 - the library's name
            came.append(self.headers.get("Authorization"))
            self.send_response(status)
            if location:
                self.send_header("Location", location)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.server_address[1]}", came
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()


def unreachable(way: Access) -> UsageError:
    with pytest.raises(UsageError) as caught:
        reach(way)
    return caught.value


class TestReaching:
    def test_the_version_is_told_and_the_token_sent(self):
        with server(200, json.dumps({"ray_version": "2.60.0"}).encode()) as (address, came):
            assert reach(Access(address, Token(TOKEN, "RAY_AUTH_TOKEN"))) == "2.60.0"
        assert came == [f"Bearer {TOKEN}"]

    def test_a_redirect_does_not_carry_the_token_elsewhere(self):
        with server(200, b"{}") as (elsewhere, stolen), server(302, b"", location=f"{elsewhere}/api/version") as (address, _):
            error = unreachable(Access(address, Token(TOKEN, "RAY_AUTH_TOKEN")))
        assert error.message == f"what answers at {address} is no Ray dashboard: it says 302 to /api/version"
        assert stolen == []

    @pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"version": 1}', b"\xff"])
    def test_something_else_answers(self, body):
        with server(200, body) as (address, _):
            assert unreachable(Access(address)).message == f"what answers at {address} is no Ray dashboard"

    def test_nobody_answers(self):
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            address = f"http://127.0.0.1:{bound.getsockname()[1]}"
            error = unreachable(Access(address))
        assert error.message == f"the cluster can't be reached at {address}: connection refused"
        assert error.hint == "is its head up, and is the dashboard's port (8265) open or forwarded to here?"

    def test_an_answer_that_does_not_come(self, monkeypatch):
        monkeypatch.setattr("xfer.cluster.authentication.TIMEOUT_SECONDS", 0.2)
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            address = f"http://127.0.0.1:{silent.getsockname()[1]}"
            assert unreachable(Access(address)).message == f"the cluster can't be reached at {address}: no answer within 0 seconds"

    def test_https_where_only_http_is_spoken(self):
        with server(200, b"{}") as (address, _):
            shown = address.replace("http:", "https:")
            assert unreachable(Access(shown)).message.startswith(f"the cluster can't be reached at {shown}: ")

    def test_refusals(self):
        with server(401, b"Unauthorized: Missing authentication token") as (address, _):
            error = unreachable(Access(address))
            assert (error.message, error.hint) == (f"the cluster at {address} asks for a token, and none was given", GIVE)
        with server(403, b"Forbidden: Invalid authentication token") as (address, _):
            error = unreachable(Access(address, Token(TOKEN, "RAY_AUTH_TOKEN_PATH")))
            assert error.message == f"the cluster at {address} refuses the token of RAY_AUTH_TOKEN_PATH"
            assert error.hint == "it must be the one that the head was started with: 'ray get-auth-token' there prints it"
            assert TOKEN not in str(error) + (error.hint or "")
