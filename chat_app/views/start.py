"""What an empty chat shows: a greeting and examples that work on the models at hand. And the gateway's absence."""

from __future__ import annotations

import datetime

import streamlit as st

from chat_app.application import Application, Listing
from chat_app.blocks import plain
from chat_app.catalog import ModelCard, ModelKind
from chat_app.views.composer import Draft
from chat_app.views.picker import first_of

RETRY_S = 4.0
EXAMPLES: list[tuple[ModelKind, str, str]] = [
    ("chat", ":material/forum:", "What can you do?"),
    ("chat", ":material/swap_horiz:", "How do I use a larger model?"),
    ("image", ":material/palette:", "a red circle on a blue background"),
    ("image", ":material/brush:", "a yellow star on a green background"),
]


def draw_start(listing: Listing, card: ModelCard | None) -> tuple[ModelCard, Draft] | None:
    """The example that was picked, with the model to send it to."""
    st.title("What shall we make?", anchor=False)
    st.markdown("Ask something, attach a picture, or switch to **Image** and describe one. Or begin with one of these.")
    picked: tuple[ModelCard, Draft] | None = None
    for row in (EXAMPLES[:2], EXAMPLES[2:]):
        for column, (kind, icon, text) in zip(st.columns(2), row, strict=True):
            model = card if card and card.kind == kind else first_of(listing.cards, kind)
            label = f"Draw {text}" if kind == "image" else text
            if model is not None and column.button(label, icon=icon, key=f"example-{text}", width="stretch"):
                picked = model, Draft(text, ())
    return picked


def draw_outage(app: Application, listing: Listing) -> None:
    """A banner while the gateway does not list its models. It goes away by itself when the gateway is back."""
    if listing.failure is None:
        return
    failure = listing.failure
    trouble = "does not answer" if failure.status is None else "does not list its models"
    seen = f" It answered last at {datetime.datetime.fromtimestamp(listing.seen_at):%H:%M:%S}." if listing.seen_at else ""
    facts = f" (status {failure.status}, code `{failure.code}`)" if failure.status else ""
    with st.container(key="outage"):
        st.error(
            f"**The gateway at {plain(app.gateway.base_url)} {trouble}.** {plain(failure.message)}{facts}{seen}",
            icon=":material/cloud_off:",
        )
        st.button("Try again", icon=":material/refresh:", key="ask-again")
        _wait_for_gateway(app)


@st.fragment(run_every=RETRY_S)
def _wait_for_gateway(app: Application) -> None:
    if app.listing().failure is None:
        st.rerun()
