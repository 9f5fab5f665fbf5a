"""The pages, and the pieces they are drawn from. Only code here and in `app.py` calls Streamlit's widgets."""
