"""Reports as HTML and as Markdown, by templates."""

import base64
import hashlib
import re
import shlex
from importlib.resources import files
from typing import Any

from skdice._compat.extras import import_extra
from skdice.metrics._counts import RULES, fpr_name
from skdice.report import _charts, _numbers
from skdice.report._measures import OPERATING_RATES
from skdice.report._numbers import rate_percent
from skdice.report._seen import (
    CALIBRATION,
    LEAST_SAME_ROWS,
    LEAST_SAME_SCORES,
    REPEATED,
    TRAINING,
)

# A page with the classes of a very large head would be too large to read, to print and to send.
MOST_CLASSES = 200
_MARKDOWN_SIGNS = re.compile(r"([\\`*_{}\[\]|~$])")


def render_html(report: Any, file_name: str) -> str:
    """Return a report as a page.

    The name of the file is for the command that makes it again.
    """
    environment = _environment()
    environment.filters["prose"] = _unbroken
    templates = files("skdice.report") / "templates"
    script = (templates / "script.js").read_text(encoding="utf-8")
    style = (templates / "style.css").read_text(encoding="utf-8")
    markup = import_extra("markupsafe", "report").Markup
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page: str = environment.get_template("report.html").render(
        **_context(report, file_name),
        script=markup(script),
        style=markup(style),
        # The browser runs this script and no other one, whatever a name may hold.
        policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src 'sha256-{digest}'",
        histograms=[
            _charts.histogram_chart(each.name, each.histogram, _threshold_of(report))
            for each in report.sets
        ],
        rocs=[_charts.roc_chart(each) for each in report.sets],
        path_chart=None if report.path is None else _charts.path_chart(report.path),
        frame=_charts,
    )
    return page


def render_markdown(report: Any, file_name: str) -> str:
    """Return a report as sections of Markdown."""
    environment = _environment(autoescape=False)
    text: str = environment.get_template("report.md").render(**_context(report, file_name))
    return text


def escape_markdown(text: Any) -> str:
    r"""Return text that Markdown shows as it is, in one line.

    Examples
    --------
    >>> print(escape_markdown("a|b <script>"))
    a\|b &lt;script&gt;
    """
    line = " ".join(str(text).split())
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        line = line.replace(sign, entity)
    return _MARKDOWN_SIGNS.sub(r"\\\1", line)


def _unbroken(text: str) -> str:
    """Return a sentence in which no line breaks between a number and the percent sign."""
    return re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", text)


def _environment(**options: Any) -> Any:
    jinja2 = import_extra("jinja2", "report")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("skdice.report"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **{"autoescape": True, **options},
    )
    for name in ("count", "interval", "percent", "points", "rate_percent", "score"):
        environment.filters[name] = getattr(_numbers, name)
    environment.filters["md"] = escape_markdown
    return environment


def _threshold_of(report: Any) -> float | None:
    """Return the one threshold of all rows, if there is one."""
    return None if report.promise.by is not None else report.promise.threshold


def _passing(report: Any) -> float | None:
    """Return the share of outliers that pass at the detector's threshold, the mean of the sets."""
    shares = [each.flagged for each in report.sets]
    return None if None in shares else 1 - sum(shares) / len(shares)


def _checked(report: Any) -> str:
    """Tell with which seen rows the in-distribution rows were compared."""
    given = {each.name for each in report.data}
    names = [TRAINING] if TRAINING in given else []
    if CALIBRATION in given or report.promise.method == "conformal":
        names.append("the calibration")
    if not names:
        return "The report had no rows of fit or of the calibration to compare them with."
    compared = f"The report compared them with the rows of {' and of '.join(names)}"
    if any(REPEATED in warning for warning in report.warnings):
        return f"{compared}, and some are the same: see the warnings."
    least = LEAST_SAME_ROWS if CALIBRATION in given or TRAINING in given else LEAST_SAME_SCORES
    return f"{compared}, and found no sign that {rate_percent(least)} or more are the same."


def _context(report: Any, file_name: str) -> dict[str, Any]:
    """Return what both templates take."""
    by_share = sorted(
        report.inside.classes, key=lambda each: (-each.flagged, -each.n_rows, each.predicted)
    )
    shown = sorted(by_share[:MOST_CLASSES], key=lambda each: each.predicted)
    command = None
    if report.command is not None:
        command = shlex.join([*report.command, "-o", file_name])
    return {
        "report": report,
        "detector": report.detector,
        "parts": (report.detector.own, *report.detector.members),
        "promise": report.promise,
        "inside": report.inside,
        "all_sets": (report.inside, *report.sets),
        "threshold": _threshold_of(report),
        "passing": _passing(report),
        "checked": _checked(report),
        "fpr_name": fpr_name(0.95, report.rule),
        "rule_name": "the rule of Sun & Li (ECCV 2022)"
        if report.rule == "paper"
        else RULES[report.rule],
        "rates": OPERATING_RATES,
        "classes": shown,
        "n_classes_left_out": len(by_share) - len(shown),
        "command": command,
        "python": _python_lines(report, file_name),
    }


def _python_lines(report: Any, file_name: str) -> str:
    """Return the Python that makes a report again whose rows were given in memory."""
    names = ", ".join(f"{each.name!r}: ..." for each in report.sets)
    options = "" if report.rule == "paper" else f", rule={report.rule!r}"
    given = {each.name for each in report.data}
    for name, option in ((CALIBRATION, "calibration"), (TRAINING, "training")):
        options += f", {option}=..." if name in given else ""
    ending = f"to_html({file_name!r})" if file_name.endswith(".html") else "to_markdown()"
    return (
        "from skdice.report import OODReport\n\n"
        f"report = OODReport.from_detector(detector, X_id, {{{names}}}{options})\n"
        f"report.{ending}"
    )
