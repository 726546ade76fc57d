"""The served review page: it answers its own page on this machine, and nothing and nobody else."""

import http.client
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.run_folder import CLASS_NAMES, write_run_folder
from tutelage.data.pseudo.verdicts import Verdicts, read_verdicts
from tutelage.reviews import serve
from tutelage.reviews.serve import ReviewServer
from tutelage.types import InputError
from tutelage.workflows import reviewing

EMPTY = {"format": "tutelage-verdicts-1", "annotation": "boxes", "class_names": list(CLASS_NAMES), "images": []}


@pytest.fixture
def saved() -> list[Verdicts]:
    return []


@pytest.fixture
def server(saved: list[Verdicts]) -> Iterator[ReviewServer]:
    def save(verdicts: Verdicts, seen: str) -> str:
        saved.append(verdicts)
        return f"{seen}+"

    with ReviewServer(lambda: "<p>the page</p>", save) as one:
        thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield one
        one.shutdown()
        thread.join()


def keep_nothing(verdicts: Verdicts, seen: str) -> str:
    return seen


def ask(server: ReviewServer, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
    """Status and text; `_` in the names of headers stands for `-`."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, given)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def post(server: ReviewServer, body: Any, **headers: str) -> tuple[int, str]:
    given = {"Content_Type": "application/json", **headers}
    return ask(server, "POST", f"/{server.token}/verdicts", body, **given)


def test_the_page_and_its_verdicts(server: ReviewServer, saved: list[Verdicts]) -> None:
    assert server.url == f"http://{server.host}/{server.token}/" and server.server_address[0] == "127.0.0.1"
    assert len(server.token) >= 32
    assert ask(server, "GET", f"/{server.token}/") == (200, "<p>the page</p>")
    assert post(server, json.dumps(EMPTY)) == (200, "+")
    assert post(server, json.dumps(EMPTY), Origin=f"http://{server.host}", If_Match="one") == (200, "one+")
    assert saved == [Verdicts.model_validate(EMPTY)] * 2


def test_every_server_has_a_secret_of_its_own(server: ReviewServer) -> None:
    with ReviewServer(str, keep_nothing) as other:
        assert other.token != server.token and other.host != server.host


@pytest.mark.parametrize("change", ["", "x", "short", "other", "verdicts", "query", "encoded", "\u00fc"])
def test_another_secret_finds_nothing(server: ReviewServer, saved: list[Verdicts], change: str) -> None:
    path = {
        "": "/",
        "x": f"/{server.token}x/",
        "short": f"/{server.token[:-1]}/",
        "other": f"/{'A' * len(server.token)}/",
        "verdicts": f"/{server.token}/verdicts",  # can be given, not read
        "query": f"/{server.token}/?a=b",
        "encoded": f"/%{ord(server.token[0]):x}{server.token[1:]}/",
        "\u00fc": f"/{server.token}/%FC",
    }[change]
    assert ask(server, "GET", path) == (404, "nothing is here")
    body = {"Content_Type": "application/json"}
    assert ask(server, "POST", f"/{'A' * len(server.token)}/verdicts", json.dumps(EMPTY), **body)[0] == 404
    assert saved == []


def test_the_secret_is_compared_in_constant_time(server: ReviewServer, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    monkeypatch.setattr(serve.secrets, "compare_digest", lambda *pair: compared.append(pair) or False)
    assert ask(server, "GET", f"/{server.token}/")[0] == 404
    assert compared == [(f"/{server.token}/".encode(),) * 2]


@pytest.mark.parametrize(
    "path",
    ["../verdicts.json", "..%2f..%2fetc%2fpasswd", "../../../../etc/passwd", "./", "/etc/passwd", "verdicts/../x"],
)
def test_no_path_leads_to_a_file(server: ReviewServer, saved: list[Verdicts], path: str) -> None:
    for method in ("GET", "POST"):
        given = {"Content_Type": "application/json"} if method == "POST" else {}
        assert ask(server, method, f"/{server.token}/{path}", json.dumps(EMPTY), **given) == (404, "nothing is here")
    assert saved == []


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "localhost:{port}", "127.0.0.1:1", "evil.example:{port}", ""]
)
def test_another_host_is_refused(server: ReviewServer, saved: list[Verdicts], host: str) -> None:
    meant = host.format(port=server.server_address[1])
    assert ask(server, "GET", f"/{server.token}/", Host=meant) == (403, "another host is meant")
    assert post(server, json.dumps(EMPTY), Host=meant)[0] == 403
    assert saved == []


def test_no_host_or_two_are_refused(server: ReviewServer) -> None:
    for hosts in ("", f"Host: {server.host}\r\nHost: evil.example\r\n"):
        assert b" 403 " in raw(server, f"GET /{server.token}/ HTTP/1.1\r\n{hosts}\r\n")


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://{host}", "http://localhost:{port}", ""])
def test_another_origin_is_refused(server: ReviewServer, saved: list[Verdicts], origin: str) -> None:
    foreign = origin.format(host=server.host, port=server.server_address[1])
    assert post(server, json.dumps(EMPTY), Origin=foreign) == (403, "another site asks")
    assert ask(server, "GET", f"/{server.token}/", Origin=foreign)[0] == 403
    assert saved == []


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE", "CONNECT", "NONSENSE"])
def test_other_methods_are_refused(server: ReviewServer, saved: list[Verdicts], method: str) -> None:
    status, text = ask(server, method, f"/{server.token}/verdicts", json.dumps(EMPTY))
    assert status == 501 and "the page" not in text and saved == []


def raw(server: ReviewServer, request: str) -> bytes:
    with socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=10) as connection:
        connection.sendall(request.encode())
        connection.shutdown(socket.SHUT_WR)
        return connection.makefile("rb").read()


@pytest.mark.parametrize(
    ("length", "status"),
    [("99999999999", 413), ("9" * 5000, 413), ("-1", 411), ("ten", 411), ("\u0663", 411), (None, 411)],
)
def test_a_body_too_large_or_of_no_length_is_not_read(
    server: ReviewServer, saved: list[Verdicts], length: str | None, status: int
) -> None:
    line = "" if length is None else f"Content-Length: {length}\r\n"
    head = f"POST /{server.token}/verdicts HTTP/1.1\r\nHost: {server.host}\r\nContent-Type: application/json\r\n"
    assert f" {status} ".encode() in raw(server, f"{head}{line}\r\n").splitlines()[0]
    assert saved == []


def test_the_largest_body_is_the_limit(server: ReviewServer, monkeypatch: pytest.MonkeyPatch) -> None:
    body = json.dumps(EMPTY)
    monkeypatch.setattr(serve, "LARGEST_BODY", len(body))
    assert post(server, body)[0] == 200
    assert post(server, body + " ")[0] == 413


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("not json", "not valid JSON"),
        ("", "not valid JSON"),
        ("[" * 200_000, "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        ("[]", "holds no verdicts"),
        ('{"format": "another"}', "holds no verdicts"),
        (json.dumps({**EMPTY, "images": 3}), "images"),
        (json.dumps({**EMPTY, "path": "/etc/passwd"}), "path"),
    ],
)
def test_what_are_no_verdicts_is_refused(
    server: ReviewServer, saved: list[Verdicts], body: str | bytes, message: str
) -> None:
    status, text = post(server, body)
    assert status == 400 and message in text and saved == []


def test_a_form_of_another_site_is_refused(server: ReviewServer, saved: list[Verdicts]) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert post(server, json.dumps(EMPTY), Content_Type=kind)[0] == 415
    assert saved == []


def test_a_silent_connection_holds_nobody_up(server: ReviewServer) -> None:
    with socket.create_connection(("127.0.0.1", server.server_address[1])):
        assert ask(server, "GET", f"/{server.token}/")[0] == 200


def test_a_port_that_is_taken_is_said(server: ReviewServer) -> None:
    with pytest.raises(InputError, match="--port"):
        ReviewServer(str, keep_nothing, server.server_address[1])


def test_answers_are_kept_from_caches_frames_and_other_sites(server: ReviewServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.request("GET", f"/{server.token}/")
    headers = connection.getresponse().headers
    connection.close()
    assert headers["Cache-Control"] == "no-store" and headers["X-Content-Type-Options"] == "nosniff"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["Referrer-Policy"] == "same-origin"
    assert "python" not in headers["Server"].lower()


# The verb


def seen_by(page: str) -> str:
    """What a page knows of the verdicts that are there."""
    found = re.search('"seen":"([0-9a-f]*)"', page)
    assert found is not None
    return found[1]


def test_the_verb_saves_what_fits_and_ends_with_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run_folder(tmp_path / "run", num_test=2, num_pool=6)
    outside = tmp_path / "outside.json"
    outside.write_text(json.dumps(EMPTY))
    (run / "review").mkdir()
    (run / "review" / "verdicts.json").symlink_to(outside)
    before = {path for path in run.rglob("*")}
    label = {
        "class": "disk",
        "xyxy": [1.0, 2.0, 30.0, 40.0],
        "verdict": "accept",
        "score": 0.7,
        "teacher": "",
        "round": 1,
    }
    image = {"path": "scene-0003.jpg", "size": [192, 256], "reviewed": True, "labels": [label]}
    answers: list[tuple[int, str]] = []

    def visit(server: ReviewServer) -> None:
        try:
            time.sleep(0.05)
            answers.append(ask(server, "GET", f"/{server.token}/"))
            wrong = [{**image, "path": "../../x.jpg"}, {**image, "labels": [{**label, "verdict": None}]}]
            seen = seen_by(answers[0][1])
            for images in (*([one] for one in wrong), [image]):
                answers.append(post(server, json.dumps({**EMPTY, "images": images}), If_Match=seen))
            seen = answers[-1][1]
            answers.append(post(server, json.dumps({**EMPTY, "annotation": "masks"}), If_Match=seen))
            answers.append(ask(server, "GET", f"/{server.token}/"))
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    class Visited(ReviewServer):
        def serve_forever(self, poll_interval: float = 0.02) -> None:
            threading.Thread(target=visit, args=[self]).start()
            super().serve_forever(0.02)

    monkeypatch.setattr(reviewing, "ReviewServer", Visited)
    made = reviewing.review(run, serve=True)
    assert [status for status, _ in answers] == [200, 400, 400, 200, 400, 200]
    assert "is not in the pool" in answers[1][1] and "has no verdict" in answers[2][1]
    assert '"save_to":"verdicts"' in answers[0][1] and '"reviewed":true' not in answers[0][1]
    assert '"reviewed":true' in answers[-1][1], "the page that is loaded again knows what was said"
    [kept] = read_verdicts(Path(made["verdicts"])).images
    assert kept.labels[0].xyxy == (1, 2, 30, 40) and kept.reviewed
    assert json.loads(outside.read_text()) == EMPTY, "a link is replaced, not followed"
    assert {path for path in run.rglob("*")} == before, "and nothing else is written"
    out = capsys.readouterr().out
    assert "http://127.0.0.1:" in out and "Verdicts are in" in out
