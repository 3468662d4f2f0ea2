"""Every option of training and evaluation, typed once: flags, ``--help`` and YAML come from here.

No import of torch: ``deqlm train --help`` is quick.
"""
