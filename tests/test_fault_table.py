"""The table of faults in README.md names existing tests, with their markers."""

import re

from tests.conftest import ROOT


def test_the_table_of_faults_names_tests():
    rows = (ROOT / "tests" / "README.md").read_text().split("| fault |")[1].splitlines()[2:]
    assert len(rows) > 25
    for row in rows:
        tests = re.findall(r"`((?:\w+/)?\w+\.py)::(\w+)`( \(\w+\))?", row)
        assert tests, row
        for path, name, marker in tests:
            source = (ROOT / "tests" / path).read_text()
            found = re.search(rf"((?:^@.*\n|^(?:    |\)).*\n)*)^def {name}\(", source, re.MULTILINE)
            assert found, name
            whole_file = re.search(r"^pytestmark = \[?pytest\.mark\.(\w+)", source, re.MULTILINE)
            own = re.search(r"@pytest\.mark\.(slow|system)", found[1])
            assert marker.strip(" ()") == (own or whole_file or [None, ""])[1], name
