"""The Spark context that a command works with: the one that is there, or one of ours.

One of ours lives until the command ends, for all of its jobs; another one is never stopped.
"""

from __future__ import annotations

import atexit
import contextlib
import ipaddress
import os
import re
import shutil
import socket
import sys
import tempfile
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.engines.processes import thread_environment
from pipelines.engines.settings import RunSettings
from schemas.errors import UserError

if TYPE_CHECKING:
    from pyspark import SparkContext

CONNECT_SECONDS = 10.0  # for a master to answer
STOP_SECONDS = 20.0  # for a context to stop, before its JVM is killed
FAILURES = 8  # of a task, before Spark gives the job up
# What executors get of the driver's environment: credentials, our settings.
CARRIED = re.compile(r"(AWS|GOOGLE|AZURE|RRT)_[A-Z0-9_]+")
# Of the driver and no concern of its executors: workers of this machine, tests.
_OWN = ("RRT_PARENT_PID", "RRT_PYTHON", "RRT_VENV", "RRT_EXTRAS", "RRT_INSTALLER")
_LOCAL = re.compile(r"local(?:\[(\d+|\*)(?:,\s*(\d+))?\])?")
_LOGGING = """\
rootLogger.level = error
rootLogger.appenderRef.stderr.ref = console
appender.console.type = Console
appender.console.name = console
appender.console.target = SYSTEM_ERR
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{HH:mm:ss} %p %c{1}: %m%n%ex
"""


@dataclass
class Session:
    """A context, and what is ours of it.

    own      whether this process made it
    folder   of the log and of what is shipped
    process  of the JVM that was started for it
    """

    context: SparkContext
    own: bool
    folder: str
    process: Any = None

    @property
    def log(self) -> str:
        """File that Spark's driver and, on one machine, its workers print to."""
        return os.path.join(self.folder, "spark.log")

    @property
    def master(self) -> str:
        """Where it runs."""
        return str(self.context.master)

    @property
    def alive(self) -> bool:
        """Whether the context was not stopped, by us or by Spark."""
        try:
            return self.context._jsc is not None and not self.context._jsc.sc().isStopped()
        except Exception:  # noqa: BLE001  a JVM that is gone raises what py4j has
            return False


_session: Session | None = None


def open_session(settings: RunSettings) -> Session:
    """The command's session, begun where there is none.

    Raises UserError: no pyspark or Java, no master that answers, a Spark Connect session.
    """
    global _session
    if _session is not None and _session.alive:
        return _session
    try:
        from pyspark import SparkContext
    except ImportError as error:
        raise UserError(
            "--engine spark needs the package pyspark; give RRT_EXTRAS=spark to run_pipeline.sh "
            "once, or install it"
        ) from error

    _refuse_connect(settings.master)
    folder = tempfile.mkdtemp(prefix="rrt-spark-")
    existing = SparkContext._active_spark_context
    if existing is not None:
        if settings.master or settings.spark_conf:
            raise UserError(
                "--master and --spark-conf have no effect on the Spark session that is there "
                "already; leave them out, or stop that session first"
            )
        _session = Session(existing, False, folder)
    else:
        _session = _begin(settings, folder)
    return _session


def close_session() -> None:
    """Stop the context if it is ours, at the latest after STOP_SECONDS."""
    global _session
    closed, _session = _session, None
    if closed is None:
        return
    if closed.own:
        stopping = threading.Thread(target=_stop, args=(closed.context,), daemon=True)
        stopping.start()
        stopping.join(STOP_SECONDS)
        if closed.process is not None:
            with contextlib.suppress(OSError):
                closed.process.stdin.close()  # by which the JVM ends
            with contextlib.suppress(Exception):
                closed.process.wait(5)
            closed.process.kill()
            closed.process.wait()
            _forget_gateway()
    shutil.rmtree(closed.folder, ignore_errors=True)


atexit.register(close_session)


def _stop(context: SparkContext) -> None:
    with contextlib.suppress(Exception):
        context.stop()


def _forget_gateway() -> None:
    """So that a further session begins a JVM of its own: pyspark keeps the first one."""
    from pyspark import SparkContext

    SparkContext._gateway = SparkContext._jvm = None


def _refuse_connect(master: str) -> None:
    if master.startswith("sc://") or os.environ.get("SPARK_REMOTE"):
        raise UserError(
            "Spark Connect has no RDDs, which units need: give --master spark://HOST:7077, yarn or "
            "k8s://..., or start the command by spark-submit (and unset SPARK_REMOTE)"
        )


