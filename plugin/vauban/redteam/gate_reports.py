"""The gate's verdict for code hosts: JUnit XML, and SARIF 2.1.0 (OASIS, 2020)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from vauban import __version__
from vauban.redteam.gate import RULES, Check

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(checks: Sequence[Check]) -> bytes:
    """One test case for each check."""
    failures = str(sum(not check.passed for check in checks))
    counts = {"tests": str(len(checks)), "failures": failures, "errors": "0", "skipped": "0"}
    root = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(root, "testsuite", {"name": "vauban gate", **counts})
    for check in checks:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            {"classname": f"vauban.gate.{check.kind}", "name": _xml(check.subject), "time": "0"},
        )
        said = _xml(f"{check.found}; wanted: {check.wanted}")
        if not check.passed:
            ElementTree.SubElement(case, "failure", {"message": said, "type": check.kind})
        elif check.known:
            ElementTree.SubElement(case, "system-out").text = f"known failure: {said}"
    ElementTree.indent(root)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def sarif(checks: Sequence[Check], result_file: Path) -> bytes:
    """One result for each check that failed or is known to, placed at the result file."""
    rules = [
        {"id": f"gate/{kind}", "name": kind, "shortDescription": {"text": text}}
        for kind, text in RULES.items()
    ]
    place = _relative(result_file)
    failed = [_sarif_result(check, place) for check in checks if check.known or not check.passed]
    driver = {"name": "vauban gate", "version": __version__, "rules": rules}
    document = {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": failed}],
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def _sarif_result(check: Check, place: str) -> dict[str, Any]:
    said = f"{check.name}: {check.found}; wanted: {check.wanted}"
    fingerprint = hashlib.sha256(check.name.encode("utf-8", "backslashreplace")).hexdigest()[:32]
    return {
        "ruleId": f"gate/{check.kind}",
        "ruleIndex": list(RULES).index(check.kind),
        "level": "warning" if check.known else "error",
        "message": {"text": said},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": place},
                    "region": {"startLine": 1},
                }
            }
        ],
        "partialFingerprints": {"vaubanGateCheck/v1": fingerprint},
    }


def _relative(path: Path) -> str:
    """As a URI relative to where the command runs; code hosts take no absolute paths."""
    from urllib.parse import quote

    resolved = path.resolve()
    base = Path.cwd().resolve()
    within = resolved.relative_to(base) if resolved.is_relative_to(base) else Path(path.name)
    return quote(within.as_posix())


def _xml(text: str) -> str:
    """Without the characters that XML 1.0 can't hold."""
    return _NOT_XML.sub("\ufffd", text)
