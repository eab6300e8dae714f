"""Go's text/template, as far as the templates of Ollama's models use it. Pure.

No library of ours renders them, and llama.cpp knows Jinja only. `parse` makes a tree of the text,
`render` fills it in, `chat` is what Ollama does with a conversation around that.
"""

from olol_tui.models.gotemplate.chat import ChatTemplate
from olol_tui.models.gotemplate.parse import TemplateError

__all__ = ["ChatTemplate", "TemplateError"]