def _begin(settings: RunSettings, folder: str) -> Session:
    """A context of ours."""
    from pyspark import SparkConf, SparkContext
    from pyspark.java_gateway import launch_gateway

    submitted = "PYSPARK_GATEWAY_PORT" in os.environ
    conf = our_settings(settings, folder, submitted)
    if not submitted:
        _refuse_without_java()
        refuse_silent_master(conf["spark.master"])

    log = open(os.path.join(folder, "spark.log"), "ab")  # noqa: SIM115  the JVM's, while it lives
    try:
        launching = SparkConf(loadDefaults=False).setAll(list(conf.items()))
        # The JVM dies with this process, by its standard input.
        gateway = launch_gateway(launching, {"stdout": log, "stderr": log})
        SparkContext._ensure_initialized(gateway=gateway)
        made = SparkConf()
        for name, value in conf.items():
            if name in settings.spark_conf or not submitted:
                made.set(name, value)
            else:
                made.setIfMissing(name, value)  # what spark-submit was told wins
        context = SparkContext(conf=made, gateway=gateway)
    except Exception as error:
        text = " ".join(_tail(log.name, 3).split()) or str(error)
        raise UserError(f"Spark could not be started: {text[-600:]}") from error
    finally:
        log.close()

    python = executor_python(settings.executor_python, str(context.master))
    if python:
        context.pythonExec = python
    return Session(context, True, folder, getattr(gateway, "proc", None))


def our_settings(settings: RunSettings, folder: str, submitted: bool = False) -> dict[str, str]:
    """Spark's settings of a context of ours; the user's --spark-conf win. Values are text."""
    logging = os.path.join(folder, "log4j2.properties")
    with open(logging, "w") as file:
        file.write(_LOGGING)

    given = {name: _text(value) for name, value in settings.spark_conf.items()}
    default = "" if submitted else f"local[{settings.worker_count}]"
    master = with_failures(settings.master or given.get("spark.master", default))
    threads = settings.threads_per_worker
    conf = {
        "spark.app.name": "rrt-pipelines",
        "spark.ui.showConsoleProgress": "false",
        "spark.task.maxFailures": str(FAILURES),
        "spark.speculation": "false",
        "spark.task.cpus": str(threads),
        "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile=file:{logging}",
    }
    if is_local(master):
        conf["spark.ui.enabled"] = "false"
    if is_loopback(master):
        conf["spark.driver.host"] = conf["spark.driver.bindAddress"] = "127.0.0.1"
    carried = {
        name: value
        for name, value in os.environ.items()
        if CARRIED.fullmatch(name) and name not in _OWN
    }
    for name, value in (carried | thread_environment(threads)).items():
        conf[f"spark.executorEnv.{name}"] = value

    conf |= given
    return conf | ({"spark.master": master} if master else {})


def with_failures(master: str) -> str:
    """`local[N]` with as many failures of a task as a cluster allows: it would end at the first."""
    match = _LOCAL.fullmatch(master)
    if match is None or match[2]:
        return master
    return f"local[{match[1] or 1},{FAILURES}]"


def is_local(master: str) -> bool:
    """Whether units are done by this machine's own processes, without a cluster."""
    return _LOCAL.fullmatch(master) is not None or master.startswith("local-cluster")


def is_loopback(master: str) -> bool:
    """Whether all of the master's addresses are this machine's own, which no other one reaches."""
    if is_local(master):
        return True
    hosts = [host for host, _ in addresses_of(master)]
    return bool(hosts) and all(map(_is_own, hosts))


def addresses_of(master: str) -> list[tuple[str, int]]:
    """Hosts and ports of a standalone master, or several; empty for others."""
    if not master.startswith("spark://"):
        return []
    found = []
    for entry in master.removeprefix("spark://").split(","):
        host, _, port = entry.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
            raise UserError(f"--master is {master!r}; it must be spark://HOST:PORT, such as :7077")
        found.append((host.strip("[]"), int(port)))
    return found


def refuse_silent_master(master: str) -> None:
    """Raise UserError where no standalone master answers: Spark itself would wait in silence."""
    addresses = addresses_of(master)
    why: OSError | None = None
    for address in addresses:
        try:
            socket.create_connection(address, CONNECT_SECONDS).close()
            return
        except OSError as error:
            why = error
    if addresses:
        raise UserError(
            f"--master {master}: no Spark master answers there ({why}); start it, or give the URL "
            f"that its page shows"
        )


def executor_python(given: str, master: str) -> str:
    """The Python of executors: what the user says; on this machine our own; else Spark's choice."""
    if given or not is_loopback(master):
        return given
    return os.environ.get("PYSPARK_PYTHON") or sys.executable


def _refuse_without_java() -> None:
    home = os.environ.get("JAVA_HOME", "")
    java = os.path.join(home, "bin", "java") if home else "java"
    if shutil.which(java) is None:
        where = f"JAVA_HOME is {home}, and there is none" if home else "there is none on the PATH"
        raise UserError(
            f"--engine spark needs Java 8, 11 or 17, and {where}; install it, or set JAVA_HOME"
        )


def _is_own(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _text(value: object) -> str:
    """A setting as Spark writes it, of what --spark-conf was read as."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(map(_text, value))
    return "" if value is None else str(value)


def _tail(path: str, lines: int) -> str:
    with contextlib.suppress(OSError), open(path, errors="replace") as file:
        return "".join(file.readlines()[-lines:])
    return ""
