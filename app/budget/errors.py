"""What the ledger refuses, by name."""

from app.core.errors import Conflict
from app.core.i18n import _


class BudgetExceeded(Conflict):
    """The reservation would lift the account over its ceiling."""

    code, title = "budget_exceeded", _("Privacy budget exceeded")
    meaning = _("What is spent, what is reserved and what was asked for are together above the ceiling.")
    remedy = _("Plan a cheaper run (more noise, fewer rounds), or have a privacy officer grant more.")


class LedgerConflict(Conflict):
    """The same reference was booked before, with other numbers."""

    code, title = "ledger_conflict", _("Booked differently before")
    meaning = _("The ledger holds an entry of this kind and reference with other amounts.")
    remedy = _("A changed cost is another booking: give it its own reference.")


class NotReserved(Conflict):
    """A spend or void beyond what its reservation still holds."""

    code, title = "not_reserved", _("Not reserved")
    meaning = _("Budget can be spent or given back only out of a reservation that still holds it.")
    remedy = _("Read the account's entries; reserve first.")


class PopulationTaken(Conflict):
    """The data set's account belongs to a client that is still active, or adds up otherwise."""

    code, title = "population_taken", _("The data set has an account already")
    meaning = _("One data set has one account for all its runs and clients, of one kind, for ever.")
    remedy = _("Suspend the client that uses the data set, and enrol with the same kind of budget.")


class CeilingOverOrganisation(Conflict):
    """A grant above what the organisation allows any of its accounts."""

    code, title = "ceiling_over_organisation", _("Above the organisation's ceiling")
    meaning = _("The organisation has set a ceiling for the epsilon of each of its accounts; this passes it.")
    remedy = _("Grant less, or have the organisation's ceiling raised.")


class BudgetStays(Conflict):
    """A client whose data set has spent budget cannot go to another organisation."""

    code, title = "budget_stays", _("The budget stays with the data set")
    meaning = _("What was spent belongs to the data set; at another organisation it would be forgotten.")
    remedy = _("Revoke the client, and enrol the machine anew on a data set of the other organisation.")
