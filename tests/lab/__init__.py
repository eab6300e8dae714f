"""A disposable cluster of real OpenSSH hosts in Linux namespaces, for tests and for people.

`with Lab(hosts=3) as lab:` brings the hosts up, `lab.hosts["h1"]` runs commands on one and
breaks its network, its power or its disk. Needs root and iproute2; `Lab.available()` says
what is missing. Everything a lab makes is gone when it ends, also when its test crashed.
"""

from tests.lab.errors import LabError
from tests.lab.host import Host
from tests.lab.lab import Lab

__all__ = ["Host", "Lab", "LabError"]
