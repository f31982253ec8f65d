"""Two reports in, a verdict or a list of changes out. Nothing here measures, prints or imports torch.

``judge`` holds a report to a baseline under a policy; ``compare`` lists what changed. Rules are written in a small
grammar (:func:`spectrascope.gating.grammar.parse_rule`) and may speak of any number a report holds.
"""

from __future__ import annotations

from spectrascope.gating.changes import compare
from spectrascope.gating.grammar import parse_rule
from spectrascope.gating.judgement import judge
from spectrascope.gating.policy import default_policy, policy_from_table

__all__ = ["compare", "default_policy", "judge", "parse_rule", "policy_from_table"]
