"""On the path of subprocesses of tests: they too reach loopback only."""

from tests.support.loopback import refuse_other_hosts

refuse_other_hosts()
