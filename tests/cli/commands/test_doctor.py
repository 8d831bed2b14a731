"""`saccade doctor` says what is missing and how to get it, and never fails for it."""

from saccade.cli.commands import doctor


def test_says_versions_devices_and_features(saccade):
    run = saccade("doctor")
    assert run.status == 0, run.err
    for word in ("torch", "transformers", "versions", "devices", "features", "LoRA"):
        assert word in run.out


def test_missing_package_comes_with_its_remedy(saccade, monkeypatch):
    monkeypatch.setattr(doctor, "FEATURES", (doctor.Feature("tea", ("no_such_module", "json"), "boil [water]"),))
    run = saccade("doctor")
    assert run.status == 0
    (line,) = [line for line in run.out.splitlines() if "tea" in line]
    assert "missing: no_such_module" in line
    assert "boil [water]" in line


def test_refuses_arguments(saccade):
    run = saccade("doctor", "--nonsense")
    assert run.status == 2
    assert "doctor must have no arguments, got" in run.err


def test_every_extra_has_a_feature():
    text = " ".join(feature.remedy for feature in doctor.FEATURES)
    for extra in ("retrieval", "retrieval-gpu", "deepspeed", "video"):
        assert extra in text
