"""`tandem check` and `tandem models`: what each public name resolves to, as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from config import readiness
from config.readiness import ModelReport, Report
from config.schema import Settings
from gateway.startup import Choice
from local_models.launch import BUILTIN_MODELS

EXIT_UNUSABLE = 1


def check(choice: Choice, environ: Mapping[str, str], data_dir: Path) -> int:
    """Print the whole report. Returns 1 if a model cannot be used."""
    report = _report(choice.settings, environ, data_dir)
    for line in check_lines(choice, report):
        print(line)
    return EXIT_UNUSABLE if report.unusable else 0


def models(choice: Choice, environ: Mapping[str, str], data_dir: Path) -> int:
    """Print one line for each public name."""
    for line in model_lines(choice.settings, _report(choice.settings, environ, data_dir)):
        print(line)
    return 0


def _report(settings: Settings, environ: Mapping[str, str], data_dir: Path) -> Report:
    return readiness.check(settings, readiness.gather(settings, BUILTIN_MODELS, environ, data_dir))


def check_lines(choice: Choice, report: Report) -> Iterator[str]:
    """Profile and reason, then each model with its deployments in the order in which they are tried."""
    settings = choice.settings
    yield f"profile {settings.profile}: {choice.reason}"
    yield f"read: {', '.join(settings.sources)}"
    for model in report.models:
        yield ""
        yield f"{model.name} ({model.kind}){'' if model.usable else ': cannot be used yet'}"
        for number, deployment in enumerate(model.deployments, 1):
            where = f"{number}. {deployment.model} on {deployment.upstream} ({deployment.kind})"
            yield f"  {where}: {'usable' if deployment.usable else 'not usable'}"
            for missing in deployment.missing:
                yield f"       {missing.what}"
                yield f"       -> {missing.remedy}"
    yield ""
    yield _summary(report)


def _summary(report: Report) -> str:
    if not report.unusable:
        return "every model can be used"
    names = ", ".join(model.name for model in report.unusable)
    return f"{len(report.models) - len(report.unusable)} of {len(report.models)} models can be used; not yet: {names}"


def model_lines(settings: Settings, report: Report) -> Iterator[str]:
    """Name, kind, who answers first, description."""
    width = max(len(model.name) for model in report.models)
    for model, spec in zip(report.models, settings.models, strict=True):
        yield f"{model.name:<{width}}  {model.kind:<5}  {_answers(model)}{f'  - {spec.description}' if spec.description else ''}"


def _answers(model: ModelReport) -> str:
    first = next((deployment for deployment in model.deployments if deployment.usable), None)
    return "not usable (tandem check)" if first is None else f"{first.model} on {first.upstream}"
