"""The doctor: what it finds, and that it tells when something is wrong."""

from __future__ import annotations

import json

from maskgym.experiments import cli, doctor


def test_a_healthy_installation(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["healthy"] and found["versions"]["torch"]
    assert len(found["checks"]) == len(doctor.EPISODES) + 2
    assert all(check["fault"] == "" and 0 < check["seconds"] < 120 for check in found["checks"])
    assert found["machine"]["cores"] >= 1 and found["machine"]["gib"] > 0


def test_what_is_missing_is_told_with_what_installs_it(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    original = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "trl" else original(name))
    assert cli.main(["doctor", "--no-test"]) == 1
    out = capsys.readouterr().out
    assert "trl                 MISSING" in out and out.endswith("not well: trl\n")
    assert "pip install 'maskgym[ray]'" in out


def test_a_check_that_fails_is_named_and_the_others_go_on(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "EPISODES", {"maskgym/Nope-v0": "nothing"})
    monkeypatch.setattr(doctor, "_update", lambda: None)
    monkeypatch.setattr(doctor, "_answer", lambda: None)
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "FAILED  an episode of maskgym/Nope-v0" in out and "NameNotFound" in out
    assert "ok      an update of CGPO" in out and "not well: an episode of maskgym/Nope-v0" in out
