"""On the import path of the tests' subprocesses, to limit them to loopback too."""

from tests.support.loopback import refuse_other_hosts

refuse_other_hosts()
