"""The frame around the pages: title, look, navigation. `streamlit run` starts here."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

HERE = Path(__file__).parent

st.set_page_config(page_title="Tandem", page_icon=str(HERE / "assets" / "tandem.svg"), layout="centered")
st.html(HERE / "assets" / "style.css")
st.logo(str(HERE / "assets" / "wordmark.svg"), size="large", icon_image=str(HERE / "assets" / "tandem.svg"))

pages = [st.Page(HERE / "views" / "chat.py", title="Tandem", default=True)]
st.navigation(pages, position="hidden").run()
