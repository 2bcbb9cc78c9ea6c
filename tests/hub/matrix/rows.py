"""The loads: what was published, who loads it and how. And the rule: what must come of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# what was published under which name, and in which of the three tiers
TIERS = {
    "native": "native",
    "plugin": "plugin",
    "dual": "dual",
    "adapter": "dual",  # on the Hub's "dual" as its base
    "merged": "dual",  # the same two, merged
    "xl3m": "dual",  # with settings of XL3M in generation_config.json
    "private": "dual",
    "branches": "native",  # on main; its branch, and the tag on that, have "dual"
    # loaded, and pushed once more
    "dual-again": "dual",  # by its own class
    "plugin-again": "plugin",  # "dual" by the stock class, with hf_longctx
    "native-again": "native",  # without hf_longctx
    "xl3m-again": "plugin",  # by the stock class, with hf_longctx
    "without-again": "dangling",  # "dual" by the stock class, without hf_longctx: nobody takes out the `auto_map`
    "repaired": "dual",  # a copy of that, by `hf-longctx hub repair`
}
BRANCH, TAG = "extended", "v1"
PACKAGES = ("absent", "installed", "imported")  # hf_longctx in the process that loads; "installed" is not imported
STOCK, EXTENDED, SCALED = "stock", "extended", "scaled"
OURS, DANGLING, REFUSED = "our line", "no such file", "not allowed"  # the errors
# the ways that read no weights
FILES_ONLY = ("config", "tokenizer")


@dataclass(frozen=True)
class Row:
    """One load in a new process.

    Args:
        published: A name in `TIERS`.
        package: One of `PACKAGES`.
        trust: The argument `trust_remote_code`; None where it is not given.
        way: A function of `probe.WAYS`.
        place: "folder", or "id" of the Hub.
        revision: A branch or a tag.
        token: Of the reader.
        before: What the same process has loaded before, with trust, from its folder.
    """

    published: str
    package: str
    trust: bool | None = None
    way: str = "causal"
    place: str = "id"
    revision: str | None = None
    token: str | None = "good"
    before: str | None = None

    @property
    def name(self) -> str:
        """A name for the table, the file and `pytest -k`."""
        words = [self.published, self.package, f"trust={self.trust}", self.way, self.place]
        words += [f"revision={self.revision}"] if self.revision else []
        words += [f"token={self.token}"] if self.token != "good" else []
        words += [f"after {self.before}"] if self.before else []
        return " ".join(words)

    @property
    def tier(self) -> str:
        return "dual" if self.revision else TIERS[self.published]

    @property
    def adapted(self) -> bool:
        """Whether the weights of the adapter count."""
        return self.published in ("adapter", "merged")

    @property
    def expected(self) -> str:
        """What must come of it: which model, or whose error."""
        if self.published == "private" and self.token != "good":
            return REFUSED
        if self.way in FILES_ONLY:
            return STOCK
        if self.tier == "native":
            return SCALED
        trusted = self.trust and self.tier in ("dual", "dangling")
        if trusted and self.tier == "dangling":
            return DANGLING
        if trusted and self.package == "absent":
            return OURS
        return EXTENDED if trusted or self.imported else STOCK

    @property
    def our_class(self) -> bool:
        """Whether the model must be of a class of hf_longctx."""
        return self.way == "class" or (self.expected == EXTENDED and bool(self.trust) and self.tier == "dual")

    @property
    def imported(self) -> bool:
        """Whether the reader has imported hf_longctx, itself or by what it has loaded before."""
        return self.package == "imported" or self.way == "class" or self.before is not None

    @property
    def imports(self) -> bool:
        """Whether the process has hf_longctx afterwards."""
        return self.imported or self.our_class


def rows() -> list[Row]:
    """All of them."""
    return list(_rows())


def groups(wanted: list[Row], largest: int) -> list[list[Row]]:
    """Rows for one process each: of one package and one token, and none that changes what a later one finds.

    Those that get our class by trust run last, as transformers registers it; one that imports hf_longctx where it is
    only installed is the last of its process.
    """
    found: dict[tuple[str, str | None], list[list[Row]]] = {}
    for row in sorted(wanted, key=lambda row: (row.imports, row.our_class)):
        mine = found.setdefault((row.package, row.token), [])
        open_ = next((group for group in mine if len(group) < largest and not _closes(group[-1])), None)
        if open_ is None or row.before is not None:
            mine.append([row])
        else:
            open_.append(row)
    return [group for mine in found.values() for group in mine]


def _closes(row: Row) -> bool:
    return row.before is not None or (row.package == "installed" and row.imports)


def _rows() -> Iterator[Row]:
    for published in ("native", "plugin", "dual"):
        for package in PACKAGES:
            for trust in (None, True, False):
                yield Row(published, package, trust, place="folder")
                if trust is not False or published == "dual":
                    yield Row(published, package, trust)
    for package in PACKAGES:
        for trust in (None, True):
            yield Row("dual", package, trust, "pipeline")
            yield Row("dual", package, trust, "base", "folder")
            yield Row("dual", package, trust, "classification")
            yield Row("adapter", package, trust)
            yield Row("adapter", package, trust, "peft", "folder")
            yield Row("dual-again", package, trust)
        yield Row("plugin", package, None, "pipeline", "folder")
        yield Row("plugin-again", package)
        yield Row("without-again", package)
        yield Row("without-again", package, True)
        yield Row("merged", package, package == "installed" or None)
        yield Row("xl3m", package, package == "installed" or None)
        yield Row("private", package, package != "imported" or None)
    yield Row("native", "absent", None, "pipeline")
    yield Row("native", "absent", None, "base")
    yield Row("native-again", "absent")
    yield Row("native-again", "imported", True)
    yield Row("plugin-again", "installed", True)
    yield Row("merged", "absent", True)
    yield Row("repaired", "absent")
    yield Row("repaired", "absent", True)
    yield Row("repaired", "installed", True, place="folder")
    yield Row("xl3m-again", "absent")
    yield Row("xl3m-again", "imported")
    for package, trust in (("absent", None), ("absent", True), ("installed", True), ("imported", None)):
        yield Row("branches", package, trust, revision=BRANCH)
    yield Row("branches", "installed", True, revision=TAG)
    yield Row("branches", "installed", True)
    for token in (None, "wrong"):
        yield Row("private", "installed", True, token=token)
    for way in FILES_ONLY:
        yield Row("dual", "absent", None, way)
        yield Row("dual", "absent", True, way)
    for published in ("native", "plugin", "dual"):
        yield Row(published, "installed", None, "class")
    yield Row("native", "installed", None, before="dual")
    yield Row("plugin", "installed", None, "causal", "folder", before="dual")
