"""The browser app: another OpenAI client, made of Streamlit pages."""
