"""Every proof that the table of faults names is a test, under the marker that the table says."""

import re

from tests.conftest import ROOT


def test_every_proof_in_the_table_of_faults_is_a_test():
    table = (ROOT / "tests" / "README.md").read_text().split("| fault |")[1]
    rows = table.splitlines()[2:]
    assert len(rows) > 25
    for row in rows:
        proofs = re.findall(r"`((?:\w+/)?\w+\.py)::(\w+)`( \(\w+\))?", row)
        assert proofs, row
        for path, name, marker in proofs:
            source = (ROOT / "tests" / path).read_text()
            found = re.search(rf"((?:^@.*\n|^(?:    |\)).*\n)*)^def {name}\(", source, re.MULTILINE)
            assert found, name
            whole_file = re.search(r"^pytestmark = \[?pytest\.mark\.(\w+)", source, re.MULTILINE)
            own = re.search(r"@pytest\.mark\.(slow|system)", found[1])
            assert marker.strip(" ()") == (own or whole_file or [None, ""])[1], name
