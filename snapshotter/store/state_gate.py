"""The gate's part of `state.db`: numbers that inode numbers are made of, so that a later process gives the same ones."""

from typing import NamedTuple

from snapshotter.store.state_database import StateDatabase


class GateFile(NamedTuple):
    """A file that the kernel knows by an inode of the gate; `name` is the last part of its path there."""

    number: int
    domain: str
    name: str
    size: int


class GateTable(StateDatabase):
    """Numbers of sharing domains, and of files that the gate serves itself."""

    def domains(self) -> dict[str, int]:
        """The number of every sharing domain that a layer was ever recorded in."""
        with self.read() as db:
            return {row["name"]: row["number"] for row in db.execute("SELECT name, number FROM domains")}

    def gate_files(self) -> list[GateFile]:
        """Every file that was given an inode since the last `begin_mount`."""
        with self.read() as db:
            rows = db.execute("SELECT number, domain, name, size FROM gate_files").fetchall()
        return [GateFile(*row) for row in rows]

    def add_gate_file(self, domain: str, name: str, size: int) -> GateFile:
        """Give a file a number, or return the record that it has; on disk when this returns."""
        with self.write() as db:
            query = "SELECT number, domain, name, size FROM gate_files WHERE domain = ? AND name = ?"
            if db.execute(query, (domain, name)).fetchone() is None:
                db.execute("INSERT INTO gate_files (domain, name, size) VALUES (?, ?, ?)", (domain, name, size))
            return GateFile(*db.execute(query, (domain, name)).fetchone())

    def begin_mount(self) -> None:
        """A fresh mount knows no file and no domain: files go, domains that layers have stay, and numbers begin anew.

        Inode numbers have room for few domains, and for files of one mount only.
        """
        with self.write() as db:
            db.execute("DELETE FROM gate_files")
            db.execute("DELETE FROM domains")
            db.execute("DELETE FROM sqlite_sequence WHERE name IN ('domains', 'gate_files')")
            db.execute("INSERT INTO domains (name) SELECT DISTINCT domain FROM layers ORDER BY 1")
