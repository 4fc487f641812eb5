"""The subcommand that writes the evidence on a detector."""

from argparse import Namespace

from skdice._compat.extras import import_extra
from skdice.cli._files import print_result, refuse_overwriting
from skdice.report import OODReport


def report(arguments: Namespace) -> None:
    """Measure a saved detector, and write what it is, what it promises and how it did."""
    # A missing library must be found before the scores are computed.
    import_extra("jinja2", "report")
    output = arguments.output
    seen = {name: getattr(arguments, name) for name in ("calibration", "training")}
    inputs = arguments.id, *arguments.ood.values(), *filter(None, seen.values())
    refuse_overwriting(output, arguments.detector, *inputs)
    evidence = OODReport.from_detector(
        arguments.detector, arguments.id, arguments.ood, **seen, key=arguments.key
    )
    if output.suffix == ".md":
        evidence.to_markdown(output)
    else:
        evidence.to_html(output)
    n_warnings = len(evidence.warnings)
    facts = {
        "output": str(output),
        "id_flagged": evidence.inside.flagged,
        "ood_flagged": {each.name: each.flagged for each in evidence.sets},
        "fpr95": evidence.fpr95.value,
        "auroc": evidence.auroc.value,
        "warnings": list(evidence.warnings),
        "promise": evidence.promise.statement,
    }
    print_result(
        arguments,
        facts,
        f"mean FPR95 {evidence.fpr95.value:.1%}, mean AUROC {evidence.auroc.value:.1%}, "
        f"{n_warnings} warning{'s' * (n_warnings != 1)}; wrote {{output}}",
    )
