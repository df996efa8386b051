"""Systems of the public tables by their short names: their machines, and the rows that they and frameworks borrow."""

from __future__ import annotations

from collections.abc import Iterator

from helix_sim.core.errors import SpecError
from helix_sim.specs.load import load_framework, load_machine, shipped
from helix_sim.specs.machine import Machine
from helix_sim.specs.public_tables import Borrowed, PublicTables


def systems() -> dict[str, Machine]:
    """The shipped machines that have public tables, by their short names (gb200, b200, h100)."""
    machines = [load_machine(name) for name in shipped("machine")]
    return {machine.public_tables.system: machine for machine in machines if machine.public_tables}


def machine_of(system: str) -> Machine:
    """The machine of a system of the public tables; SpecError with the known ones where there is none."""
    known = systems()
    if system not in known:
        raise SpecError([f"--system: {system!r} is not one of {', '.join(known)}"])
    return known[system]


def tables_of(system: str) -> PublicTables:
    """Where a system's tables lie, and what they borrow."""
    tables = machine_of(system).public_tables
    assert tables is not None
    return tables


def check_names(system: str, framework: str) -> None:
    """SpecError where there are no tables of a system or of a framework on it."""
    problems, frameworks = [], shipped("framework")
    try:
        frameworks = tables_of(system).frameworks
    except SpecError as error:
        problems += error.problems
    if framework not in frameworks:
        problems.append(f"--framework: {framework!r} is not one of {', '.join(frameworks)}")
    if problems:
        raise SpecError(problems)


def borrowed(system: str, framework: str, table: str) -> Iterator[tuple[Borrowed, str, str]]:
    """What a framework's table on a system borrows: the record, and the system and the framework that lend."""
    for record in (*tables_of(system).borrowed, *load_framework(framework).borrowed):
        lender = record.from_system or system, record.from_framework or framework
        elsewhere = lender != (system, framework) or record.from_version is not None
        if record.table == table and record.framework in (None, framework) and elsewhere:
            yield record, *lender
