"""What an explanation of a plan says, in words that need no course in statistics. Marked for translation.

The certificate has its own texts, in fixed English, since they are signed; what is claimed here is no more.
"""

from __future__ import annotations

from app.core.i18n import _

TITLE = _("What this plan protects: {name}")
PROTECTED = {
    "example": _(
        "One record in one client's data set. Whoever is behind several records is protected less: "
        "about as many times the epsilon as there are records."
    ),
    "person": _(
        "All records of one person in one client's data set, told by the field {id_field}, at most "
        "{records_cap} of them. A person may be in {silos} data sets; for that the larger epsilon "
        "holds. Records without an id are not covered as a person's."
    ),
    "client": _(
        "The whole data set of one client, and so every person and record in it. A person whose "
        "records several clients hold is protected less."
    ),
}
NOT_PROTECTED = _(
    "Nothing. The run uses no privacy mechanism: its updates and its adapters may reveal what they "
    "were trained on."
)
FROM_WHOM = {
    "local": _(
        "From everybody who sees what leaves a client: the server and its operator, all other clients, "
        "and whoever gets an adapter, even if they know everything else. They do not learn which "
        "records entered a step: that is drawn inside the client and never leaves it."
    ),
    "central": _(
        "From everybody but the operator of the server, who sees the updates as they are sent and is "
        "trusted with them: from all other clients and from whoever gets an adapter, even if they know "
        "all other data."
    ),
    "none": _("From nobody."),
}
SECRET_COHORT = _(
    "They do not learn which clients were drawn for a round, nor how many; a client that was drawn "
    "knows it of itself. Without that secret the promise would be weaker."
)
RELATIONS = {
    "zero_out": _(
        "Whether the data of the protected one counted, or was replaced by nothing. That it exists, "
        "who takes part, and when, is public."
    ),
    "replace_one": _("Whether the data was that of the protected one, or of anybody else."),
    "add_remove": _("Whether the protected one was there at all."),
}
COMPOSITION = {
    "local": _(
        "All {steps} steps of a client in this run are counted together. What is done with its updates "
        "later costs nothing more. Every client's loss counts for itself; the largest is stated, never "
        "an average. Other runs on the same data are added in the data set's account."
    ),
    "central": _(
        "All {steps} rounds of this run are counted together, for every client, drawn or not. What is "
        "done with the adapters later costs nothing more. Other runs on the same data are added in the "
        "data set's account."
    ),
    "none": _("Nothing is counted, and no later sum can cover this run."),
}
BASIS = {
    "local": _("Each client's own software clips and adds the noise. Nobody has confirmed that it did."),
    "central": _("The operator's server clips and adds the noise. Nobody has confirmed that it did."),
    "none": _("There is nothing to rest on."),
}
ATTACK = _(
    "An attacker who wants to find out whether the protected one's data was used, and who accuses one "
    "in a hundred wrongly, finds at most {percent} of those that were, whatever the attack. By "
    "guessing it would be 1 %."
)
NOISE = {
    "local": _(
        "In one step of one client the noise is {single} times as long as the sum could be if all of "
        "the batch agreed. Over all steps and clients of the run together it is {whole} times."
    ),
    "central": _(
        "In one round the noise is {single} times as long as the sum could be if all drawn clients "
        "agreed. Over all rounds of the run together it is {whole} times."
    ),
}
WARNINGS = {
    "no_learning_expected": _(
        "No learning is to be expected: over the whole run the noise is longer than the signal could "
        "ever be. Take more clients or records, larger batches, fewer trained parameters, or a larger "
        "epsilon."
    ),
    "weak_promise": _(
        "The promise is weak: at one wrong accusation in a hundred an attack may find more than half "
        "of those whose data was used. Plan more noise, fewer steps, or a lower rate."
    ),
    "delta_large": _(
        "The delta is larger than one in ten thousand: it should be far below one divided by the "
        "number of the protected."
    ),
    "not_priced": _("The plan has no price yet, so there are no numbers; have it priced."),
    "no_privacy": _("The run has no privacy mechanism. Consent to the data's use does not replace one."),
}
NIST_TITLES = {
    "unit": _("Unit of privacy"),
    "epsilon": _("Epsilon"),
    "delta": _("Delta"),
    "trust_model": _("Trust model"),
    "mechanism": _("Mechanism"),
    "sampling": _("Sampling"),
    "composition": _("Composition"),
    "side_channels": _("Side channels"),
    "not_covered": _("What is not covered"),
}
EPSILON = _(
    "{epsilon} for the whole run, by {accountant}. Nothing that anybody concludes from the run becomes "
    "more than {factor} times as likely through the data of one protected unit, but for the delta."
)
EPSILON_SILOS = _("For one person in {silos} data sets: {epsilon}.")
EPSILON_TARGET = _("Not priced yet; the plan allows at most {epsilon}.")
EPSILON_OPEN = _("Not priced yet; the plan fixes its noise and takes the epsilon that follows.")
DELTA = _("{delta} for the whole run: as much probability may lie outside the bound of epsilon.")
NO_CLAIM = _("None: nothing is claimed.")
MECHANISM = {
    "example": _(
        "In every step each record's gradient is shortened to length {clip_norm}, and Gaussian noise "
        "is added to each coordinate of their sum, inside the client."
    ),
    "person": _(
        "In every step the sum of each person's gradients is shortened to length {clip_norm}, and "
        "Gaussian noise is added to each coordinate of their sum, inside the client."
    ),
    "client": _(
        "In every round each client's update is shortened to length {clip_norm}, and Gaussian noise is "
        "added to each coordinate of their sum, on the server."
    ),
}
MULTIPLIER = _("The noise's standard deviation is {multiplier} times that length.")
ADAPTIVE = _("The length follows a quantile of the updates' lengths, by counts with noise of their own.")
SAMPLING = {
    "example": _("Every record enters a step by itself with probability {rate}, a constant of the plan."),
    "person": _("Every person enters a step by itself with probability {rate}, a constant of the plan."),
    "all": _("Everything takes part in every step: no secret is counted on."),
    "cohort": _(
        "Every client is drawn for a round by itself with probability {rate}, at most {cap} of at most "
        "{n_max}. The draw is secret."
    ),
    "everyone": _("Every client takes part in every round: no secret is counted on."),
}
CANARIES = _(
    "{canaries} made-up contributions take part beside the clients, for an audit of the run: each is drawn, "
    "cut and shortened like a client's. The price is for their places as well, and nobody learns before the "
    "end which half of them is empty."
)
SIDE_CHANNELS = _(
    "Sums are exact integers on a grid, and the noise is drawn from a cryptographic generator, so that "
    "digits of numbers tell nothing. Times of rounds and receipts, who the clients of a run are, and "
    "the sizes of updates are public. How long a machine computes is not hidden from who watches that "
    "machine."
)
NOT_COVERED = _(
    "The choice of this plan, if it was tuned on the same data; software that does not do what it "
    "says; what the public base model was trained on; harm that follows from what is true of "
    "everybody."
)
NOT_COVERED_PERSON = _("A person as such, who may be behind many records.")
HEADINGS = {
    "protected": _("What is protected"),
    "from_whom": _("From whom"),
    "neighbours": _("What cannot be told apart"),
    "composition": _("What is counted together"),
    "basis": _("On whose word"),
    "attack": _("What an attack could find out"),
    "noise_to_signal": _("Noise and signal"),
    "warnings": _("Warnings"),
    "nist": _("Points of NIST SP 800-226"),
}
