"""The workflows, the hooks and the metadata agree with each other and with ``.ci/run``."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import skdice

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]
if not (ROOT / ".ci").exists():
    pytest.skip("the source distribution has no workflows", allow_module_level=True)

WORKFLOWS = {
    path.name: yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml"))
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()


def steps_of_ci() -> set[str]:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    lists = re.findall(r"(?m)^(?:all|other)_steps=\((.+)\)$", script)
    assert len(lists) == 2
    steps = set(" ".join(lists).split())
    # Each step is a function of the script.
    assert steps <= set(re.findall(r"(?m)^(\w+)\(\) \{$", script))
    return steps


def jobs(name: str) -> dict:
    return WORKFLOWS[name]["jobs"]


def all_steps() -> list[dict]:
    return [
        step
        for workflow in WORKFLOWS.values()
        for job in workflow["jobs"].values()
        for step in job.get("steps", [])
    ]


def test_workflows_run_steps_of_ci():
    named = set()
    for step in all_steps():
        command = step.get("run", "")
        if command.startswith(".ci/run"):
            named |= set(command.split()[1:]) if "${{" not in command else set()
    matrix = jobs("ci.yml")["check"]["strategy"]["matrix"]
    named |= set(matrix["step"]) | {cell["step"] for cell in matrix["include"]}
    assert named <= steps_of_ci()
    # The steps that a submission must pass are those that pull requests run.
    assert {"lint", "docs", "package", "oldest", "tests"} <= named


def test_an_unknown_step_is_refused():
    done = subprocess.run(
        [ROOT / ".ci" / "run", "no_such_step"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "unknown step 'no_such_step'" in done.stderr


def test_the_matrix_covers_the_supported_versions_of_python():
    named = {
        classifier.rpartition(" ")[2]
        for classifier in PROJECT["classifiers"]
        if classifier.startswith("Programming Language :: Python :: 3.")
    }
    assert set(jobs("ci.yml")["check"]["strategy"]["matrix"]["python"]) == named
    oldest = min(named, key=lambda version: int(version.partition(".")[2]))
    assert PROJECT["requires-python"] == f">={oldest}"


def test_actions_are_pinned_by_commit():
    used = [step["uses"] for step in all_steps() if "uses" in step]
    assert used
    for action in used:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action), action


def test_workflows_may_read_only():
    for name, workflow in WORKFLOWS.items():
        assert workflow["permissions"] == {"contents": "read"}, name
        for job_name, job in workflow["jobs"].items():
            expected = {"id-token": "write"} if job_name == "publish" else None
            assert job.get("permissions") == expected, (name, job_name)


def test_a_tag_is_published_after_all_checks_and_approval():
    assert set(jobs("release.yml")["publish"]["needs"]) == {"check", "build"}
    assert jobs("release.yml")["publish"]["environment"] == "pypi"
    assert jobs("release.yml")["check"]["uses"] == "./.github/workflows/ci.yml"


def test_hooks_have_the_versions_of_the_constraints():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    wanted = {
        requirement
        for repository in hooks["repos"]
        for hook in repository["hooks"]
        for requirement in hook["additional_dependencies"]
    }
    assert wanted <= set(CONSTRAINTS)


def test_fragments_name_no_number_of_an_issue():
    fragments = sorted(path.name for path in (ROOT / "docs" / "changes").iterdir())
    for name in fragments:
        assert re.fullmatch(r"\+[\w-]+\.(feature|bugfix|doc|removal|misc)\.rst|README\.rst", name)


def test_addresses_are_not_made_up():
    addresses = " ".join(PROJECT.get("urls", {}).values())
    for path in ("CITATION.cff", "README.rst", "docs/conf.py"):
        addresses += (ROOT / path).read_text(encoding="utf-8")
    for placeholder in ("example.com", "example.org", "your-name", "USERNAME", "ORGANISATION"):
        assert placeholder not in addresses


def test_the_release_page_names_what_there_is():
    text = (ROOT / "RELEASE.rst").read_text(encoding="utf-8")
    for name in re.findall(
        r"``((?:docs/|\.)?[\w/.-]+\.(?:py|txt|toml|rst|md|cff|yaml|yml))``", text
    ):
        candidates = [ROOT / name, ROOT / ".github" / "workflows" / name]
        assert any(path.exists() for path in candidates), name
    for step in re.findall(r"\.ci/run (\w+)", text):
        assert step in steps_of_ci()


def test_the_version_is_in_one_form():
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev0)?", skdice.__version__)
