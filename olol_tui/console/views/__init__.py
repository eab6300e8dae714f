"""The screens of the console: state of the eye (cursor, filter, sort), never a fact."""
