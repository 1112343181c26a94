"""Makes the PrometheusRule of the component `monitoring` from the rules that compose uses: `python prometheus_rule.py`.

Kustomize reads no files outside its own folder, and a rule must not exist in two versions.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

HERE = Path(__file__).parent
RULES = HERE.parents[1] / "docker/prometheus/rules/service.yml"
PROMETHEUS_RULE = HERE / "components/monitoring/prometheus-rule.yaml"

HEAD = """\
# Made by prometheus_rule.py from docker/prometheus/rules/service.yml; change it there.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: convmlp
  labels: { app.kubernetes.io/name: convmlp-serving }
spec:
"""


def prometheus_rule(rules: str) -> str:
    """The object that has these rules: a rule file is, word for word, what it has under `spec`."""
    return HEAD + textwrap.indent(rules, "  ")


if __name__ == "__main__":
    PROMETHEUS_RULE.write_text(prometheus_rule(RULES.read_text(encoding="utf-8")), encoding="utf-8")
