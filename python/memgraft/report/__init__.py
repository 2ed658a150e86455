"""Reports: what a bank covers and what the arms lost, as ``report.json`` and one self-contained ``report.html``."""

from memgraft.report.build import REPORT_HTML, REPORT_JSON, bank_facts, build_facts, provenance, write_report
from memgraft.report.page import render
from memgraft.report.tokens import tokens_page

__all__ = [
    "REPORT_HTML",
    "REPORT_JSON",
    "bank_facts",
    "build_facts",
    "provenance",
    "render",
    "tokens_page",
    "write_report",
]
